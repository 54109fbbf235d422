package router

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// framesLen is the number of frames that may wait to be sent on a link.
const framesLen = 1024

// link is one of a pipeline's two streams, that to the chain or that to the sampler, with the frames that
// wait to be sent and the goroutines that send and receive. When the stream breaks, ctx ends and its
// cause says why.
type link[Req, Resp any] struct {
	who    string // for errors
	ctx    context.Context
	cancel context.CancelCauseFunc
	stream grpc.BidiStreamingClient[Req, Resp]
	queue  chan *Req
	ending chan struct{} // closed when this side is to be closed
	sender sync.WaitGroup
	reader sync.WaitGroup
}

// openLink opens a stream, sends its first frame and returns the link with the first answer. It gives up
// when ctx ends. The stream outlives ctx, so that it can be closed in an orderly way.
func openLink[Req, Resp any](
	ctx context.Context, who, addr string, open *Req,
	call func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Req, Resp], error),
) (*link[Req, Resp], *Resp, error) {
	l := &link[Req, Resp]{who: who, queue: make(chan *Req, framesLen), ending: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	limit := context.AfterFunc(ctx, func() { l.cancel(context.Cause(ctx)) })
	first, err := l.open(open, call)
	if !limit() && err == nil { // ctx has ended in the meantime
		err = context.Cause(ctx)
	}
	if err != nil {
		l.cancel(err)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, nil, fault.Wrap(fault.CodeOf(err), err, "open %s at %s", who, addr)
	}
	return l, first, nil
}

func (l *link[Req, Resp]) open(
	open *Req, call func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Req, Resp], error),
) (first *Resp, err error) {
	if l.stream, err = call(l.ctx); err != nil {
		return nil, rpc.FromStatus(err)
	}
	if err := l.stream.Send(open); err != nil && !errors.Is(err, io.EOF) { // Recv gives the reason of an EOF
		return nil, rpc.FromStatus(err)
	}
	first, err = l.stream.Recv()
	return first, rpc.FromStatus(err)
}

// serve sends what is queued and hands each frame that arrives to handle, until the stream breaks. Sending
// has a goroutine of its own, because Send blocks while the receiver takes nothing.
func (l *link[Req, Resp]) serve(handle func(*Resp) error) {
	l.sender.Go(func() {
		for {
			select {
			case r := <-l.queue:
				err := l.stream.Send(r)
				if err != nil && !errors.Is(err, io.EOF) { // the reader gets the reason of an EOF
					l.cancel(streamEnd(l.who, err))
					return
				}
			case <-l.ending: // only the sender may close its side
				_ = l.stream.CloseSend() // the reader sees whether the other side has ended
				return
			case <-l.ctx.Done():
				return
			}
		}
	})
	l.reader.Go(func() {
		for {
			resp, err := l.stream.Recv()
			if err != nil {
				l.cancel(streamEnd(l.who, err))
				return
			}
			if err := handle(resp); err != nil {
				l.cancel(err)
				return
			}
		}
	})
}

// send queues a frame. It never blocks: a queue that is full means that the other side takes no frames,
// which breaks the link.
func (l *link[Req, Resp]) send(r *Req) {
	select {
	case l.queue <- r:
	default:
		l.cancel(fault.New(fault.Unavailable, "send to %s: %d frames wait to be sent", l.who, framesLen))
	}
}

// broken returns why the stream has broken, or nil.
func (l *link[Req, Resp]) broken() error { return context.Cause(l.ctx) }

// stop ends the stream as a broken connection does, and waits for the goroutines: nothing that has
// arrived on it is handled after that.
func (l *link[Req, Resp]) stop() {
	l.cancel(errStopped)
	l.sender.Wait()
	l.reader.Wait()
}

// errStopped ends a link that is replaced by another one.
var errStopped = fault.New(fault.Canceled, "the stream was closed")

// close closes this side of a stream that is not broken and waits at most the given time until the other
// side has ended too, so that it keeps nothing. It is called once, after serve.
func (l *link[Req, Resp]) close(wait time.Duration) {
	if l.broken() == nil {
		close(l.ending)
		limit := time.AfterFunc(wait, func() { l.cancel(errStopped) })
		l.reader.Wait()
		limit.Stop()
	}
	l.stop()
}

// streamEnd returns the error for a stream that ended, since only the router may end it.
func streamEnd(who string, err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "read from %s: it closed the stream", who)
	}
	return fault.Wrap(fault.CodeOf(rpc.FromStatus(err)), rpc.FromStatus(err), "read from %s", who)
}
