package shard

import (
	"context"
	"slices"
	"sync"
	"time"
)

// lowMost is how long a call without priority lets others pass, so that it does not wait for ever.
const lowMost = 20 * time.Second

// embedTurn is the lock that calls of Embed compute with, one at a time. Those with priority get it in the order in
// which they came, and the others when none of these waits.
type embedTurn struct {
	mu      sync.Mutex
	taken   bool
	waiting []*embedWaiter // in the order in which they came
}

type embedWaiter struct {
	low   bool
	since time.Time
	ready chan struct{} // closed when it has the lock
}

// lock waits for the lock, until ctx ends. The caller calls unlock.
func (e *embedTurn) lock(ctx context.Context, low bool) error {
	e.mu.Lock()
	if !e.taken {
		e.taken = true
		e.mu.Unlock()
		return nil
	}
	w := &embedWaiter{low, time.Now(), make(chan struct{})}
	e.waiting = append(e.waiting, w)
	e.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	e.mu.Lock()
	i := slices.Index(e.waiting, w)
	if i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
	}
	e.mu.Unlock()
	if i < 0 { // it got the lock at the same time
		e.unlock()
	}
	return ctx.Err()
}

// unlock gives the lock to the next one.
func (e *embedTurn) unlock() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.waiting) == 0 {
		e.taken = false
		return
	}
	i := slices.IndexFunc(e.waiting, func(w *embedWaiter) bool { return !w.low || time.Since(w.since) >= lowMost })
	i = max(i, 0) // all have no priority
	w := e.waiting[i]
	e.waiting = slices.Delete(e.waiting, i, i+1)
	close(w.ready)
}
