package router

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/journal"
)

// requests is the register of what runs on a router. It ends everything when the router is drained
// or stopped, and finds resumable requests by their keys.
type requests struct {
	base context.Context // of resumable requests, which outlive their calls
	stop context.CancelCauseFunc
	wg   sync.WaitGroup // goroutines of resumable requests

	mu       sync.Mutex
	running  map[*context.CancelCauseFunc]bool
	lives    map[journal.Key]*live
	draining chan struct{} // closed when the router takes no more requests
	changed  chan struct{} // closed and replaced when a request ends
}

func newRequests() *requests {
	r := &requests{
		running: map[*context.CancelCauseFunc]bool{}, lives: map[journal.Key]*live{},
		draining: make(chan struct{}), changed: make(chan struct{}),
	}
	r.base, r.stop = context.WithCancelCause(context.Background())
	return r
}

// errStopping refuses and ends requests of a router that stops.
var errStopping = fault.New(fault.Unavailable, "run request: the router is stopping").After(time.Second)

// begin registers a request. The returned context ends with ctx, or with a cause when the router
// ends the request. The caller calls done when the request has ended.
func (r *requests) begin(ctx context.Context) (_ context.Context, done func(), _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isDraining() || r.base.Err() != nil {
		return nil, nil, errStopping
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r.running[&cancel] = true
	return ctx, func() {
		cancel(nil)
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, &cancel)
		close(r.changed)
		r.changed = make(chan struct{})
	}, nil
}

func (r *requests) isDraining() bool {
	select {
	case <-r.draining:
		return true
	default:
		return false
	}
}

// idle waits until no request runs.
func (r *requests) idle(ctx context.Context) bool {
	for {
		r.mu.Lock()
		n, changed := len(r.running), r.changed
		r.mu.Unlock()
		if n == 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// endAll ends every request with a cause.
func (r *requests) endAll(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for cancel := range r.running {
		(*cancel)(cause)
	}
}

// close ends resumable requests at once and joins their goroutines.
func (r *requests) close() {
	r.mu.Lock()
	r.stop(errStopping)
	r.mu.Unlock()
	r.wg.Wait()
}

// endLimit is how long requests that a drain has ended may take to end, with their journals.
const endLimit = 3 * time.Second

// Drain prepares the router for its end. It takes no more requests and waits for those that run
// until ctx ends. Then it ends them with an error that says so: resumable ones can be resumed
// from another router, which continues after the last token of their journals.
func (s *Service) Drain(ctx context.Context) {
	r := s.requests
	r.mu.Lock()
	if !r.isDraining() {
		close(r.draining)
	}
	r.mu.Unlock()
	if r.idle(ctx) {
		return
	}
	s.log.Info("end requests: the time to drain is over")
	r.endAll(errStopping)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	r.idle(limit)
}

// cause returns the cause for which the router ended a request, or else err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); err != nil && c != nil && !errors.Is(ctx.Err(), c) {
		return c
	}
	return err
}
