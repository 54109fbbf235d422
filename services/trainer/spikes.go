package trainer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// Spikes says what is done about a step whose loss or gradient norm is far above those before, or not finite. What
// is done depends on losses and norms only, so it is the same on every layout and after every resume.
type Spikes struct {
	// Action is "skip" (default), which leaves the weights as they are, or "rollback", which goes back to the last
	// multiple of checkpoint_every and goes on from there with the data behind the spike.
	Action string `json:"action,omitempty"`
	// Deviations is how many standard deviations above the mean of the window a spike is; 6 when absent.
	Deviations float64 `json:"deviations,omitempty"`
	// Window is the number of steps whose mean and deviation count; 50 when absent. There are no spikes before a
	// fifth of them, and at least 10, have been made.
	Window int `json:"window,omitempty"`
	// Most is the number of spikes after which the run fails; 10 when absent.
	Most int `json:"most,omitempty"`
}

const (
	spikeSkip     = "skip"
	spikeRollback = "rollback"
	maxWindow     = 1000
	maxSpikes     = 1000
	leastWindow   = 10
	// leastDeviation is the smallest standard deviation that counts, as a share of the mean.
	leastDeviation = 0.02
	spikesShown    = 100 // in a run's status
)

func (m *Manifest) checkSpikes() error {
	s := m.Spikes
	if s == nil {
		return nil
	}
	s.Action, s.Deviations = cmp.Or(s.Action, spikeSkip), cmp.Or(s.Deviations, 6)
	s.Window, s.Most = cmp.Or(s.Window, 50), cmp.Or(s.Most, 10)
	switch {
	case m.DiLoCo != nil:
		return fault.Field("spikes", "the workers of diloco step on their own, without a loss of all")
	case s.Action != spikeSkip && s.Action != spikeRollback:
		return fault.Field("spikes.action", "%q is neither %s nor %s", s.Action, spikeSkip, spikeRollback)
	case !(s.Deviations >= 1 && s.Deviations <= 1000):
		return fault.Field("spikes.deviations", "%v is not within 1..1000", s.Deviations)
	case s.Window < leastWindow || s.Window > maxWindow:
		return fault.Field("spikes.window", "%d is not within %d..%d", s.Window, leastWindow, maxWindow)
	case s.Most < 1 || s.Most > maxSpikes:
		return fault.Field("spikes.most", "%d is not within 1..%d", s.Most, maxSpikes)
	}
	return nil
}

// history is what decides about spikes. Checkpoints have it.
type history struct {
	Losses []float64 `json:"losses,omitempty"` // of the window: steps that were no spikes
	Norms  []float64 `json:"norms,omitempty"`
	Skips  int       `json:"skips,omitempty"`
	// Rollbacks are the spikes after which the run went back.
	Rollbacks []rollback `json:"rollbacks,omitempty"`
}

// rollback is a spike after which the run went back to an earlier step.
type rollback struct {
	At uint64 `json:"at"` // the step of the spike
	To uint64 `json:"to"` // the step that it went back to
}

// data returns the number of the step whose data a step reads: after a rollback it is what comes behind the spike.
func (h *history) data(step uint64) uint64 {
	out := step
	for _, r := range h.Rollbacks {
		if step > r.To {
			out += r.At - r.To
		}
	}
	return out
}

// spike describes a value that is far above those before.
type spike struct {
	of           string
	value, limit float64
}

// spike returns what is wrong with a step, or nil.
func (h *history) spike(s *Spikes, loss, norm float64) *spike {
	for _, v := range []struct {
		of     string
		now    float64
		before []float64
	}{{"loss", loss, h.Losses}, {"gradient norm", norm, h.Norms}} {
		if math.IsNaN(v.now) || math.IsInf(v.now, 0) {
			return &spike{v.of, v.now, 0}
		}
		if len(v.before) < max(leastWindow, s.Window/5) {
			continue
		}
		n := float64(len(v.before))
		var mean, squares float64
		for _, x := range v.before {
			mean += x / n
		}
		for _, x := range v.before {
			squares += (x - mean) * (x - mean) / n
		}
		if limit := mean + s.Deviations*max(math.Sqrt(squares), leastDeviation*math.Abs(mean)); v.now > limit {
			return &spike{v.of, v.now, limit}
		}
	}
	return nil
}

// add adds a step that is no spike to the window.
func (h *history) add(s *Spikes, loss, norm float64) {
	h.Losses, h.Norms = append(h.Losses, loss), append(h.Norms, norm)
	h.Losses = slices.Clone(h.Losses[max(0, len(h.Losses)-s.Window):])
	h.Norms = slices.Clone(h.Norms[max(0, len(h.Norms)-s.Window):])
}

