package driver

import (
	"errors"
	"runtime"
	"sync"
	"time"
)

// ErrClosed is the error of work that is sent to a closed context.
var ErrClosed = errors.New("the device is closed")

// queued bounds the calls that wait for the goroutine of a device.
const queued = 256

// Context is the goroutine of a device. Its methods may be called from any goroutine, except from within
// a function that it runs.
type Context struct {
	calls chan call
	done  chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held for reading while a call is sent
	closed bool

	err   error // of a function of Send; the goroutine's own
	close error // of the device's Close
}

// call is a function to run, and where its error goes, or nil.
type call struct {
	run    func(Device) error
	answer chan<- error
}

// Start opens a device on a goroutine of its own. The error is a *TooOldError or *NoDeviceError if the
// driver or the device do not fit.
func Start(d Driver, number int) (*Context, error) {
	if err := Check(d, number); err != nil {
		return nil, err
	}
	c := &Context{calls: make(chan call, queued), done: make(chan struct{})}
	opened := make(chan error)
	go func() {
		defer close(c.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its context with it
		device, err := d.Open(number)
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

// serve runs calls until there are no more.
func (c *Context) serve(d Device) {
	for call := range c.calls {
		err := c.err
		if err == nil {
			err = call.run(d)
		}
		switch {
		case call.answer != nil:
			call.answer <- err
		case c.err == nil:
			c.err = err
		}
	}
	c.close = d.Close()
}

// send puts a call into the queue.
func (c *Context) send(k call) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	c.calls <- k
	return true
}

// Do runs f on the goroutine, behind everything that was sent before, and returns its error. After a
// function of Send has failed, it returns that error and runs nothing.
func (c *Context) Do(f func(Device) error) error {
	answer := make(chan error, 1)
	if !c.send(call{f, answer}) {
		return ErrClosed
	}
	return <-answer
}

// Send is Do without waiting: the error stays, and every later call returns it.
func (c *Context) Send(f func(Device) error) {
	c.send(call{run: f})
}

// Close runs what has been sent, waits for the device and closes it. Calls after it fail with ErrClosed.
func (c *Context) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.calls)
	}
	c.mu.Unlock()
	<-c.done
	return c.close
}

// Polling begins without a pause, for the waits of a decode step, and then sleeps between polls.
const (
	pollsAwake = 2000
	pollPause  = 20 * time.Microsecond
)

// Wait waits for the work that has been put on a stream. It polls an event, which is made for the purpose
// if none is given. It is for the goroutine of the device.
func Wait(d Device, s Stream, e Event) error {
	if err := d.Record(e, s); err != nil {
		return err
	}
	return WaitFor(d, e)
}

// WaitFor waits for an event that has been recorded.
func WaitFor(d Device, e Event) error {
	for i := 0; ; i++ {
		done, err := d.Done(e)
		if done || err != nil {
			return err
		}
		if i >= pollsAwake {
			time.Sleep(pollPause)
		}
	}
}
