package router_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/services/router"
)

// hedgeTokens is more than what a sequence may generate that nobody reads.
const hedgeTokens = 80

// hedging is a mesh of pipelines of one stage whose next batches can be made slow.
type hedging struct {
	*mesh
	metrics *prometheus.Registry
	slow    []atomic.Int64 // how long the next batches take that come to different shards, in this order
}

// newHedging starts a mesh and lets it learn how long a first token takes.
func newHedging(t *testing.T, replicas int, cfg router.Config) *hedging {
	t.Helper()
	h := &hedging{metrics: prometheus.NewRegistry(), slow: make([]atomic.Int64, 2)}
	cfg.Metrics, cfg.StepFloor, cfg.LoneFloor, cfg.CacheIdle = h.metrics, 10*time.Second, 10*time.Second, -1
	h.mesh = newMesh(t, 1, replicas, cfg)
	for _, s := range h.shards {
		s.mu.Lock()
		s.cost = func(int) time.Duration {
			for i := range h.slow {
				if d := h.slow[i].Swap(0); d > 0 {
					return time.Duration(d)
				}
			}
			return time.Millisecond
		}
		s.mu.Unlock()
	}
	for i := range 10 {
		h.ask(t, fmt.Sprintf("request %d", i))
	}
	if n := h.hedges(t, ""); n != 0 {
		t.Fatalf("%v hedges while every first token is early", n)
	}
	return h
}

// ask runs a request, checks its text, and returns how long its first token took.
func (h *hedging) ask(t *testing.T, prompt string) (first time.Duration) {
	t.Helper()
	begin := time.Now()
	a, err := h.generate(t.Context(), greedy(prompt, hedgeTokens), func(n int) {
		if n == 1 {
			first = time.Since(begin)
		}
	})
	if want := expect(prompt, hedgeTokens); err != nil || a.text != want {
		t.Errorf("%s: %q, %v, want %q", prompt, a.text, err, want)
	}
	return first
}

// askSlowly does the same while the batches that come next to the shards are slow.
func (h *hedging) askSlowly(t *testing.T, prompt string, slow ...time.Duration) time.Duration {
	t.Helper()
	for i, d := range slow {
		h.slow[i].Store(int64(d))
	}
	return h.ask(t, prompt)
}

func (h *hedging) hedges(t *testing.T, end string) float64 {
	t.Helper()
	return counter(t, h.metrics, "lamina_router_hedges_total", end)
}

// settled checks that no stage holds anything of the sequences that have lost, and that nothing has moved.
func (h *hedging) settled(t *testing.T) {
	t.Helper()
	eventually(t, "the release of every session", func() bool { return h.used() == 0 })
	h.check()
	if n := counter(t, h.metrics, "lamina_router_moves_total", ""); n != 0 {
		t.Errorf("%v sessions moved", n)
	}
}

func TestService_LateFirstToken_ComesFromAnotherPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHedging(t, 2, router.Config{})
		took := h.askSlowly(t, "a late one", 3*time.Second)
		if took < 250*time.Millisecond || took > 280*time.Millisecond {
			t.Errorf("the first token took %v", took)
		}
		if won, all := h.hedges(t, "won"), h.hedges(t, ""); won != 1 || all != 1 {
			t.Errorf("%v of %v hedges have won", won, all)
		}
		h.settled(t)
	})
}

func TestService_LateFirstToken_BudgetEmpty_IsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHedging(t, 2, router.Config{ReplayShare: -1, ReplayBurst: 1})
		h.askSlowly(t, "a late one", 3*time.Second) // leaves a debt
		<-time.After(5 * time.Second)               // the slow batch has ended
		if took := h.askSlowly(t, "another one", 3*time.Second); took < 3*time.Second {
			t.Errorf("the first token took %v, although nothing is left of the budget", took)
		}
		if won, over := h.hedges(t, "won"), h.hedges(t, "over budget"); won != 1 || over != 1 {
			t.Errorf("%v hedges have won, and %v were over budget", won, over)
		}
		h.settled(t)
	})
}

func TestService_LateFirstToken_NoOtherPipeline_IsAwaited(t *testing.T) {
	for _, cfg := range []struct {
		replicas int
		hedge    time.Duration
	}{{1, 0}, {2, -1}} {
		t.Run(fmt.Sprintf("%d replicas, hedge after %v", cfg.replicas, cfg.hedge), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHedging(t, cfg.replicas, router.Config{Hedge: cfg.hedge})
				if took := h.askSlowly(t, "a late one", 3*time.Second); took < 3*time.Second {
					t.Errorf("the first token took %v", took)
				}
				if n := h.hedges(t, ""); n != 0 {
					t.Errorf("%v hedges", n)
				}
				h.settled(t)
			})
		})
	}
}

// Both pipelines answer at about the same time. One answer goes out, and nothing is left of the other.
func TestService_BothAnswer_OneStreamGoesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHedging(t, 2, router.Config{})
		const n = 24
		for i := range n {
			h.askSlowly(t, fmt.Sprintf("number %d", i), 248*time.Millisecond+time.Duration(i)*500*time.Microsecond)
		}
		// Who is first of those above may be a matter of the order of events at one time. Here it is not.
		h.askSlowly(t, "the second is first", 3*time.Second)
		h.askSlowly(t, "the first is first", 400*time.Millisecond, 3*time.Second)
		won, lost := h.hedges(t, "won"), h.hedges(t, "lost")
		if won == 0 || lost == 0 {
			t.Errorf("%v hedges have won, and %v have lost: the test proves little", won, lost)
		}
		h.settled(t)
	})
}

// One of the two pipelines is lost before either has answered: the other one goes on.
func TestService_PipelineLostDuringAHedge_TheOtherGoesOn(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("the first one: %v", first), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHedging(t, 2, router.Config{})
				lost := time.AfterFunc(500*time.Millisecond, func() {
					for name, s := range h.shards {
						s.mu.Lock()
						hit := s.busy == (map[bool]time.Duration{true: 3 * time.Second, false: 2 * time.Second}[first])
						s.mu.Unlock()
						if hit {
							h.network.Cut(name, true)
						}
					}
				})
				defer lost.Stop()
				took := h.askSlowly(t, "a late one", 3*time.Second, 2*time.Second)
				want := 3 * time.Second
				if first {
					want = 2250 * time.Millisecond
				}
				if took < want || took > want+50*time.Millisecond {
					t.Errorf("the first token took %v, want %v", took, want)
				}
				if n := h.hedges(t, "dropped"); n != 1 {
					t.Errorf("%v hedges were dropped", n)
				}
				h.settled(t)
			})
		})
	}
}
