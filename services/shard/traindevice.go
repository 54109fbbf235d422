package shard

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// On a device with memory of its own the weights, the moments, the gradients of slots and what passes keep stay there.
// The host has hidden states on their way to other stages, gradients on their way to other replicas and back, and
// residuals. What a stage takes of the device is counted and reserved before anything is loaded.

// checkDevice refuses what shards do not do on devices with memory of their own yet.
func (s *Service) checkDevice(o *shardv1.TrainOpen) error {
	if s.device == nil {
		return nil
	}
	if err := s.Err(); err != nil {
		return err
	}
	var what string
	switch {
	case o.GetDiloco() != nil: // its common weights and its differences are computed by the host
		what = "diloco"
	case o.GetObjective().GetGrpo() != nil: // the device's log-probabilities are not the sampler's to the bit
		what = "objective.grpo"
	default:
		return nil
	}
	return fault.New(fault.Unimplemented, "train: shards on %s do not have %s yet: train on processors",
		s.cfg.Kernels.Name(), what)
}

// squaresShare is the part of a gradient's size that the device takes for the sum of its squares, or more.
const squaresShare = 1024

// spanCost is what a span takes of a device, in bytes.
type spanCost struct {
	fixed           int64 // weights, moments, and scratch memory of passes
	gradient, trace int64 // of a slot
}

// count counts what a span takes of the device, and what the steps of its parameters take.
func (r *trainRun) count(spec model.Spec, at model.Range, kernels kernel.Set[float32], source initial) error {
	o := r.open
	size, err := model.TrainSizeOn(source.files, spec, at, kernels, model.TrainOptions{
		Adapter: r.adapter, Stored: o.GetAdapter().GetStoredBase(), Recompute: o.GetRecomputeLayers(),
		StoreBF16: o.GetStorage() == shardv1.Precision_PRECISION_BFLOAT16,
		Split:     o.GetSchedule() == schedule.NameZeroBubble, Dropout: r.dropoutRates(),
		Rows: int(o.GetSlotSequences()) * int(o.GetSequenceLen()),
	})
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "measure layers %v", at)
	}
	c := spanCost{fixed: size.Weights + size.Scratch, trace: size.Trace}
	groups, frozen := r.divide(size.Shape)
	for _, p := range size.Shape.Params().Tensors {
		if !frozen[p.Owner()] {
			c.gradient += 4 * int64(len(p.Data))
		}
	}
	for _, p := range size.Shape.Stepped() {
		c.fixed += 4 * int64(len(p.Data)) * int64(r.optim.Moments(groups[p.Name]))
		for i, n := range r.optim.Needs(groups[p.Name], len(p.Data)) {
			r.stepValues[i] = max(r.stepValues[i], n)
		}
	}
	r.costs = append(r.costs, c)
	return nil
}

// divide returns how the parameters of a stage are stepped, by name, and the names of the weights that are not trained.
func (r *trainRun) divide(stage *model.Stage[float32]) (groups map[string]optim.Group, frozen map[string]bool) {
	groups, frozen = map[string]optim.Group{}, map[string]bool{}
	for _, p := range stage.Params().Tensors {
		if !stage.Trained(p.Name) {
			frozen[p.Owner()] = true
		}
	}
	for _, p := range stage.Stepped() {
		g := r.optim.For(optim.Parameter{Name: p.Owner(), Shape: p.Shape, Hidden: stage.Spec.Hidden(p.Name)})
		groups[p.Name], frozen[p.Owner()] = g, !g.Trainable
	}
	return groups, frozen
}

// reserve sets aside what the stage takes of the device as one of some members, if that is more than before.
func (r *trainRun) reserve(m members) error {
	device := r.service.device
	if device == nil {
		return nil
	}
	want, err := r.deviceBytes(m)
	if err != nil || want <= r.reserved {
		return err
	}
	more := want - r.reserved
	if err := device.Reserve(more); err != nil {
		return fault.Wrap(fault.Exhausted, err, "reserve %d bytes for a train stage of %d slots", want, r.slotsOf(m))
	}
	r.reserved = want
	r.service.trained.Add(more)
	return nil
}

// unreserve gives back what reserve has set aside.
func (r *trainRun) unreserve() {
	if r.reserved > 0 {
		r.service.device.Unreserve(r.reserved)
		r.service.trained.Add(-r.reserved)
		r.reserved = 0
	}
}

// slotsOf returns the number of slots that this replica has as one of some members.
func (r *trainRun) slotsOf(m members) int {
	lo, hi := m.slots()
	return hi - lo
}

// deviceBytes returns the bytes that the stage takes of the device as one of some members.
func (r *trainRun) deviceBytes(m members) (int64, error) {
	actions, err := schedule.Config{Name: r.open.GetSchedule(), Stages: int(r.open.GetStages()),
		Spans: len(r.open.GetSpans()), Micro: r.slotsOf(m)}.Stage(int(r.open.GetStage()))
	if err != nil {
		return 0, fault.Wrap(fault.Invalid, err, "open")
	}
	lo, hi := m.slots()
	gradients := gradientsAtOnce(r.unitsOf(lo, hi), len(m.shares) > 1)
	total := int64(peakBytes)
	for _, n := range r.stepValues {
		total += 4 * int64(n)
	}
	for i, c := range r.costs {
		total += c.fixed + c.gradient*int64(gradients) + c.trace*int64(tracesAtOnce(actions, i))
		total += c.gradient / squaresShare
	}
	return total, nil
}

// gradientsAtOnce returns how many gradients a replica with some units holds at most. If there are other replicas, the
// sum over all of them is one more.
func gradientsAtOnce(units []schedule.Node, others bool) int {
	most := 0
	for i, n := range units {
		most = max(most, i+gradientsOf(n))
	}
	if others {
		most = max(most, len(units)+1)
	}
	return most
}

// gradientsOf returns how many gradients are held at most while the slots of a node are computed and folded, in order.
func gradientsOf(n schedule.Node) int {
	if n.Leaf() {
		return 1
	}
	left, right := n.Children()
	return max(gradientsOf(left), 1+gradientsOf(right))
}

// tracesAtOnce returns how many slots have been run forward through a span and not yet backward, at most.
func tracesAtOnce(actions []schedule.Action, span int) int {
	now, most := 0, 0
	for _, a := range actions {
		switch {
		case a.Span != span:
		case a.Kind == schedule.Forward:
			now++
			most = max(most, now)
		case a.Kind != schedule.BackwardInput:
			now--
		}
	}
	return most
}

// lose ends all stages, since the device is lost.
func (t *training) lose(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.runs {
		r.fail(err)
	}
}
