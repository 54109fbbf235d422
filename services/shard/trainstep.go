package shard

import (
	"context"
	"errors"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// stepRun is one optimizer step, or one evaluation, on this stage.
type stepRun struct {
	*trainRun
	ctx    context.Context // of the attempt
	step   *shardv1.Step
	at     attempt
	scale  float64
	traces map[pass]*model.Trace[float32]
	grads  []map[schedule.Node]*gradient // by span; folded into as few nodes as possible
	micro  map[int]*shardv1.Microbatch   // by slot, while another span needs it
	wait   time.Duration                 // for neighbours, the trainer's data and other replicas
}

// runStep makes an attempt at a step. An attempt that is aborted, meets a gradient that must not be used or
// loses the link to another replica is no error.
func (r *trainRun) runStep(step *shardv1.Step) error {
	at := attempt{step.GetStep(), step.GetAttempt()}
	if r.halted {
		return fault.New(fault.FailedPrecondition, "begin attempt %d at step %d: the one before is not aborted", at.n,
			at.step)
	}
	if !at.after(r.aborted) { // nobody would ever say that it has ended
		return fault.New(fault.FailedPrecondition, "begin attempt %d at step %d: it has been aborted", at.n, at.step)
	}
	ctx, cancel := r.fence.begin(r.ctx, at)
	defer cancel(nil)
	err := r.try(ctx, cancel, at, step)
	r.progress.end()
	r.direct.finish()
	var bad *rejection
	var torn *linkError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad), r.fence.isOver(at) && r.ctx.Err() == nil:
		return r.halt(at, err)
	case errors.As(context.Cause(ctx), &torn) && r.ctx.Err() == nil:
		if err := r.halt(at, nil); err != nil {
			return err
		}
		return r.report(at, torn)
	}
	return err
}

// try runs the stage's schedule for the step's slots.
func (r *trainRun) try(ctx context.Context, cancel context.CancelCauseFunc, at attempt, step *shardv1.Step) error {
	if !step.GetForwardOnly() {
		if err := r.regroup(step); err != nil {
			return err
		}
	}
	if err := r.checkStep(step); err != nil {
		return err
	}
	if err := r.connect(); err != nil { // of the last stage to the first one; once
		return err
	}
	r.stepped = r.stepped || !step.GetForwardOnly()
	if err := r.prepare(step); err != nil {
		return err
	}
	for _, s := range r.spans {
		s.stage.RoundWeights()
	}
	start := time.Now()
	s := &stepRun{
		trainRun: r,
		ctx:      ctx,
		step:     step,
		at:       at,
		scale:    1 / float64(step.GetTargets()),
		traces:   map[pass]*model.Trace[float32]{},
		micro:    map[int]*shardv1.Microbatch{},
	}
	defer s.drop()
	var arrivals []*parcel
	for _, span := range r.spans {
		s.grads = append(s.grads, map[schedule.Node]*gradient{})
		if !step.GetForwardOnly() {
			span.reducer.begin(ctx, at, step.GetMaxNorm())
			arrivals = append(arrivals, span.reducer.arrivals()...)
		}
	}
	if !step.GetForwardOnly() {
		r.direct.begin(ctx, cancel, at, r.members, arrivals)
	}
	actions, err := schedule.Config{
		Name: r.open.GetSchedule(), Stages: int(r.open.GetStages()), Spans: len(r.spans), Micro: len(step.GetSlots()),
	}.Stage(int(r.open.GetStage()))
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "open")
	}
	r.progress.begin(at, len(actions))
	for _, a := range actions {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.run(a); err != nil {
			return err
		}
		r.progress.done.Add(1)
	}
	if step.GetForwardOnly() {
		return nil
	}
	took, idle := time.Since(start), s.wait
	norms, err := s.fold()
	if err != nil {
		return err
	}
	flushing := time.Now()
	if err := r.direct.flush(); err != nil {
		return err
	}
	s.wait += time.Since(flushing)
	out := &shardv1.Folded{
		Step: step.GetStep(), Attempt: at.n, Norms: norms, ComputeUs: uint64(
			(time.Since(start) - s.wait).Microseconds(),
		), WaitUs: uint64(s.wait.Microseconds()),
		ScheduleUs: uint64(took.Microseconds()), IdleUs: uint64(idle.Microseconds()),
	}
	t := s.traffic()
	out.BytesDirect = r.direct.takeBytes()
	out.BytesSent, out.BytesRead, out.BytesFull, out.ErrorSquares, out.NodeSquares = t.sent, t.read, t.full, t.errors,
		t.nodes
	return r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Folded{Folded: out}})
}

