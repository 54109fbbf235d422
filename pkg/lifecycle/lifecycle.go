// Package lifecycle runs the parts of a process. It starts each part when the previous one is
// ready and stops them in reverse order; the first part that ends stops all others. A part is a
// function that runs until its context ends. cmd/lamina makes a list of parts and calls Run.
//
// The package is not a supervisor: it never restarts a part. A part that does not stop in time is
// abandoned and named in the error, so that the process can end.
package lifecycle

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Part is a piece of a process.
type Part struct {
	// Name is used in errors.
	Name string
	// Run does the work of the part until ctx ends. It calls ready once, when other parts may
	// rely on it.
	Run func(ctx context.Context, ready func()) error
	// StartLimit is how long the part may take to become ready. 0 means two minutes. NoLimit
	// is for parts that wait for other processes.
	StartLimit time.Duration
	// StopLimit is how long the part may take to return after ctx has ended; 0 means 30 s.
	StopLimit time.Duration
}

// NoLimit is the StartLimit of a part that may wait forever.
const NoLimit time.Duration = -1

// Default limits of parts.
const (
	startLimit = 2 * time.Minute
	stopLimit  = 30 * time.Second
)

// running is a started part.
type running struct {
	part   Part
	cancel context.CancelFunc
	done   chan struct{} // closed after err is set
	err    error
}

// Run starts the parts in order and calls ready when the last one is ready. When ctx ends or a
// part returns, it stops the parts in reverse order. It returns when all of them have returned or
// been abandoned, with the errors of all; after an orderly stop that is nil. A part that returns
// nil early stops the others without an error.
func Run(ctx context.Context, ready func(), parts ...Part) error {
	ended := make(chan struct{}) // closed when the first part ends
	var once sync.Once
	end := func() { once.Do(func() { close(ended) }) }
	var started []*running
	var errs []error
	for _, p := range parts {
		r, err := start(ctx, p, ended, end)
		started = append(started, r)
		if err != nil {
			errs = append(errs, err)
			end()
		}
		if over(ctx.Done()) || over(ended) {
			break
		}
	}
	if ready != nil && !over(ctx.Done()) && !over(ended) {
		ready()
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	for i := len(started) - 1; i >= 0; i-- {
		if err := started[i].stop(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func over(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start runs a part and waits until it is ready, any part ends, or ctx ends. It returns an error
// if the part takes longer than its StartLimit.
func start(ctx context.Context, p Part, ended <-chan struct{}, end func()) (*running, error) {
	// The part does not end with ctx: stop ends it, when its turn in the reverse order comes.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{part: p, cancel: cancel, done: make(chan struct{})}
	up := make(chan struct{})
	var once sync.Once
	go func() {
		defer end()
		defer close(r.done)
		err := p.Run(own, func() { once.Do(func() { close(up) }) })
		if own.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // it was told to stop
		}
		r.err = err
	}()
	if p.StartLimit == 0 {
		p.StartLimit = startLimit
	}
	var late <-chan time.Time
	if p.StartLimit != NoLimit {
		limit := time.NewTimer(p.StartLimit)
		defer limit.Stop()
		late = limit.C
	}
	select {
	case <-up:
	case <-ended:
	case <-ctx.Done():
	case <-late:
		return r, fault.New(fault.DeadlineExceeded, "start %s: it was not ready after %v", p.Name, p.StartLimit)
	}
	return r, nil
}

// stop ends a part and returns its error.
func (r *running) stop() error {
	r.cancel()
	if r.part.StopLimit == 0 {
		r.part.StopLimit = stopLimit
	}
	limit := time.NewTimer(r.part.StopLimit)
	defer limit.Stop()
	select {
	case <-r.done:
	case <-limit.C:
		return fault.New(fault.DeadlineExceeded, "stop %s: it was still running after %v", r.part.Name,
			r.part.StopLimit)
	}
	if r.err != nil {
		return fault.Wrap(fault.CodeOf(r.err), r.err, "run %s", r.part.Name)
	}
	return nil
}