// encode returns the history as checkpoints have it; empty for a run without a rule.
func (t *training) encodeHistory() (string, error) {
	if t.run.manifest.Spikes == nil {
		return "", nil
	}
	text, err := json.Marshal(&t.history)
	return string(text), err
}

// restoreHistory takes the history over from the last checkpoint. Rollbacks that came after it stay: they decide
// what the run has read since.
func (t *training) restoreHistory() error {
	var h history
	if t.last != nil && t.last.Trainer != "" {
		if err := json.Unmarshal([]byte(t.last.Trainer), &h); err != nil {
			return fault.Wrap(fault.DataLoss, err, "read the history in checkpoint %d", t.last.Step)
		}
		for _, r := range h.Rollbacks {
			if r.To >= r.At {
				return fault.New(fault.DataLoss, "read the history in checkpoint %d: a rollback from step %d to %d",
					t.last.Step, r.At, r.To)
			}
		}
	}
	if len(t.history.Rollbacks) > len(h.Rollbacks) {
		h.Rollbacks = t.history.Rollbacks
	}
	t.history = h
	return nil
}

// rollbackError ends an attempt to train, in order to go back.
type rollbackError struct{ rollback }

func (e *rollbackError) Error() string { return fmt.Sprintf("step %d: go back to step %d", e.At, e.To) }

// judge decides about a step whose gradients are computed, or cannot be used because of err. It returns true if the
// step has been skipped.
func (t *training) judge(f *fleet, step uint64, res result, err error) (skipped bool, _ error) {
	rule := t.run.manifest.Spikes
	var bad *notFiniteError
	if rule == nil || err != nil && !errors.As(err, &bad) {
		return false, err
	}
	found := t.history.spike(rule, res.loss, res.norm)
	if bad != nil {
		found = &spike{"gradient norm", math.NaN(), 0}
	}
	if found == nil {
		t.history.add(rule, res.loss, res.norm)
		return false, nil
	}
	if t.history.Skips+len(t.history.Rollbacks) >= rule.Most {
		return false, fault.New(fault.DataLoss, "step %d: a %s of %v is the last spike that spikes.most allows, %d", step,
			found.of, found.value, rule.Most)
	}
	report := &trainerv1.Spike{Step: step, Action: rule.Action, Of: found.of, Value: found.value, Limit: found.limit}
	if rule.Action == spikeRollback {
		report.BackTo = (step - 1) / uint64(t.run.manifest.CheckpointEvery) * uint64(t.run.manifest.CheckpointEvery)
	}
	t.run.service.log.Warn("the loss or the gradient norm has a spike", "run", t.run.name, "step", step, "of", found.of,
		"value", found.value, "limit", found.limit, "action", rule.Action, "back_to", report.GetBackTo())
	t.run.update(func(r *trainerv1.Run) {
		r.Spikes = append(r.Spikes, report)
		r.Spikes = r.Spikes[max(0, len(r.GetSpikes())-spikesShown):]
	})
	t.happened(&trainerv1.RunEvent{Step: step, Kind: rule.Action, Message: spikeText(report)})
	if rule.Action == spikeRollback {
		return false, &rollbackError{rollback{step, report.GetBackTo()}}
	}
	t.history.Skips++
	if bad != nil {
		f.abort(step)
		f.attempt++ // that of what is left to do at this step: nothing of the one before is answered any more
		t.note(step, f.sweep())
		if len(f.chains) == 0 {
			return false, fault.New(fault.Unavailable, "step %d: all replicas are lost", step)
		}
	}
	return true, t.apply(f, step, &shardv1.Apply{Skip: true})
}

// spikeText describes a spike.
func spikeText(s *trainerv1.Spike) string {
	text := fmt.Sprintf("a %s of %.4g", s.GetOf(), s.GetValue())
	if s.GetLimit() > 0 {
		text += fmt.Sprintf(" is above %.4g", s.GetLimit())
	}
	if s.GetAction() == spikeRollback {
		text += fmt.Sprintf("; back to step %d", s.GetBackTo())
	}
	return text
}

// goBack prepares for going on from the step that a spike has led back to.
func (t *training) goBack(e *rollbackError) error {
	t.history.Rollbacks = append(t.history.Rollbacks, e.rollback)
	// Checkpoints behind it belong to what the run has given up.
	steps, err := t.store.Steps()
	for _, step := range steps {
		if step > e.To {
			err = errors.Join(err, t.store.Remove(step))
		}
	}
	if err != nil {
		return err
	}
	return t.findCheckpoint(e.To)
}
