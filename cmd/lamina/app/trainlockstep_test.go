package app_test

import (
	"context"
	"sync"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// lockstep keeps a run from taking a step before its watch has shown the last one to the test. Otherwise a run could
// end while the goroutine that is to disturb it waits for a processor. A test that waits in the function that sees the
// states makes the run wait, too.
type lockstep struct {
	mu      sync.Mutex
	latest  func() uint64 // the last step of the run that is watched; nil for none
	seen    uint64
	changed chan struct{} // closed and replaced with every change
}

func newLockstep() *lockstep { return &lockstep{changed: make(chan struct{})} }

func (l *lockstep) change(set func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	set()
	close(l.changed)
	l.changed = make(chan struct{})
}

// begin says that a run is watched, and how far it is.
func (l *lockstep) begin(latest func() uint64) { l.change(func() { l.latest, l.seen = latest, 0 }) }

// saw says that the test has seen a step.
func (l *lockstep) saw(step uint64) { l.change(func() { l.seen = step }) }

// end lets all runs go on.
func (l *lockstep) end() { l.change(func() { l.latest = nil }) }

// wait waits until the test has seen the last step of the run that is watched.
func (l *lockstep) wait(ctx context.Context) {
	for {
		l.mu.Lock()
		latest, seen, changed := l.latest, l.seen, l.changed
		l.mu.Unlock()
		if latest == nil || latest() <= seen {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// lockstepSet is the kernel set of a stage whose run goes in lockstep with a test.
type lockstepSet struct {
	kernel.Set[float32]
	ctx  context.Context // of the fleet
	test *lockstep
}

// CrossEntropy is called once for each slot.
func (s *lockstepSet) CrossEntropy(
	loss []float64, dlogits, logits kernel.Buffer[float32], targets []int32, scale float64, t, v int,
) {
	s.test.wait(s.ctx)
	s.Set.CrossEntropy(loss, dlogits, logits, targets, scale, t, v)
}

// stepOf returns how far a run is, as a trainer in this process knows it.
func stepOf(ctx context.Context, t trainerv1.TrainerServiceServer, run string) uint64 {
	list, err := t.ListRuns(ctx, &trainerv1.ListRunsRequest{})
	if err != nil {
		return 0
	}
	for _, r := range list.GetRuns() {
		if r.GetName() == run {
			return r.GetStep()
		}
	}
	return 0
}

// linger makes a run that goes in lockstep wait for a moment, in which something else can get ahead of its steps.
func linger(ctx context.Context) {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
	}
}
