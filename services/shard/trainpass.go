package shard

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// pass is the way of one slot through one span.
type pass struct{ slot, span int }

// forward runs one slot forward through one span.
func (s *stepRun) forward(p pass) error {
	var in model.Micro[float32]
	stage := s.spans[p.span].stage
	in.B, in.T = int(s.open.GetSlotSequences()), int(s.length())
	in.Scale, in.ZLoss, in.ForwardOnly = s.scale, s.open.GetZLoss(), s.step.GetForwardOnly()
	in.Dropout, in.Base = s.dropout(p.slot), s.step.GetBase()
	in.AsServed = s.open.GetObjective().GetGrpo() != nil
	var picks []*shardv1.Pick
	var compared answers
	if stage.First() || stage.Last() || s.open.GetIsolateDocuments() {
		m, err := s.microbatch(p)
		if err != nil {
			return err
		}
		in.B, in.T = int(m.GetSequences()), int(m.GetLength())
		for _, id := range m.GetIds() {
			in.IDs = append(in.IDs, int32(id))
		}
		in.Targets = m.GetTargets()
		for _, n := range m.GetDocuments() {
			in.Documents = append(in.Documents, int(n))
		}
		if picks = m.GetPicks(); stage.Last() {
			for _, pick := range picks {
				in.Picks = append(in.Picks, int(pick.GetRow()))
			}
			if compared, err = s.answersOf(m, &in); err != nil {
				return err
			}
			if compared != nil {
				in.Weigh = compared.weigh
			}
		}
	}
	if !stage.First() {
		begin := time.Now()
		a, err := s.prev.activation(s.ctx, s.at, p.slot, p.span)
		s.wait += time.Since(begin)
		if err != nil {
			return err
		}
		in.Hidden = a
		if !stage.Last() && !s.open.GetIsolateDocuments() { // the others get the shape from their microbatch
			in.B = len(a) / stage.Spec.Width / in.T
		}
	}
	tr, err := stage.TrainForward(in)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run slot %d of step %d", p.slot, s.step.GetStep())
	}
	if !stage.Last() {
		to := p.span
		if s.wraps() {
			to++
		}
		if err := s.next.send(s.at, p.slot, to, tr.Out, stage.Spec.Width); err != nil {
			return err
		}
	} else if len(picks) > 0 {
		if err := s.picked(p.slot, tr, picks); err != nil {
			return err
		}
	} else if err := s.loss(p.slot, tr, in.Targets, compared); err != nil {
		return err
	}
	if in.ForwardOnly {
		stage.Drop(tr)
		return nil
	}
	s.traces[p] = tr
	return nil
}

// dropout returns what a slot drops in this step.
func (s *stepRun) dropout(slot int) model.Dropout {
	out := s.dropoutRates()
	out.Key = model.DropoutKey(s.open.GetSeed(), s.step.GetStep(), uint64(slot))
	return out
}

// dropoutRates returns the rates of the run.
func (r *trainRun) dropoutRates() model.Dropout {
	d := r.open.GetDropout()
	out := model.Dropout{Attention: d.GetAttention(), Residual: d.GetResidual(), Embedding: d.GetEmbedding()}
	if r.adapter != nil {
		out.Adapter = r.adapter.Dropout
	}
	return out
}

// microbatch waits for the trainer's data of a slot. The first span that needs it reads it; with isolated
// documents the later ones do, too.
func (s *stepRun) microbatch(p pass) (*shardv1.Microbatch, error) {
	slot := p.slot
	if m := s.micro[slot]; m != nil {
		if p.span == len(s.spans)-1 {
			delete(s.micro, slot)
		}
		return m, nil
	}
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
		m.GetLength() != s.length() {
		return nil, fault.Field(
			"microbatch", "%d sequences of %d tokens, the run has %d of %d", m.GetSequences(), m.GetLength(),
			s.open.GetSlotSequences(), s.length(),
		)
	}
	if err := s.checkPicks(m.GetPicks()); err != nil {
		return nil, err
	}
	if (len(m.GetDocuments()) > 0) != s.open.GetIsolateDocuments() {
		return nil, fault.Field("microbatch.documents", "%d documents, isolate_documents is %v", len(m.GetDocuments()),
			s.open.GetIsolateDocuments())
	}
	if s.open.GetIsolateDocuments() && p.span < len(s.spans)-1 {
		s.micro[slot] = m
	}
	return m, nil
}

// loss reports a slot's loss: that of its answers, or that of its targets, summed in row order.
func (s *stepRun) loss(slot int, tr *model.Trace[float32], targets []int32, compared answers) error {
	out := &shardv1.Loss{Step: s.step.GetStep(), Slot: uint32(slot)}
	if compared != nil {
		compared.report(out)
	} else {
		for _, l := range tr.Loss {
			out.Sum += l
		}
		out.Targets = uint64(countTargets(targets))
	}
	return s.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Loss{Loss: out}})
}

// outputGradient waits for the gradient of a span's output. The last span has none.
func (s *stepRun) outputGradient(p pass) ([]float32, error) {
	if s.spans[p.span].stage.Last() {
		return nil, nil
	}
	begin := time.Now()
	dOut, err := s.next.gradient(s.ctx, s.at, p.slot, p.span)
	s.wait += time.Since(begin)
	return dOut, err
}

// sendInputGradient sends the gradient of a span's input to the span before it. The first span has
// none.
func (s *stepRun) sendInputGradient(p pass, dIn []float32) error {
	stage := s.spans[p.span].stage
	if stage.First() {
		return nil
	}
	to := p.span
	if s.open.GetStage() == 0 {
		to--
	}
	return s.prev.send(s.at, p.slot, to, dIn, stage.Spec.Width)
}

// backward runs one slot backward through one span and keeps its gradient.
func (s *stepRun) backward(p pass) error {
	dOut, err := s.outputGradient(p)
	if err != nil {
		return err
	}
	span := s.spans[p.span]
	g := span.takeGradient()
	e := span.reducer.early(s.grads[p.span], p.slot, g)
	dIn, err := span.stage.TrainBackwardInParts(s.traces[p], dOut, g.params, e.final)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run slot %d of step %d backward", p.slot, s.step.GetStep())
	}
	delete(s.traces, p)
	if err := s.sendInputGradient(p, dIn); err != nil {
		return err
	}
	return s.keep(p, g, e)
}

// keep folds the gradient of a slot, unless that was done while it was computed.
func (s *stepRun) keep(p pass, g *gradient, e *early) error {
	if e != nil {
		return e.finish()
	}
	return s.spans[p.span].reducer.keep(s.grads[p.span], p.slot, g)
}

// backwardInput computes the gradient of a span's input, which the previous span waits for.
func (s *stepRun) backwardInput(p pass) error {
	dOut, err := s.outputGradient(p)
	if err != nil {
		return err
	}
	dIn, err := s.spans[p.span].stage.TrainBackwardInput(s.traces[p], dOut)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run slot %d of step %d backward", p.slot, s.step.GetStep())
	}
	return s.sendInputGradient(p, dIn)
}

// backwardWeight computes the gradients of a span's weights after backwardInput, and keeps them.
func (s *stepRun) backwardWeight(p pass) error {
	span := s.spans[p.span]
	g := span.takeGradient()
	e := span.reducer.early(s.grads[p.span], p.slot, g)
	if err := span.stage.TrainBackwardWeightInParts(s.traces[p], g.params, e.final); err != nil {
		return fault.Wrap(fault.Invalid, err, "compute the gradients of slot %d of step %d", p.slot, s.step.GetStep())
	}
	delete(s.traces, p)
	return s.keep(p, g, e)
}