// traffic is what happened on the bus since the last report.
type traffic struct {
	sent, read, full uint64
	errors, nodes    float64 // sums of squares: what encoding has left out, and of what
}

func (r *trainRun) traffic() (t traffic) {
	t.sent, t.full, r.full = r.outbox.TakeBytes(), r.full, 0
	for _, m := range r.reducers() {
		t.errors, t.nodes, t.read = t.errors+m.errorSquares, t.nodes+m.nodeSquares, t.read+m.mail.read
		m.errorSquares, m.nodeSquares, m.mail.read = 0, 0, 0
	}
	return t
}

// reducers lists all reducers of the stage.
func (r *trainRun) reducers() []*reducer {
	var out []*reducer
	if r.diloco == nil {
		for _, s := range r.spans {
			out = append(out, s.reducer)
		}
		return out
	}
	for _, w := range r.diloco.workers {
		out = append(out, w.reducers...)
	}
	for _, f := range r.diloco.fragments {
		out = append(out, f.reducer)
	}
	return out
}

// run runs an action of the schedule.
func (s *stepRun) run(a schedule.Action) error {
	p := pass{slot: int(s.step.GetSlots()[a.Micro]), span: a.Span}
	if a.Kind == schedule.Forward {
		return s.forward(p)
	}
	if s.step.GetForwardOnly() {
		return nil
	}
	switch a.Kind {
	case schedule.BackwardInput:
		return s.backwardInput(p)
	case schedule.BackwardWeight:
		return s.backwardWeight(p)
	}
	return s.backward(p)
}

// fold sums the gradients of all spans over all replicas. Everything of this replica has been published when
// its last slot was kept, before anything is waited for.
func (s *stepRun) fold() (norms []*shardv1.Norm, err error) {
	for i, span := range s.spans {
		wait, err := span.reducer.gather(s.grads[i])
		if err != nil {
			return nil, err
		}
		s.wait += wait
	}
	for _, span := range s.spans {
		begin := time.Now()
		if err := span.reducer.foldTied(); err != nil {
			return nil, err
		}
		s.wait += time.Since(begin)
		n, err := span.reducer.norms()
		if err != nil {
			return nil, err
		}
		norms = append(norms, n...)
	}
	return norms, nil
}

// prepare puts the weights in place that a step is about: under DiLoCo those of its worker, or the common ones
// for an evaluation.
func (r *trainRun) prepare(step *shardv1.Step) error {
	if r.diloco == nil {
		return nil
	}
	if step.GetForwardOnly() {
		r.diloco.use(nil)
		return nil
	}
	w, err := r.diloco.find(step.GetWorker())
	if err == nil {
		r.diloco.use(w)
	}
	return err
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
	if n := step.GetLength(); n > r.open.GetSequenceLen() || n > 0 && !step.GetForwardOnly() {
		return fault.Field("step.length", "%d tokens; the run has %d", n, r.open.GetSequenceLen())
	}
	if step.GetForwardOnly() {
		return nil
	}
	if step.GetBase() {
		return fault.Field("step.base", "is for a step that is forward_only")
	}
	lo, hi := r.members.slots()
	if r.diloco != nil {
		w, err := r.diloco.find(step.GetWorker())
		if err != nil {
			return err
		}
		lo, hi = w.node.Lo, w.node.Hi
	}
	if int(step.GetSlots()[0]) != lo || len(step.GetSlots()) != hi-lo {
		return fault.Field("step.slots", "%v are not the slots %[3]d to %[4]d of replica %[2]d",
			step.GetSlots(), r.open.GetReplica(), lo, hi-1)
	}
	return nil
}
