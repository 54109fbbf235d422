package router

import (
	"context"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// What replays may cost by default: half of the work, and at once as much as a long outage takes.
const (
	replayShare  = 0.5
	replayBurst  = 64 << 10
	replayRefill = time.Minute
)

// Why positions are computed again, in metrics.
const (
	againMoved   = "moved"   // a sequence whose pipeline was lost
	againRebuilt = "rebuilt" // a stage that was lost
	againHedged  = "hedged"  // a prompt whose first token was late
)

// replayBudget bounds what the router spends on computing positions again, so that a fleet whose shards come
// and go still spends most of its time on new tokens. Whoever waits for it is served in order.
type replayBudget struct {
	start time.Time
	turn  chan struct{} // holds a token while somebody waits who is first
	m     *metrics

	mu      sync.Mutex
	b       sched.Budget
	waiting int
	spent   uint64
	refused uint64
}

func newReplayBudget(c Config, m *metrics) *replayBudget {
	b := sched.Budget{Share: c.ReplayShare, Burst: c.ReplayBurst, Refill: c.ReplayRefill}
	switch {
	case b.Share == 0:
		b.Share = replayShare
	case b.Share < 0:
		b.Share = 0
	}
	if b.Burst <= 0 {
		b.Burst = replayBurst
	}
	if b.Refill <= 0 {
		b.Refill = replayRefill
	}
	return &replayBudget{start: time.Now(), turn: make(chan struct{}, 1), m: m, b: b}
}

// earn counts positions of work.
func (r *replayBudget) earn(positions int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b.Earn(time.Since(r.start), positions)
}

// try spends positions if something is left.
func (r *replayBudget) try(positions int, by string) bool {
	_, ok := r.spend(positions, by)
	if !ok {
		r.refuse()
	}
	return ok
}

func (r *replayBudget) spend(positions int, by string) (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if wait, ok = r.b.Take(time.Since(r.start), positions); ok {
		r.spent += uint64(positions)
		r.m.again.WithLabelValues(by).Add(float64(positions))
	}
	return wait, ok
}

func (r *replayBudget) refuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused++
	r.m.overBudget.Inc()
}

func (r *replayBudget) wait(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting += n
}

// take spends positions, and waits for that at most the given time.
func (r *replayBudget) take(ctx context.Context, positions int, limit time.Duration, by string) error {
	r.wait(1)
	defer r.wait(-1)
	ctx, cancel := context.WithTimeoutCause(ctx, max(0, limit),
		fault.New(fault.Unavailable, "replay %d tokens: too many are computed again after losses", positions).
			After(time.Second).Because(reasonCapacity))
	defer cancel()
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		r.refuse()
		return context.Cause(ctx)
	}
	defer func() { <-r.turn }()
	for first := true; ; first = false {
		wait, ok := r.spend(positions, by)
		if ok {
			return nil
		}
		if first {
			r.refuse()
		}
		select {
		case <-time.After(min(max(wait, time.Millisecond), budgetEvery)): // work may fill it earlier
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// budgetEvery is the longest time between two looks at an empty budget.
const budgetEvery = 20 * time.Millisecond

// describe returns the budget's part of the topology.
func (r *replayBudget) describe() *routerv1.ReplayBudget {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &routerv1.ReplayBudget{
		Available: int64(r.b.Level(time.Since(r.start))), Burst: uint64(r.b.Burst), Share: float32(r.b.Share),
		Waiting: uint32(r.waiting), Spent: r.spent, Refused: r.refused,
	}
}
