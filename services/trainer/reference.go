package trainer

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/tuning"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// referenceFile is the name of the file of reference log-probabilities in the folder of a run.
const referenceFile = "reference.json"

// reference holds the sums of log-probabilities of all pairs under the reference, in the order of the rows. What
// they depend on is named, so that a run that has changed computes them again.
type reference struct {
	Base        string        `json:"base"` // digest of the model's files, or of the manifest for random weights
	KernelClass string        `json:"kernel_class"`
	Stored      bool          `json:"stored"` // the types of the files were used
	Precision   string        `json:"precision"`
	Pairs       string        `json:"pairs"` // digest of the ids and masks
	Sums        []tuning.Sums `json:"sums"`
}

// references makes sure that the reference log-probabilities of all pairs are known. They are computed by the stages
// of the run, once: without its adapter or, if there is none, before the first step.
func (t *training) references(f *fleet) error {
	p, ok := t.data.source.(*pairs)
	if !ok || p.reference != nil {
		return nil
	}
	m := t.run.manifest
	want := reference{Base: "manifest:" + t.run.hash, KernelClass: f.class(), Precision: m.Precision, Pairs: p.digest()}
	if t.initial != nil {
		want.Base = t.initial.GetDigest()
	}
	if t.run.plan.lowRank != nil {
		want.Stored = t.run.plan.lowRank.stored
	}
	path := filepath.Join(t.run.dir, referenceFile)
	have, err := readReference(path)
	if err != nil {
		return err
	}
	if have != nil && have.Base == want.Base && have.KernelClass == want.KernelClass && have.Stored == want.Stored &&
		have.Precision == want.Precision && have.Pairs == want.Pairs && len(have.Sums) == len(p.rows) {
		p.reference = have.Sums
		return nil
	}
	if m.Adapter == nil && t.step() > 0 {
		return fault.New(fault.DataLoss, "read %s: it is not that of the pairs, and the initial weights are gone", path)
	}
	want.Sums = make([]tuning.Sums, len(p.rows))
	for _, part := range [][]*pairSequence{p.train, p.validation} {
		if err := f.first(func(c *chain) error { return t.referenceOf(f, c, p, part, want.Sums) }); err != nil {
			return err
		}
	}
	text, err := json.Marshal(want)
	if err != nil {
		return fault.Wrap(fault.DataLoss, err, "write %s", path) // a sum is not finite
	}
	if err := weights.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	}); err != nil {
		return err
	}
	p.reference = want.Sums
	return nil
}

// readReference reads the file of reference log-probabilities; nil if there is none.
func readReference(path string) (*reference, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := &reference{}
	if err := json.Unmarshal(text, out); err != nil {
		return nil, nil //nolint:nilerr // it is computed again
	}
	return out, nil
}

// referenceOf computes the sums of some sequences on a chain.
func (t *training) referenceOf(f *fleet, c *chain, p *pairs, sequences []*pairSequence, sums []tuning.Sums) error {
	each := t.run.manifest.SlotSequences
	step := t.step() + 1
	slots := (len(sequences) + each - 1) / each
	return t.forward(f, c, &shardv1.Step{Step: step, Base: true}, slots, func(slot int) (*micro, error) {
		m := t.data.micro(step, slot)
		for _, s := range sequences[slot*each : min((slot+1)*each, len(sequences))] {
			t.data.add(m, p.of(s))
		}
		return m, nil
	}, func(slot int, l *shardv1.Loss) error {
		got := l.GetPairs()
		for _, s := range sequences[slot*each : min((slot+1)*each, len(sequences))] {
			for _, row := range s.rows {
				if len(got) == 0 {
					return fault.New(fault.Internal, "compute the reference: slot %d lacks pairs", slot)
				}
				sums[row] = tuning.Sums{Chosen: got[0].GetChosen(), Rejected: got[0].GetRejected()}
				got = got[1:]
			}
		}
		return nil
	})
}

// forward runs slots forward on a chain and takes their losses. like has the fields of the steps that it needs.
func (t *training) forward(
	f *fleet, c *chain, like *shardv1.Step, slots int, read func(slot int) (*micro, error),
	take func(slot int, l *shardv1.Loss) error,
) error {
	const most = 256 // slots in a step frame
	for from := 0; from < slots; from += most {
		s := &shardv1.Step{
			Step: like.GetStep(), Base: like.GetBase(), Attempt: f.attempt, Targets: 1, ForwardOnly: true,
		}
		var part []*micro
		for i := range min(most, slots-from) {
			m, err := read(from + i)
			if err != nil {
				return err
			}
			m.Slot = uint32(i)
			s.Slots = append(s.Slots, uint32(i))
			part = append(part, m)
		}
		var g errgroup.Group
		g.Go(func() error { return f.feed(c.ctx, c, s, part) })
		err := func() error {
			for range part {
				r, err := f.reply(c.stages[len(c.stages)-1])
				if err != nil {
					return err
				}
				l := r.GetLoss()
				if l == nil || int(l.GetSlot()) >= len(part) {
					return fault.New(fault.Internal, "run step %d forward: the last stage answered with %T",
						like.GetStep(), r.GetFrame())
				}
				if err := take(from+int(l.GetSlot()), l); err != nil {
					return err
				}
			}
			return nil
		}()
		if err := firstOf(err, g.Wait()); err != nil {
			return err
		}
	}
	return nil
}

// preference sums up the pairs of a step.
type preference struct {
	pairs, right   int
	margin         float64 // sum
	chosen, reject float64 // sums of the rewards: beta times the log-probability ratios to the reference
}

// preferenceOf sums up the losses of a step in the order of its slots.
func preferenceOf(m *Manifest, b *batch) preference {
	var out preference
	if m.DPO == nil {
		return out
	}
	for slot, losses := range b.pairLosses {
		for i, l := range losses {
			pair := b.slots[slot].GetPairs()[i]
			out.pairs++
			if l.GetMargin() > 0 {
				out.right++
			}
			out.margin += l.GetMargin()
			out.chosen += m.DPO.Beta * (l.GetChosen() - pair.GetReferenceChosen())
			out.reject += m.DPO.Beta * (l.GetRejected() - pair.GetReferenceRejected())
		}
	}
	return out
}

// mean returns a sum over the pairs as a mean; 0 without pairs.
func (p preference) mean(sum float64) float64 { return sum / float64(max(1, p.pairs)) }

// preferenceLine is what metrics.jsonl has of the pairs of a step.
type preferenceLine struct {
	Accuracy       float64 `json:"accuracy"`        // share of the pairs with a positive margin
	Margin         float64 `json:"margin"`          // mean
	ChosenReward   float64 `json:"chosen_reward"`   // mean of beta times the log-probability ratio to the reference
	RejectedReward float64 `json:"rejected_reward"` // of the other answers
}

// line returns the means for metrics.jsonl; nil without pairs.
func (p preference) line() *preferenceLine {
	if p.pairs == 0 {
		return nil
	}
	return &preferenceLine{Accuracy: p.mean(float64(p.right)), Margin: p.mean(p.margin), ChosenReward: p.mean(p.chosen),
		RejectedReward: p.mean(p.reject)}
}
