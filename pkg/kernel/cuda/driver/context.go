package driver

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed is the error of work that is sent to a closed context.
var ErrClosed = errors.New("the device is closed")

// queued bounds the calls that wait for the goroutine of a device.
const queued = 256

// DefaultLimit is how long a device may take for one piece of work unless Start is told otherwise. The longest one, a
// chunk of a prompt through all layers, takes seconds.
const DefaultLimit = time.Minute

// Context is the goroutine of a device. Its methods may be called from any goroutine, except from within
// a function that it runs.
//
// A device is lost when a function of Send fails, when a function of Do fails with an error that no call succeeds
// after (Sticky), or when it hangs: an event is not reached within the limit, or a call of the driver does not return.
// Every call after that fails with the same *LostError and runs nothing. Only a new process gets a device that works.
type Context struct {
	calls chan call
	done  chan struct{} // closed when the goroutine has ended
	limit time.Duration

	mu     sync.RWMutex // held for reading while a call is sent
	closed bool

	failing sync.Once
	err     error         // a *LostError; set before lost is closed
	lost    chan struct{} // closed when the device is lost
	stuck   chan struct{} // closed when the goroutine does not return from a call; lost is closed then
	hanging sync.Once

	running  atomic.Pointer[run] // the call that runs; nil for none
	progress func() uint64       // of the device; nil if it does not count
	close    error               // of the device's Close
}

// call is a function to run, and where its error goes, or nil.
type call struct {
	run    func(Device) error
	answer chan<- error
	limit  time.Duration
}

// run is a call that runs.
type run struct {
	start time.Time
	limit time.Duration
	seen  atomic.Uint64 // progress when it was last looked at
}

// Start opens a device on a goroutine of its own. A call may take up to limit; 0 means DefaultLimit. The error is a
// *TooOldError or *NoDeviceError if the driver or the device do not fit.
func Start(d Driver, number int, limit time.Duration) (*Context, error) {
	if err := Check(d, number); err != nil {
		return nil, err
	}
	if limit == 0 {
		limit = DefaultLimit
	}
	c := &Context{calls: make(chan call, queued), done: make(chan struct{}), limit: limit, lost: make(chan struct{}),
		stuck: make(chan struct{})}
	opened := make(chan error)
	go func() {
		defer close(c.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its context with it
		device, err := d.Open(number)
		if counter, ok := device.(Counter); ok {
			c.progress = counter.Progress
		}
		opened <- err
		if err == nil {
			c.serve(device)
		}
	}()
	if err := <-opened; err != nil {
		<-c.done
		return nil, err
	}
	return c, nil
}

// Lost returns a channel that is closed when the device is lost.
func (c *Context) Lost() <-chan struct{} { return c.lost }

// Err returns why the device is lost, a *LostError, or nil.
func (c *Context) Err() error {
	select {
	case <-c.lost:
		return c.err
	default:
		return nil
	}
}

// Limit returns how long a wait may take.
func (c *Context) Limit() time.Duration { return c.limit }

// fail makes the device a lost one.
func (c *Context) fail(err error) {
	c.failing.Do(func() {
		c.err = &LostError{Err: err}
		close(c.lost)
	})
}

// serve runs calls until there are no more.
func (c *Context) serve(d Device) {
	for call := range c.calls {
		err := c.Err()
		if err == nil {
			c.begin(call.limit)
			err = call.run(d)
			c.running.Store(nil)
			hung := (*HungError)(nil)
			if err != nil && (call.answer == nil || Sticky(err) || errors.As(err, &hung)) {
				c.fail(err)
				err = c.err
			}
		}
		if call.answer != nil {
			call.answer <- err
		}
	}
	// A device that hangs does not close either. The process has to end.
	if hung := (*HungError)(nil); errors.As(c.Err(), &hung) {
		c.close = c.err
		return
	}
	c.begin(c.limit)
	c.close = d.Close()
}

// begin notes that a call runs.
func (c *Context) begin(limit time.Duration) {
	r := &run{start: time.Now(), limit: limit}
	if c.progress != nil {
		r.seen.Store(c.progress())
	}
	c.running.Store(r)
}

// look makes the device a lost one if the call that runs does not return, and returns when to look again.
func (c *Context) look() time.Duration {
	r := c.running.Load()
	if r == nil {
		return c.limit
	}
	if c.progress != nil {
		if now := c.progress(); r.seen.Swap(now) != now {
			return r.limit
		}
	}
	// A wait within the call notices first, and returns.
	if left := 2*r.limit - time.Since(r.start); left > 0 {
		return left
	}
	c.fail(&HungError{r.limit})
	c.hanging.Do(func() { close(c.stuck) })
	return c.limit
}

// send puts a call into the queue.
func (c *Context) send(k call) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return ErrClosed
	}
	select {
	case c.calls <- k:
		return nil
	default:
	}
	timer := time.NewTimer(c.limit)
	defer timer.Stop()
	for {
		select {
		case c.calls <- k:
			return nil
		case <-c.stuck:
			return c.err
		case <-timer.C:
			timer.Reset(c.look())
		}
	}
}

