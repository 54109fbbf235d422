package trainer

import (
	"errors"
	"math"
	"slices"
	"strings"
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
	if err := t.rollOut(f, step); err != nil {
		return err
	}
	data, err := t.read(step)
	if err != nil {
		return err
	}
	stepping := time.Now()
	res, err := t.optimize(f, step, data, &idle, &sent)
	if err != nil {
		return err
	}
	res.took = time.Since(stepping)
	if err := t.ledger.write(data.ledger); err != nil {
		return err
	}
	t.tokens += int(data.tokens)
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
	prefers, policy := preferenceOf(m, data), t.policyOf(data)
	bits := bitsPerByte(res.loss*float64(data.targets), data.bytes)
	t.sent.sent, t.sent.full = t.sent.sent+sent.sent, t.sent.full+sent.full
	speed, took := float64(t.tokens)/time.Since(t.began).Seconds(), float64(time.Since(begin).Microseconds())/1000
	flops, peak := t.spec.StepFlops(t.work(data))/res.took.Seconds(), f.peak()
	left := 0.0
	if step > t.from { // a step that was rolled back is made again
		left = time.Since(t.began).Seconds() / float64(step-t.from) * float64(uint64(m.Steps)-step)
	}
	t.run.update(func(s *trainerv1.Run) {
		s.Step, s.Loss, s.GradientNorm, s.LearningRate, s.TokensPerSecond = step, res.loss, res.norm, res.rate, speed
		s.StepMs, s.Bubble, s.SimulatedBubble = took, idle.share(), t.simulated
		s.Members = uint32(len(f.chains))
		s.BitsPerByte = bits
		s.Objective = m.Objective
		s.Accuracy, s.Margin = prefers.mean(float64(prefers.right)), prefers.mean(prefers.margin)
		if policy != nil {
			s.Reward, s.Mismatched = policy.Reward, policy.Mismatched
		}
		if t.validation > 0 {
			s.ValidationLoss, s.ValidationBitsPerByte = t.validation, t.bits
		}
		s.GradientBytes, s.GradientRatio, s.GradientError = t.sent.sent, t.sent.ratio(), sent.error()
		s.StepDirectBytes = sent.direct
		s.StepGradientBytes, s.Flops, s.PeakFlops, s.SecondsLeft = sent.sent, flops, peak, left
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
		DirectBytes:           sent.direct,
		Flops:                 flops,
		PeakShare:             flops / max(1, peak),
		GradientRatio:         t.sent.ratio(),
		GradientError:         sent.error(),
		StepMS:                took,
		TokensPerSecond:       speed,
		Skipped:               res.skipped,
		preferenceLine:        prefers.line(),
		policyLine:            policy,
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
		if bad := (*rejectedError)(nil); errors.As(err, &bad) {
			err = firstOf(t.quarantine(f, bad), err)
		}
	} else {
		var norms []*shardv1.Norm
		losses, norms, err = t.gradients(f, step, data, idle, sent)
		var squares float64
		for _, n := range norms { // in name order
			squares += n.GetSumSquares()
		}
		res.norm = math.Sqrt(squares)
	}
	targets := float64(data.targets)
	for _, l := range losses { // in slot order
		res.loss += l / targets
	}
	if m.DiLoCo == nil {
		if skipped, err := t.judge(f, step, res, err); skipped || err != nil {
			res.skipped = skipped
			return res, err
		}
	}
	if err != nil {
		return res, err
	}
	if math.IsNaN(res.loss) || math.IsInf(res.norm, 0) || math.IsNaN(res.norm) {
		return res, fault.New(fault.DataLoss, "step %d: loss %v and gradient norm %v are not finite", step, res.loss,
			res.norm)
	}
	if m.DiLoCo != nil {
		return res, nil
	}
	t.norms.add(res.norm)
	res.scale = optim.ClipScale(res.norm, m.Clip)
	return res, t.apply(f, step, &shardv1.Apply{LearningRate: res.rate, GradientScale: res.scale})
}

// tryGradients runs the slots of a step on all chains. It returns the losses in slot order and
// the norms in name order. All replicas must report equal norms.
func (t *training) tryGradients(
	f *fleet, step uint64, data *batch, idle *bubble, sent *traffic,
) ([]float64, []*shardv1.Norm, error) {
	losses := make([]float64, t.run.manifest.Slots)
	folded := map[*chain][]*shardv1.Norm{}
	reports := map[*chain][]*shardv1.Folded{}
	members, limit := f.members(t.direct()), t.largest(f, step)
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(f.ctx)
	for _, c := range f.chains {
		s := &shardv1.Step{Step: step, Attempt: f.attempt, Targets: data.targets, Members: members, MaxNorm: limit}
		for slot := c.lo; slot < c.hi; slot++ {
			s.Slots = append(s.Slots, uint32(slot))
		}
		g.Go(func() error { return f.feed(ctx, c, s, data.slots[c.lo:c.hi]) })
		for _, at := range c.stages {
			g.Go(func() error {
				return f.collect(ctx, at, step, func(l *shardv1.Loss) error {
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
					folded[c] = append(folded[c], r.GetNorms()...)
					reports[c] = append(reports[c], r)
					sent.add(r)
					sent.direct += r.GetBytesDirect()
				})
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	first := folded[f.chains[0]]
	for _, c := range f.chains {
		if t.run.layout.stages > 1 {
			idle.add(reports[c])
		}
		c.measured(reports[c])
		norms := folded[c]
		slices.SortFunc(norms, func(a, b *shardv1.Norm) int { return strings.Compare(a.GetName(), b.GetName()) })
		if !slices.EqualFunc(norms, first, func(a, b *shardv1.Norm) bool { return proto.Equal(a, b) }) {
			return nil, nil, fault.New(fault.DataLoss, "step %d: the replicas folded different gradients", step)
		}
	}
	return losses, first, nil
}

// apply has all stages step their optimizers, and compares the weights of the replicas. The step counts if one
// replica has made it: one that is lost on the way is left behind.
func (t *training) apply(f *fleet, step uint64, a *shardv1.Apply) error {
	a.Step, a.Attempt, a.Epoch = step, f.attempt, f.epoch
	digests, errs := make([][]uint64, len(f.chains)), make([]error, len(f.chains))
	var wg sync.WaitGroup
	for i, c := range f.chains {
		digests[i] = make([]uint64, t.run.layout.stages)
		wg.Go(func() { errs[i] = f.applyChain(c, a, digests[i], func(*shardv1.Applied) {}) })
	}
	wg.Wait()
	var whole [][]uint64
	for i, c := range f.chains {
		switch {
		case errs[i] == nil:
			whole = append(whole, digests[i])
		case !f.elastic() || !retryable(errs[i]):
			return errs[i]
		default:
			f.lost(c, errs[i])
		}
	}
	if len(whole) == 0 {
		return firstOf(errs...)
	}
	if lost := f.sweep(); len(lost) > 0 {
		t.note(step, lost)
		if len(f.chains) == 0 {
			return lost[0].lost()
		}
	}
	return sameDigests(step, whole)
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

// evaluate measures the mean loss of the validation text on one chain.
func (t *training) evaluate(f *fleet, step uint64) error {
	if t.data.evaluations(t.run.manifest.SlotSequences) == 0 {
		return nil
	}
	return f.first(func(c *chain) error { return t.evaluateOn(f, c, step) })
}

func (t *training) evaluateOn(f *fleet, c *chain, step uint64) error {
	sequences := t.run.manifest.SlotSequences
	slots := t.data.evaluations(sequences)
	var sum float64
	var targets, bytes uint64
	losses := make([]float64, slots)
	err := t.forward(f, c, &shardv1.Step{Step: step}, slots, func(slot int) (*micro, error) {
		m, err := t.data.evaluation(step, slot, sequences)
		if err == nil {
			bytes += m.bytes
		}
		return m, err
	}, func(slot int, l *shardv1.Loss) error {
		losses[slot] = l.GetSum()
		targets += l.GetTargets()
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range losses {
		sum += l
	}
	t.validation, t.bits = sum/float64(targets), bitsPerByte(sum, bytes)
	t.run.update(func(s *trainerv1.Run) { s.ValidationLoss, s.ValidationBitsPerByte = t.validation, t.bits })
	return nil
}
