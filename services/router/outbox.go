package router

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// outboxLen is how many events may wait for a slow client.
const outboxLen = 16

// outbox sends the events of a call from its own goroutine, so that a client that stops
// reading can be disconnected: a Send that waits for flow control ends only with the call.
// One goroutine uses it.
type outbox[T any] struct {
	limit  time.Duration
	events chan T
	sent   chan error // the sender's result, sent once
	failed error
}

func newOutbox[T any](limit time.Duration, send func(T) error) *outbox[T] {
	o := &outbox[T]{limit: limit, events: make(chan T, outboxLen), sent: make(chan error, 1)}
	go func() { // ends with the call at the latest, because Send returns then
		for e := range o.events {
			if err := send(e); err != nil {
				o.sent <- err
				return
			}
		}
		o.sent <- nil
	}()
	return o
}

// send queues an event. It waits for a slow client up to the limit.
func (o *outbox[T]) send(e T) error {
	if o.failed != nil {
		return o.failed
	}
	limit := time.NewTimer(o.limit)
	defer limit.Stop()
	select {
	case o.events <- e:
	case o.failed = <-o.sent:
	case <-limit.C:
		o.failed = o.slow()
	}
	return o.failed
}

func (o *outbox[T]) slow() error {
	return fault.New(fault.DeadlineExceeded, "send answer: the client has read nothing for %v", o.limit)
}

// end waits until the queue is sent and returns the call's error.
func (o *outbox[T]) end(err error) error {
	close(o.events)
	if o.failed != nil {
		return err
	}
	limit := time.NewTimer(o.limit)
	defer limit.Stop()
	var failed error
	select {
	case failed = <-o.sent:
	case <-limit.C:
		failed = o.slow()
	}
	if err == nil {
		err = failed
	}
	return err
}
