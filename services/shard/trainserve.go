package shard

import (
	"context"
	"errors"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

func (r *trainRun) send(f *shardv1.TrainResponse) error {
	r.sending.Lock()
	defer r.sending.Unlock()
	return r.stream.Send(f)
}

// read queues the trainer's frames. It ends with the stream, and so with the handler.
func (r *trainRun) read() {
	for {
		f, err := r.stream.Recv()
		if errors.Is(err, io.EOF) {
			close(r.frames)
			return
		}
		if err != nil {
			r.fail(err)
			return
		}
		if f.GetChunk() != nil {
			select {
			case r.pieces <- struct{}{}:
			case <-r.ctx.Done():
				return
			}
		}
		if a := f.GetAbort(); a != nil {
			r.fence.raise(attempt{a.GetStep(), a.GetAttempt()})
			r.outbox.Abort(a.GetStep(), a.GetAttempt()) // whoever waits for room in it must not wait longer
		}
		select {
		case r.frames <- f:
		case <-r.ctx.Done():
			return
		}
	}
}

// frame waits for the trainer's next frame; nil after it has closed its side.
func (r *trainRun) frame() (*shardv1.TrainRequest, error) { return r.frameIn(r.ctx) }

func (r *trainRun) frameIn(ctx context.Context) (*shardv1.TrainRequest, error) {
	if f := r.unread; f != nil {
		r.unread = nil
		return f, nil
	}
	select {
	case f := <-r.frames:
		if f.GetChunk() != nil {
			<-r.pieces
		}
		return f, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// serve handles the trainer's frames until the trainer closes its side.
func (r *trainRun) serve() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = r.service.recovered("train layers "+r.layers(), p)
		}
	}()
	for {
		f, err := r.frame()
		if f == nil || err != nil {
			return err
		}
		switch frame := f.GetFrame().(type) {
		case *shardv1.TrainRequest_State:
			err = r.loadState(frame.State)
		case *shardv1.TrainRequest_Load:
			err = r.finishLoad(frame.Load)
		case *shardv1.TrainRequest_Step:
			err = r.runStep(frame.Step)
		case *shardv1.TrainRequest_Apply:
			err = r.apply(frame.Apply)
		case *shardv1.TrainRequest_Save:
			err = r.save(frame.Save)
		case *shardv1.TrainRequest_Abort:
			err = r.abort(frame.Abort)
		case *shardv1.TrainRequest_Microbatch:
			if !r.halted {
				err = fault.Field("frame", "%T is not allowed here", frame)
			}
		default:
			err = fault.Field("frame", "%T is not allowed here", frame)
		}
		var bad *rejection
		if errors.As(err, &bad) { // of a worker's differences, under DiLoCo
			err = r.halt(attempt{step: r.step}, err)
		}
		if err != nil {
			return err
		}
	}
}

// apply runs an optimizer step with the folded gradient.
func (r *trainRun) apply(a *shardv1.Apply) error {
	var w *worker
	if r.diloco != nil {
		var err error
		if w, err = r.diloco.find(a.GetWorker()); err != nil {
			return err
		}
		r.diloco.use(w)
	}
	for _, s := range r.spans {
		if a.GetSkip() && s.reducer.folded == nil { // the attempt has been aborted, perhaps
			continue
		}
		if s.reducer.folded == nil || a.GetStep() != s.reducer.step || a.GetAttempt() != s.reducer.attempt {
			return fault.New(fault.FailedPrecondition, "apply step %d, attempt %d: its gradient has not been folded",
				a.GetStep(), a.GetAttempt())
		}
	}
	if err := context.Cause(r.ctx); err != nil { // by another trainer, perhaps
		return err
	}
	if a.GetEpoch() < r.open.GetEpoch() {
		return fault.New(fault.Aborted, "apply step %d: epoch %d is below %d", a.GetStep(), a.GetEpoch(),
			r.open.GetEpoch())
	}
	for _, p := range r.state {
		if p.group.Trainable && !a.GetSkip() {
			r.changes(p.Data, p.m, p.v)
			r.optim.Step(r.scratch, p.group, p.Data, p.m, p.v, p.span.reducer.folded.tensor(p.Name),
				a.GetGradientScale(), a.GetLearningRate(), int(a.GetStep()))
		}
	}
	r.step = a.GetStep()
	for _, s := range r.spans {
		if a.GetSkip() {
			s.reducer.discard()
		} else {
			s.reducer.commit()
		}
		s.stage.Changed()
	}
	if w != nil {
		if err := r.diloco.stepped(w, r.step, a.GetAverageAll()); err != nil {
			return err
		}
	} else {
		r.purgeEvents(r.step)
	}
	t := r.traffic()
	out := &shardv1.Applied{Step: r.step, Digest: r.digest(), BytesSent: t.sent, BytesRead: t.read, BytesFull: t.full,
		ErrorSquares: t.errors, NodeSquares: t.nodes}
	return r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Applied{Applied: out}})
}

// digest hashes the stage's own weights in name order.
func (r *trainRun) digest() uint64 {
	d := wire.NewDigest()
	for _, p := range r.state {
		switch {
		case p.Tied():
		case p.common != nil:
			d.Add(p.Name, p.common)
		default:
			d.Add(p.Name, r.set().Host(p.Data))
		}
	}
	return d.Sum()
}
