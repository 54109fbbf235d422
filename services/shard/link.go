package shard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sync/semaphore"

	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

const (
	// directWindow is the number of bytes of gradients that may wait to be sent to a replica.
	directWindow = 4 << 20
	// closeLimit bounds the polite end of a Reduce call.
	closeLimit = 2 * time.Second
)

// link is a Reduce call to a replica. Its goroutine sends what is queued.
type link struct {
	queue  chan *eventv1.Gradient
	window *semaphore.Weighted
	stop   chan struct{} // closed to end the call politely
	cancel context.CancelFunc
	done   chan struct{}
	broken bool // or not needed any more; guarded by direct.mu
}

// dial starts a call to a member.
func (d *direct) dial(to share) *link {
	// The call outlives the run for the time that its polite end takes.
	ctx, cancel := context.WithCancel(context.WithoutCancel(d.run.ctx))
	l := &link{queue: make(chan *eventv1.Gradient, directWindow/chunkSize), window: semaphore.NewWeighted(directWindow),
		stop: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		err := d.feed(ctx, l, to)
		select {
		case <-l.stop: // nobody needs it any more
		default:
			d.lost(l, to.chain, err)
		}
	}()
	return l
}

// send sends an encoded node to a member, in the background. It waits while the window is full.
func (d *direct) send(m *mailbox, to int, part string, n schedule.Node, wireType string, data []byte) error {
	member := d.run.members.shares[to]
	l := d.links[member.chain]
	if l == nil {
		l = d.dial(member)
		d.links[member.chain] = l
	}
	for g := range m.events(part, n, wireType, data) {
		size := int64(len(g.GetData()))
		if err := l.window.Acquire(d.ctx, size); err != nil {
			return context.Cause(d.ctx)
		}
		g.Data = bytes.Clone(g.GetData()) // the gradient changes when it is folded
		select {
		case l.queue <- g:
			d.bytes += uint64(size)
		case <-d.ctx.Done():
			l.window.Release(size) // the first attempt at the next step may go on with this call
			return context.Cause(d.ctx)
		}
	}
	return nil
}

// feed makes the call and sends what is queued until the link is closed.
func (d *direct) feed(ctx context.Context, l *link, to share) error {
	conn, err := d.run.service.cfg.Dialer.Dial(to.address)
	if err != nil {
		return err
	}
	stream, err := shardv1.NewShardServiceClient(conn).Reduce(ctx)
	if err != nil {
		return rpc.FromStatus(err)
	}
	open := &shardv1.ReduceOpen{Chain: []byte(to.chain), Stage: d.run.open.GetStage(), From: d.run.open.GetChain()}
	err = stream.Send(&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Open{Open: open}})
	if err == nil || errors.Is(err, io.EOF) {
		_, err = stream.Recv()
	}
	if err != nil {
		return rpc.FromStatus(err)
	}
	for {
		select {
		case g := <-l.queue:
			err := stream.Send(&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Gradient{Gradient: g}})
			if errors.Is(err, io.EOF) {
				_, err = stream.Recv() // which has the reason
			}
			if err != nil {
				return rpc.FromStatus(err)
			}
			l.window.Release(int64(len(g.GetData())))
		case <-l.stop:
			if stream.CloseSend() == nil {
				_, _ = stream.Recv() // the other end has taken everything, or the call is broken
			}
			return nil
		}
	}
}

// closeLinks ends calls and waits for their goroutines: politely first, so that the other end does not take it for
// a fault.
func closeLinks(links []*link) {
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	for _, l := range links {
		close(l.stop)
	}
	for _, l := range links {
		select {
		case <-l.done:
		case <-limit.C:
			limit.Reset(0)
		}
		l.cancel()
		<-l.done
	}
}
