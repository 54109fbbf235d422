package gradbus

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Publisher stores events, as Bus does.
type Publisher interface {
	// Publish returns when the event is stored.
	Publish(ctx context.Context, e Event) error
}

// OutboxConfig holds the settings of an Outbox. Zero values stand for the defaults.
type OutboxConfig struct {
	// Window is the number of bytes that may be in flight: given to the bus and not yet acked; 4 MiB when 0.
	Window int64
	// Resend is the time after which the events of a step that is not committed are published again, in case
	// the bus has lost them. It doubles with every repetition. 5 s when 0.
	Resend time.Duration
	// Refused is how long a bus may go on refusing an event because it is full; 1 min when 0.
	Refused time.Duration
}

const (
	defaultWindow  = 4 << 20
	defaultResend  = 5 * time.Second
	defaultRefused = time.Minute
	refusedFirst   = 10 * time.Millisecond // pause after the first refusal; doubled for every further one
	refusedMost    = time.Second
)

// Outbox publishes the events of a stage in the background. It bounds the bytes in flight, publishes an
// event that the bus refused again under the same key, and keeps every event until its step is committed, so
// that a bus that has lost what it stored gets it again.
//
// Publish and Commit are for one goroutine at a time.
type Outbox struct {
	bus    Publisher
	config OutboxConfig
	window *semaphore.Weighted
	fail   func(error)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	kept  []Event // of steps that are not committed, in the order of Publish
	timer *time.Timer
	pause time.Duration
	bytes uint64
}

// NewOutbox returns an outbox that works until ctx ends or Close is called. An event that cannot be published
// is reported to fail, which must not block.
func NewOutbox(ctx context.Context, bus Publisher, c OutboxConfig, fail func(error)) *Outbox {
	if c.Window == 0 {
		c.Window = defaultWindow
	}
	if c.Resend == 0 {
		c.Resend = defaultResend
	}
	if c.Refused == 0 {
		c.Refused = defaultRefused
	}
	o := &Outbox{bus: bus, config: c, window: semaphore.NewWeighted(c.Window), fail: fail}
	o.ctx, o.cancel = context.WithCancel(ctx)
	o.timer = time.NewTimer(c.Resend)
	o.timer.Stop()
	o.wg.Go(o.resend)
	return o
}

// Publish hands over an event. It waits while the window is full. The event must not change afterwards.
func (o *Outbox) Publish(e Event) error {
	if err := Check(e); err != nil {
		return err
	}
	weight := min(int64(len(e.Data))+1, o.config.Window)
	if err := o.window.Acquire(o.ctx, weight); err != nil {
		return fault.Wrap(fault.CodeOf(context.Cause(o.ctx)), context.Cause(o.ctx), "publish %v", e.Key)
	}
	o.mu.Lock()
	o.kept = append(o.kept, e)
	o.bytes += uint64(len(e.Data))
	o.pause = o.config.Resend
	o.timer.Reset(o.pause)
	o.mu.Unlock()
	o.wg.Go(func() {
		defer o.window.Release(weight)
		if err := o.store(e); err != nil && o.ctx.Err() == nil {
			o.fail(err)
		}
	})
	return nil
}

// store publishes an event. While the bus is full it tries again, since earlier steps may be purged.
func (o *Outbox) store(e Event) error {
	deadline := time.Now().Add(o.config.Refused)
	for pause := refusedFirst; ; pause = min(2*pause, refusedMost) {
		err := o.bus.Publish(o.ctx, e)
		if fault.CodeOf(err) != fault.Exhausted || time.Now().After(deadline) {
			return err
		}
		if !o.keeps(e.Key) {
			return nil // nobody needs it any more
		}
		select {
		case <-time.After(pause):
		case <-o.ctx.Done():
			return err
		}
	}
}

// resend publishes what is kept again whenever the timer fires. An error is not reported: the first attempt
// has succeeded or reported its own, and the next one follows.
func (o *Outbox) resend() {
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-o.timer.C:
		}
		o.mu.Lock()
		events := append([]Event(nil), o.kept...)
		if len(events) > 0 {
			o.pause *= 2
			o.timer.Reset(o.pause)
		}
		o.mu.Unlock()
		for _, e := range events {
			if o.ctx.Err() != nil || !o.keeps(e.Key) {
				continue
			}
			if o.bus.Publish(o.ctx, e) == nil {
				o.mu.Lock()
				o.bytes += uint64(len(e.Data))
				o.mu.Unlock()
			}
		}
	}
}

// keeps reports whether the step of an event is not committed.
func (o *Outbox) keeps(k Key) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.kept {
		if e.Key == k {
			return true
		}
	}
	return false
}

// Commit forgets the events of steps up to the given one: every reader has used them.
func (o *Outbox) Commit(step uint64) { o.forget(func(k Key) bool { return k.Step <= step }) }

// Abort forgets the events of the attempts at a step up to the given one: no reader will use them.
func (o *Outbox) Abort(step uint64, attempt uint32) {
	o.forget(func(k Key) bool { return k.Step == step && k.Attempt <= attempt })
}

func (o *Outbox) forget(which func(Key) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := o.kept[:0]
	for _, e := range o.kept {
		if !which(e.Key) {
			rest = append(rest, e)
		}
	}
	clear(o.kept[len(rest):])
	o.kept = rest
	if len(rest) == 0 {
		o.timer.Stop()
	}
}

// TakeBytes returns the number of bytes handed to the bus since the last call, repetitions included.
func (o *Outbox) TakeBytes() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.bytes
	o.bytes = 0
	return n
}

// Close drops what is not published and waits for the goroutines.
func (o *Outbox) Close() {
	o.cancel()
	o.wg.Wait()
}
