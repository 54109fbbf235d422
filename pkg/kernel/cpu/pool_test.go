package cpu

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
)

func TestPool_RunsEveryIndexOnce(t *testing.T) {
	defer leak.Check(t)
	for _, threads := range []int{1, 2, 5} {
		p := newPool(threads)
		for round := range 3000 {
			n := round % 17
			counts := make([]atomic.Int32, n)
			p.each(n, func(i int) { counts[i].Add(1) })
			for i := range counts {
				if c := counts[i].Load(); c != 1 {
					t.Fatalf("%d threads: index %d of %d ran %d times", threads, i, n, c)
				}
			}
		}
		p.close()
	}
}

func TestPool_ConcurrentCallers(t *testing.T) {
	p := newPool(3)
	defer p.close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				var sum atomic.Int64
				p.each(10, func(i int) { sum.Add(int64(i)) })
				if sum.Load() != 45 {
					t.Errorf("the indices of a loop of 10 add up to %d, want 45", sum.Load())
				}
			}
		})
	}
	wg.Wait()
}

func TestPool_ParkedWorkersWakeUp(t *testing.T) {
	p := newPool(2)
	defer p.close()
	for range 3 {
		deadline := time.Now().Add(10 * time.Second)
		for !p.workers[0].parked.Load() {
			if time.Now().After(deadline) {
				t.Fatal("an idle worker has not parked")
			}
			pause()
		}
		// Two iterations that wait for each other end only if the worker takes part.
		var both sync.WaitGroup
		both.Add(2)
		p.each(2, func(int) { both.Done(); both.Wait() })
	}
}

func TestPool_PanicLeavesItUsable(t *testing.T) {
	p := newPool(2)
	defer p.close()
	func() {
		defer func() { _ = recover() }()
		p.each(1000, func(i int) {
			if i == 0 {
				panic("misuse")
			}
		})
	}()
	var n atomic.Int32
	p.each(100, func(int) { n.Add(1) })
	if n.Load() != 100 {
		t.Fatalf("%d of 100 iterations ran after a panic", n.Load())
	}
}
