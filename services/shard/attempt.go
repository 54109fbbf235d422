package shard

import (
	"context"
	"errors"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// attempt identifies an attempt at a step. The trainer makes another one when it loses a replica or rejects its
// gradient.
type attempt struct {
	step uint64
	n    uint32
}

// after reports whether a begins after b.
func (a attempt) after(b attempt) bool { return a.step > b.step || a.step == b.step && a.n > b.n }

// errAborted is why an attempt ended that the trainer has aborted.
var errAborted = fault.New(fault.Aborted, "the trainer has aborted the attempt")

// fence knows which attempts are over. The goroutine that reads the trainer's frames raises it as soon as an
// abort arrives, while the handler may still wait for a neighbour or another replica: the handler's context
// ends then, and the goroutines that receive tensors drop those that nobody will take, so that no neighbour
// is held up.
type fence struct {
	mu      sync.Mutex
	over    attempt       // it and all before it are aborted; the zero value is none
	changed chan struct{} // closed and replaced when over grows
	at      attempt       // the attempt that ctx belongs to
	cancel  context.CancelCauseFunc
}

func newFence() *fence { return &fence{changed: make(chan struct{})} }

// begin returns the context of an attempt. It has ended already if the attempt is aborted.
func (f *fence) begin(ctx context.Context, a attempt) (context.Context, context.CancelCauseFunc) {
	own, cancel := context.WithCancelCause(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.cancel = a, cancel
	if !a.after(f.over) {
		cancel(errAborted)
	}
	return own, cancel
}

// raise ends an attempt and all before it.
func (f *fence) raise(a attempt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !a.after(f.over) {
		return
	}
	f.over = a
	close(f.changed)
	f.changed = make(chan struct{})
	if f.cancel != nil && !f.at.after(a) {
		f.cancel(errAborted)
	}
}

// look returns the last attempt that is over, and a channel that closes when that changes.
func (f *fence) look() (attempt, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over, f.changed
}

// isOver reports whether an attempt is aborted.
func (f *fence) isOver(a attempt) bool {
	over, _ := f.look()
	return !a.after(over)
}

// pass puts a tensor into the queue of its span, unless its attempt is over or ends before there is room.
func (f *fence) pass(ctx context.Context, t slotTensor, out chan<- slotTensor) error {
	for {
		over, changed := f.look()
		if !t.after(over) {
			return nil
		}
		select {
		case out <- t:
			return nil
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// rejection is a gradient that must not be used. It ends the attempt and not the stream.
type rejection struct {
	frame *shardv1.Rejected
	err   error
}

func (r *rejection) Error() string         { return r.err.Error() }
func (r *rejection) Unwrap() error         { return r.err }
func (r *rejection) FaultCode() fault.Code { return fault.CodeOf(r.err) }

// halt ends an attempt before its time, for an abort or a rejection. What is left of it is dropped, and the
// trainer's frames for it are ignored until its abort arrives.
func (r *trainRun) halt(a attempt, err error) error {
	r.halted = true
	for _, s := range r.spans {
		s.reducer.discard()
	}
	r.outbox.Abort(a.step, a.n)
	var bad *rejection
	if !errors.As(err, &bad) {
		return nil
	}
	bad.frame.Step, bad.frame.Attempt = a.step, a.n
	return r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Rejected{Rejected: bad.frame}})
}

// abort answers the abort of an attempt, of which nothing is left.
func (r *trainRun) abort(a *shardv1.Abort) error {
	at := attempt{a.GetStep(), a.GetAttempt()}
	if at.step != 0 && at.step <= r.step {
		return fault.New(fault.FailedPrecondition, "abort step %d: step %d has been applied", at.step, r.step)
	}
	if err := r.halt(at, nil); err != nil {
		return err
	}
	r.halted = false
	if at.after(r.aborted) {
		r.aborted = at
	}
	return r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Aborted{Aborted: &shardv1.Aborted{
		Step: at.step, Attempt: at.n}}})
}

// drop returns the memory of an attempt that has ended early.
func (s *stepRun) drop() {
	for p, tr := range s.traces {
		s.spans[p.span].stage.Drop(tr)
	}
	clear(s.traces)
	for i, nodes := range s.grads {
		for _, g := range nodes {
			s.spans[i].grads = append(s.spans[i].grads, g)
		}
		clear(nodes)
	}
}

// frame waits for the trainer's next frame; nil after it has closed its side. When an abort ends the context and is
// itself the next frame, either of them may be seen first. The handler finds the abort again and answers it.
func (s *stepRun) frame() (*shardv1.TrainRequest, error) {
	f, err := s.frameIn(s.ctx)
	if f.GetAbort() != nil && s.ctx.Err() != nil {
		s.unread = f
		return nil, context.Cause(s.ctx)
	}
	return f, err
}
