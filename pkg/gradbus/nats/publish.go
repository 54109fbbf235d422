package nats

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

const (
	ackWait    = 5 * time.Second
	tries      = 6
	pauseFirst = 20 * time.Millisecond
	pauseMax   = 2 * time.Second
	mendSpread = 250 * time.Millisecond // over which publishers that find damage look again
)

// Publish stores an event and waits for the ack. It retries after errors that may pass: a lost
// ack, a full ingest queue, a stream that is gone or damaged.
func (b *Bus) Publish(ctx context.Context, e gradbus.Event) error {
	if err := gradbus.Check(e); err != nil {
		return err
	}
	weight := int64(len(e.Data)) + 1
	if err := b.flight.Acquire(ctx, weight); err != nil {
		return b.wrap(ctx, err, "publish %v", e.Key)
	}
	defer b.flight.Release(weight)
	pause := pauseFirst
	for try := 1; ; try++ {
		err := b.store(ctx, e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || b.ctx.Err() != nil || try == tries || refused(err) {
			return b.wrap(ctx, err, "publish %v", e.Key)
		}
		wait(ctx, jitter(pause))
		pause = min(2*pause, pauseMax)
	}
}

// store makes one attempt to store an event.
func (b *Bus) store(ctx context.Context, e gradbus.Event) error {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	if err := b.stream(ctx, e.Key.Run); err != nil {
		return err
	}
	_, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: subject(e.Key), Data: e.Data}, jetstream.WithRetryAttempts(0))
	if err == nil {
		return nil
	}
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		b.forget(e.Key.Run) // the stream was lost: the next attempt creates another
	}
	if !refused(err) {
		return err
	}
	switch at, _ := b.find(ctx, e.Key); at {
	case whole:
		return nil // the limit was that of one message for each key
	case damaged:
		return b.discard(ctx, e.Key)
	}
	return err
}

// condition is what the stream has of an event.
type condition int

const (
	missing condition = iota
	whole
	damaged // it is listed, but the server cannot read it
)

// find looks for an event in the stream. The stream is nil if it is not there.
func (b *Bus) find(ctx context.Context, k gradbus.Key) (condition, jetstream.Stream) {
	stream, err := b.js.Stream(ctx, streamName(k.Run))
	if err != nil {
		return missing, nil
	}
	name := subject(k)
	if _, err = stream.GetLastMsgForSubject(ctx, name); err == nil {
		return whole, stream
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return missing, stream
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(name))
	if err != nil || info.State.Subjects[name] == 0 {
		return missing, stream
	}
	return damaged, stream
}

// discard empties the stream of a run whose store has damaged an event. The server hands such an event to nobody, and
// it refuses the event when it is published again. All publishers still have what readers wait for, and publish it
// again. The stream is not deleted: the server would remove its folder while another publisher creates it anew.
//
// Others find damage at the same time: what one of them has published since it has emptied the stream must not be
// removed by the next one. So each looks once more, after a random pause, and empties the stream only if its event is
// damaged still. (A purge up to a sequence number would leave no gap between the two, but it reads the damaged block,
// and a server that cannot read it takes no message of that stream any more.)
func (b *Bus) discard(ctx context.Context, k gradbus.Key) error {
	if err := b.mending.Acquire(ctx, 1); err != nil {
		return err
	}
	defer b.mending.Release(1)
	wait(ctx, rand.N(mendSpread))
	if at, stream := b.find(ctx, k); at == damaged {
		b.config.Log.Warn("empty the stream of a run: the store of the NATS server has damaged an event", "event", k)
		if err := stream.Purge(ctx); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
	}
	return fault.New(fault.Unavailable, "the store of the NATS server has damaged an event, and its stream is emptied")
}

// jitter returns a random pause in [d/2, 3d/2).
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// wait sleeps unless ctx ends first.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
