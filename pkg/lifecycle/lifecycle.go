// Package lifecycle runs the parts of a process in order: each is started when the
// one before it is ready, all are stopped in reverse, and the first to fail stops
// the rest. A part is a function that runs until its context ends.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Part is a piece of a process.
type Part struct {
	// Name stands in errors.
	Name string
	// Run does the part's work until ctx ends. It calls ready once when others may
	// rely on it.
	Run func(ctx context.Context, ready func()) error
}

// startLimit is how long a part may take to become ready.
const startLimit = 2 * time.Minute

// running is a started part.
type running struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Run starts the parts in order, calls ready when the last one is, and stops them
// in reverse when ctx ends or one of them returns. It returns after all have, with
// the errors of all but those that only saw ctx end.
func Run(ctx context.Context, ready func(), parts ...Part) error {
	var started []*running
	failed := make(chan struct{})
	var once sync.Once
	var startErr error
	for _, p := range parts {
		r, ok := start(ctx, p, func() { once.Do(func() { close(failed) }) })
		started = append(started, r)
		if !ok {
			startErr = fmt.Errorf("start %s: it was not ready in %v", p.Name, startLimit)
			break
		}
		if ended(failed) || ctx.Err() != nil {
			break
		}
	}
	if len(started) == len(parts) && startErr == nil && !ended(failed) && ctx.Err() == nil && ready != nil {
		ready()
	}
	if startErr == nil {
		select {
		case <-ctx.Done():
		case <-failed:
		}
	}
	errs := []error{startErr}
	for i := len(started) - 1; i >= 0; i-- {
		r := started[i]
		r.cancel()
		<-r.done
		if r.err != nil && !errors.Is(r.err, context.Canceled) {
			errs = append(errs, fmt.Errorf("run %s: %w", r.name, r.err))
		}
	}
	return errors.Join(errs...)
}

func ended(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start runs a part and waits until it is ready, ends, or takes too long.
func start(ctx context.Context, p Part, fail func()) (*running, bool) {
	// The part must outlive ctx until its turn in the reverse order comes.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{name: p.Name, cancel: cancel, done: make(chan struct{})}
	up := make(chan struct{})
	var once sync.Once
	go func() {
		defer close(r.done)
		r.err = p.Run(own, func() { once.Do(func() { close(up) }) })
		fail()
	}()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	select {
	case <-up:
	case <-r.done:
	case <-ctx.Done():
	case <-limit.C:
		return r, false
	}
	return r, true
}
