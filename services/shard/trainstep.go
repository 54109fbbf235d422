package shard

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// stepRun is one optimizer step, or one evaluation, on this stage.
type stepRun struct {
	*trainRun
	step   *shardv1.Step
	scale  float64
	traces map[int]*model.Trace[float32]
	grads  map[schedule.Node]*gradient // folded into as few nodes as possible
	wait   time.Duration
}

// runStep runs the stage's schedule for the step's slots.
func (r *trainRun) runStep(step *shardv1.Step) error {
	if err := r.checkStep(step); err != nil {
		return err
	}
	start := time.Now()
	s := &stepRun{
		trainRun: r, step: step, scale: 1 / float64(step.GetTargets()), traces: map[int]*model.Trace[float32]{},
		grads: map[schedule.Node]*gradient{},
	}
	actions, err := schedule.New(
		r.open.GetSchedule(), int(r.open.GetStage()), int(r.open.GetStages()), len(step.GetSlots()),
	)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "open.schedule")
	}
	for _, a := range actions {
		slot := int(step.GetSlots()[a.Micro])
		switch {
		case a.Kind == schedule.Forward:
			err = s.forward(slot)
		case !step.GetForwardOnly():
			err = s.backward(slot)
		}
		if err != nil {
			return err
		}
	}
	if step.GetForwardOnly() {
		return nil
	}
	norms, wait, err := r.reducer.fold(step.GetStep(), s.grads)
	if err != nil {
		return err
	}
	s.wait += wait
	return r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Folded{Folded: &shardv1.Folded{
		Step: step.GetStep(), Norms: norms, ComputeUs: uint64(
			(time.Since(start) - s.wait).Microseconds(),
		), WaitUs: uint64(s.wait.Microseconds()),
	}}})
}

func (r *trainRun) checkStep(step *shardv1.Step) error {
	if n := len(step.GetSlots()); n == 0 || n > maxSlots || step.GetTargets() == 0 {
		return fault.Field("step.slots", "%d slots with %d targets", n, step.GetTargets())
	}
	for i, slot := range step.GetSlots() {
		if i > 0 && slot != step.GetSlots()[i-1]+1 {
			return fault.Field("step.slots", "%v are not consecutive", step.GetSlots())
		}
	}
	if step.GetForwardOnly() {
		return nil
	}
	lo, hi := schedule.Slots(int(r.open.GetSlots()), int(r.open.GetReplica()), int(r.open.GetReplicas()))
	if int(step.GetSlots()[0]) != lo || len(step.GetSlots()) != hi-lo {
		return fault.Field("step.slots", "%v are not the slots %[3]d to %[4]d of replica %[2]d",
			step.GetSlots(), r.open.GetReplica(), lo, hi-1)
	}
	return nil
}

// forward runs one slot forward.
func (s *stepRun) forward(slot int) error {
	var in model.Micro[float32]
	in.B, in.T = int(s.open.GetSlotSequences()), int(s.open.GetSequenceLen())
	in.Scale, in.ForwardOnly = s.scale, s.step.GetForwardOnly()
	if s.stage.First() || s.stage.Last() {
		m, err := s.microbatch(slot)
		if err != nil {
			return err
		}
		in.B, in.T = int(m.GetSequences()), int(m.GetLength())
		for _, id := range m.GetIds() {
			in.IDs = append(in.IDs, int32(id))
		}
		in.Targets = m.GetTargets()
	}
	if s.prev != nil {
		begin := time.Now()
		a, err := s.prev.activation(s.ctx, s.step.GetStep(), slot)
		s.wait += time.Since(begin)
		if err != nil {
			return err
		}
		in.Hidden = a
		if !s.stage.Last() { // the first and the last stage get the shape from their microbatch
			in.B = len(a) / s.stage.Spec.Width / in.T
		}
	}
	tr, err := s.stage.TrainForward(in)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run slot %d of step %d", slot, s.step.GetStep())
	}
	if s.next != nil {
		if err := s.next.send(s.step.GetStep(), slot, tr.Out, s.stage.Spec.Width); err != nil {
			return err
		}
	} else if err := s.loss(slot, tr, in.Targets); err != nil {
		return err
	}
	if in.ForwardOnly {
		s.stage.Drop(tr)
		return nil
	}
	s.traces[slot] = tr
	return nil
}

// microbatch waits for the trainer's data of a slot.
func (s *stepRun) microbatch(slot int) (*shardv1.Microbatch, error) {
	begin := time.Now()
	f, err := s.frame()
	s.wait += time.Since(begin)
	if err != nil {
		return nil, err
	}
	m := f.GetMicrobatch()
	if m == nil || m.GetStep() != s.step.GetStep() || int(m.GetSlot()) != slot {
		return nil, fault.Field("microbatch", "want slot %d of step %d, got %v", slot, s.step.GetStep(), f.GetFrame())
	}
	if m.GetSequences() == 0 || m.GetSequences() > s.open.GetSlotSequences() ||
		m.GetLength() != s.open.GetSequenceLen() {
		return nil, fault.Field(
			"microbatch", "%d sequences of %d tokens, the run has %d of %d", m.GetSequences(), m.GetLength(),
			s.open.GetSlotSequences(), s.open.GetSequenceLen(),
		)
	}
	return m, nil
}

// loss reports a slot's loss, summed in row order.
func (s *stepRun) loss(slot int, tr *model.Trace[float32], targets []int32) error {
	out := &shardv1.Loss{Step: s.step.GetStep(), Slot: uint32(slot)}
	for i, l := range tr.Loss {
		out.Sum += l
		if targets[i] >= 0 {
			out.Targets++
		}
	}
	return s.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Loss{Loss: out}})
}

// backward runs one slot backward and keeps its gradient.
func (s *stepRun) backward(slot int) error {
	var dOut []float32
	if s.next != nil {
		begin := time.Now()
		var err error
		dOut, err = s.next.gradient(s.ctx, s.step.GetStep(), slot)
		s.wait += time.Since(begin)
		if err != nil {
			return err
		}
	}
	g := s.takeGradient()
	dIn, err := s.stage.TrainBackward(s.traces[slot], dOut, g.params)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run slot %d of step %d backward", slot, s.step.GetStep())
	}
	delete(s.traces, slot)
	s.reducer.keep(s.grads, slot, g)
	if s.prev != nil {
		return s.prev.send(s.step.GetStep(), slot, dIn, s.stage.Spec.Width)
	}
	return nil
}
