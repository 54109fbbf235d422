package trainer

import (
	"errors"
	"fmt"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// maxAttempts bounds the attempts at a step, after which the run goes back to a checkpoint.
const maxAttempts = 20

// rejectedError says that a stage has reported a gradient that must not be used.
type rejectedError struct {
	*shardv1.Rejected
	by *stage
}

func (e *rejectedError) Error() string {
	return fmt.Sprintf("step %d: a gradient of replica %d is rejected: %s", e.GetStep(), e.GetReplica(), e.GetMessage())
}

// FaultCode returns Aborted: other replicas may compute the gradient.
func (e *rejectedError) FaultCode() fault.Code { return fault.Aborted }

// gradients makes attempts at a step until one succeeds. After an attempt that has lost a replica, or rejected its
// gradient, the slots are shared among those that are left. An attempt leaves no trace, and slots decide about
// bits, so the result is that of an undisturbed step.
func (t *training) gradients(f *fleet, step uint64, data *batch, idle *bubble, sent *traffic) (
	[]float64, []*shardv1.Norm, error) {
	t.doubts.begin(step)
	f.expect(t.spec.StepFlops(t.work(data)))
	for f.attempt = 0; ; f.attempt++ {
		begin := time.Now()
		f.assign()
		losses, norms, err := t.tryGradients(f, step, data, idle, sent)
		if err == nil {
			t.linked()
			f.took(time.Since(begin))
			return losses, norms, nil
		}
		if err := t.repair(f, step, err); err != nil {
			return nil, nil, err
		}
		data.forget()
	}
}

// expect estimates the usual time of a step of so many operations until one has been measured. Without it the first
// step of a large model, on machines that have other work, too, would look like one that does not get on.
func (f *fleet) expect(flops float64) {
	if peak := f.peak(); f.stepTime.n == 0 && peak > 0 {
		f.usual.Store(int64(flops / peak * float64(time.Second)))
	}
}

// took takes over how long the gradients of a step have taken.
func (f *fleet) took(d time.Duration) {
	f.stepTime.add(float64(d))
	f.usual.Store(int64(f.stepTime.mean))
}

// repair prepares for another attempt at a step after an error. It returns an error if there can be none.
func (t *training) repair(f *fleet, step uint64, err error) error {
	var bad *rejectedError
	rejected, torn := errors.As(err, &bad), errors.As(err, new(*linkError))
	if rejected {
		if err := t.quarantine(f, bad); err != nil {
			return err
		}
	}
	if torn && !f.elastic() {
		t.tear(step, err)
	}
	if !f.elastic() || !retryable(err) || f.ctx.Err() != nil || f.attempt+1 >= maxAttempts {
		return err
	}
	f.abort(step)
	lost := f.sweep()
	switch {
	case len(lost) > 0 || rejected:
	case torn:
		t.tear(step, err)
	default:
		return err // nothing has changed
	}
	t.note(step, lost)
	if len(f.chains) == 0 {
		return err
	}
	t.run.service.log.Warn("repeat step", "run", t.run.name, "step", step, "replicas", len(f.chains), "error", err)
	t.run.update(func(r *trainerv1.Run) { r.Aborted++ })
	return nil
}

// note records chains that are lost.
func (t *training) note(step uint64, lost []*chain) {
	for _, c := range lost {
		t.run.service.log.Warn("a replica is lost", "run", t.run.name, "replica", c.replica, "error", c.lost())
		if !errors.As(c.lost(), new(*rejectedError)) { // which has been recorded as such
			t.happenedTo(c, eventLost, step, c.lost())
		}
	}
	t.run.update(func(r *trainerv1.Run) { r.Lost += uint64(len(lost)) })
}

// forget forgets which replicas have computed the slots.
func (b *batch) forget() {
	for i := range b.ledger.Slots {
		b.ledger.Slots[i].Replica = -1
	}
}