// Do runs f on the goroutine, behind everything that was sent before, and returns its error.
func (c *Context) Do(f func(Device) error) error { return c.DoWithin(c.limit, f) }

// DoWithin is Do for a function that may take up to limit. If the goroutine hangs in f, DoWithin returns and f may
// still run: what it writes must not be used again.
func (c *Context) DoWithin(limit time.Duration, f func(Device) error) error {
	answer := make(chan error, 1)
	if err := c.send(call{f, answer, limit}); err != nil {
		return err
	}
	timer := time.NewTimer(c.limit)
	defer timer.Stop()
	for {
		select {
		case err := <-answer:
			return err
		case <-c.stuck:
			return c.err
		case <-timer.C:
			timer.Reset(c.look())
		}
	}
}

// Send is Do without waiting: if f fails, the device is lost, and every later call says so.
func (c *Context) Send(f func(Device) error) {
	_ = c.send(call{run: f, limit: c.limit}) // a later call returns the error
}

// TrySend is Send, except that it does nothing if the queue is full. It reports whether f is in the queue.
func (c *Context) TrySend(f func(Device) error) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	select {
	case c.calls <- call{run: f, limit: c.limit}:
		return true
	default:
		return false
	}
}

// Close runs what has been sent, waits for the device and closes it. Calls after it fail with ErrClosed.
func (c *Context) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.calls)
	}
	c.mu.Unlock()
	timer := time.NewTimer(c.limit)
	defer timer.Stop()
	for {
		select {
		case <-c.done:
			return c.close
		case <-c.stuck:
			return c.err // the goroutine stays in the driver
		case <-timer.C:
			timer.Reset(c.look())
		}
	}
}

// Counter is implemented by devices that count what they have done. A device whose count grows does not hang, however
// slow it is.
type Counter interface {
	// Progress may be called from any goroutine.
	Progress() uint64
}

// Polling begins without a pause, for the waits of a decode step. Then it sleeps between polls, longer the longer the
// wait.
const (
	pollsAwake = 2000
	pollPause  = 20 * time.Microsecond
	pollShare  = 64 // of the time that has been waited
	pollMost   = time.Millisecond
)

// Wait waits for the work that has been put on a stream. It polls the given event. The error is a *HungError if the
// work is not done within limit. It is for the goroutine of the device.
func Wait(d Device, s Stream, e Event, limit time.Duration) error {
	if err := d.Record(e, s); err != nil {
		return err
	}
	return WaitFor(d, e, limit)
}

// WaitFor waits for an event that has been recorded.
func WaitFor(d Device, e Event, limit time.Duration) error {
	counter, counts := d.(Counter)
	var seen uint64
	var start time.Time
	for i := 0; ; i++ {
		done, err := d.Done(e)
		if done || err != nil {
			return err
		}
		if i < pollsAwake {
			continue
		}
		now := time.Now()
		if start.IsZero() {
			start = now
		}
		if counts && counter.Progress() != seen {
			seen, start = counter.Progress(), now
		}
		if now.Sub(start) > limit {
			return &HungError{limit}
		}
		time.Sleep(min(pollPause+now.Sub(start)/pollShare, pollMost))
	}
}
