package trainer

import (
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// runStep runs one optimizer step.
func (t *training) runStep(f *fleet, step uint64) error {
	m := t.run.manifest
	begin := time.Now()
	var idle bubble
	var sent traffic
	data, err := t.read(step)
	if err != nil {
		return err
	}
	res, err := t.optimize(f, step, data, &idle, &sent)
	if err != nil {
		return err
	}
	if err := t.ledger.write(data.ledger); err != nil {
		return err
	}
	t.tokens += int(data.targets)
	t.loss, t.validation, t.bits = res.loss, 0, 0
	if m.EvaluateEvery > 0 && step%uint64(m.EvaluateEvery) == 0 {
		if err := t.evaluate(f, step); err != nil {
			return err
		}
	}
	if every := m.Samples.Every; every > 0 && step%uint64(every) == 0 {
		if err := t.sample(f, step); err != nil {
			return err
		}
	}
	bits := bitsPerByte(res.loss*float64(data.targets), data.bytes)
	t.sent.sent, t.sent.full = t.sent.sent+sent.sent, t.sent.full+sent.full
	speed, took := float64(t.tokens)/time.Since(t.began).Seconds(), float64(time.Since(begin).Microseconds())/1000
	t.run.update(func(s *trainerv1.Run) {
		s.Step, s.Loss, s.GradientNorm, s.LearningRate, s.TokensPerSecond = step, res.loss, res.norm, res.rate, speed
		s.StepMs, s.Bubble, s.SimulatedBubble = took, idle.share(), t.simulated
		s.BitsPerByte = bits
		if t.validation > 0 {
			s.ValidationLoss, s.ValidationBitsPerByte = t.validation, t.bits
		}
		s.GradientBytes, s.GradientRatio, s.GradientError = t.sent.sent, t.sent.ratio(), sent.error()
	})
	t.run.recordLater()
	return t.metrics.write(line{
		Step:                  step,
		Loss:                  res.loss,
		Norm:                  res.norm,
		Rate:                  res.rate,
		Validation:            t.validation,
		BitsPerByte:           bits,
		ValidationBitsPerByte: t.bits,
		Bubble:                idle.share(),
		SimulatedBubble:       t.simulated,
		GradientBytes:         sent.sent,
		GradientBytesRead:     sent.read,
		GradientRatio:         t.sent.ratio(),
		GradientError:         sent.error(),
		StepMS:                took,
		TokensPerSecond:       speed,
	})
}

// optimize computes the gradients of a step and steps the weights.
func (t *training) optimize(f *fleet, step uint64, data *batch, idle *bubble, sent *traffic) (result, error) {
	m := t.run.manifest
	res := result{rate: m.rate().At(int(step))}
	var losses []float64
	var err error
	if m.DiLoCo != nil {
		losses, res.norm, err = t.workersStep(f, step, data, res.rate, idle, sent)
	} else {
		var norms []*shardv1.Norm
		losses, norms, err = t.gradients(f, step, data, idle, sent)
		var squares float64
		for _, n := range norms { // in name order
			squares += n.GetSumSquares()
		}
		res.norm = math.Sqrt(squares)
	}
	if err != nil {
		return res, err
	}
	targets := float64(data.targets)
	for _, l := range losses { // in slot order
		res.loss += l / targets
	}
	if math.IsNaN(res.loss) || math.IsInf(res.norm, 0) || math.IsNaN(res.norm) {
		return res, fault.New(fault.DataLoss, "step %d: loss %v and gradient norm %v are not finite", step, res.loss,
			res.norm)
	}
	if m.DiLoCo != nil {
		return res, nil
	}
	res.scale = optim.ClipScale(res.norm, m.Clip)
	return res, t.apply(f, step, res)
}

// gradients runs the slots of a step on all chains. It returns the losses in slot order and
// the norms in name order. All replicas must report equal norms.
func (t *training) gradients(
	f *fleet, step uint64, data *batch, idle *bubble, sent *traffic,
) ([]float64, []*shardv1.Norm, error) {
	m := t.run.manifest
	losses := make([]float64, m.Slots)
	folded := make([][]*shardv1.Norm, len(f.chains))
	reports := make([][]*shardv1.Folded, len(f.chains))
	var mu sync.Mutex
	var g errgroup.Group
	for _, c := range f.chains {
		lo, hi := m.share(c.replica, len(f.chains))
		s := &shardv1.Step{Step: step, Targets: data.targets}
		for slot := lo; slot < hi; slot++ {
			s.Slots = append(s.Slots, uint32(slot))
		}
		g.Go(func() error { return f.feed(c, s, data.slots[lo:hi]) })
	}
	err := f.each(func(c *chain, i int, s *stage) error {
		return f.collect(s, step, func(l *shardv1.Loss) error {
			mu.Lock()
			defer mu.Unlock()
			err := data.lost(l, c.replica)
			if err == nil {
				losses[l.GetSlot()] = l.GetSum()
			}
			return err
		}, func(r *shardv1.Folded) {
			mu.Lock()
			defer mu.Unlock()
			folded[c.replica] = append(folded[c.replica], r.GetNorms()...)
			reports[c.replica] = append(reports[c.replica], r)
			sent.add(r)
		})
	})
	if err := firstOf(err, g.Wait()); err != nil {
		return nil, nil, err
	}
	if t.run.layout.stages > 1 {
		for _, r := range reports {
			idle.add(r)
		}
	}
	for _, norms := range folded {
		slices.SortFunc(norms, func(a, b *shardv1.Norm) int { return compare(a.GetName(), b.GetName()) })
		if !slices.EqualFunc(norms, folded[0], func(a, b *shardv1.Norm) bool { return proto.Equal(a, b) }) {
			return nil, nil, fault.New(fault.DataLoss, "step %d: the replicas folded different gradients", step)
		}
	}
	return losses, folded[0], nil
}

// apply has all stages step their optimizers, and compares the weights of the replicas.
func (t *training) apply(f *fleet, step uint64, res result) error {
	digests := make([][]uint64, len(f.chains))
	for i := range digests {
		digests[i] = make([]uint64, t.run.layout.stages)
	}
	var g errgroup.Group
	for _, c := range f.chains {
		a := &shardv1.Apply{Step: step, LearningRate: res.rate, GradientScale: res.scale}
		g.Go(func() error { return f.applyChain(c, a, digests[c.replica], func(*shardv1.Applied) {}) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return sameDigests(step, digests)
}

// sameDigests returns an error if replicas have different weights.
func sameDigests(step uint64, digests [][]uint64) error {
	for r, d := range digests {
		if !slices.Equal(d, digests[0]) {
			return fault.New(fault.DataLoss, "step %d: the weights of replica %d differ from replica 0's", step, r)
		}
	}
	return nil
}

// evaluate measures the mean loss of the validation text on the first chain.
func (t *training) evaluate(f *fleet, step uint64) error {
	sequences := t.run.manifest.SlotSequences
	slots := t.data.evaluations(sequences)
	if slots == 0 {
		return nil
	}
	var sum float64
	var targets, bytes uint64
	losses := make([]float64, slots)
	const most = 256 // slots in a step frame
	for from := 0; from < slots; from += most {
		s := &shardv1.Step{Step: step, Targets: 1, ForwardOnly: true}
		var part []*micro
		for i := range min(most, slots-from) {
			m, err := t.data.evaluation(step, from+i, sequences)
			if err != nil {
				return err
			}
			m.Slot = uint32(i)
			s.Slots = append(s.Slots, uint32(i))
			part = append(part, m)
			bytes += m.bytes
		}
		c := f.chains[0]
		var g errgroup.Group
		g.Go(func() error { return f.feed(c, s, part) })
		err := func() error {
			for range part {
				r, err := f.reply(c.stages[len(c.stages)-1])
				if err != nil {
					return err
				}
				l := r.GetLoss()
				if l == nil || int(l.GetSlot()) >= len(part) {
					return fault.New(fault.Internal, "evaluate step %d: the last stage answered with %T", step,
						r.GetFrame())
				}
				losses[from+int(l.GetSlot())] = l.GetSum()
				targets += l.GetTargets()
			}
			return nil
		}()
		if err := firstOf(err, g.Wait()); err != nil {
			return err
		}
	}
	for _, l := range losses {
		sum += l
	}
	t.validation, t.bits = sum/float64(targets), bitsPerByte(sum, bytes)
	t.run.update(func(s *trainerv1.Run) { s.ValidationLoss, s.ValidationBitsPerByte = t.validation, t.bits })
	return nil
}
