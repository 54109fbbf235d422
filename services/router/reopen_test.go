package router_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// counter returns the sum of a metric over its labels, of which one has the given value; an empty value
// means all.
func counter(t *testing.T, r *prometheus.Registry, name, label string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if label != "" && l.GetValue() != label {
					m = nil
				}
			}
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

// computed returns the rows that a shard has computed.
func (m *mesh) computed(name string) int {
	s := m.shards[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.rows)
}

// breakLink breaks all connections to a service and lets new ones through.
func (m *mesh) breakLink(name string) {
	m.network.Cut(name, true)
	m.network.Cut(name, false)
}

// retry sends a request, and sends it again as long as no pipeline is open.
func (m *mesh) retry(r *routerv1.GenerateRequest, each func(n int)) (answer, error) {
	tick, end := time.NewTicker(20*time.Millisecond), time.NewTimer(patience)
	defer tick.Stop()
	defer end.Stop()
	for {
		a, err := m.generate(m.t.Context(), r, each)
		if status.Code(err) != codes.Unavailable || a.started != nil {
			return a, err
		}
		select {
		case <-tick.C:
		case <-end.C:
			return a, err
		}
	}
}

// pauses runs requests as streams does and returns the longest time between two tokens of one. Once all of them have
// had a token, it calls the functions begun.
func (m *mesh) pauses(n, tokens int, begun ...func()) (longest time.Duration) {
	m.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	waiting := n
	for i := range n {
		wg.Go(func() {
			prompt, last := fmt.Sprintf("stream %d", i), time.Time{}
			a, err := m.retry(greedy(prompt, tokens), func(int) {
				now := time.Now()
				mu.Lock()
				defer mu.Unlock()
				if !last.IsZero() {
					longest = max(longest, now.Sub(last))
				} else if waiting--; waiting == 0 {
					for _, f := range begun {
						f()
					}
				}
				last = now
			})
			if err != nil {
				m.t.Errorf("stream %d: %v", i, err)
			} else if want := expect(prompt, tokens); a.text != want {
				m.t.Errorf("stream %d: %q, want %q", i, a.text, want)
			}
		})
	}
	wg.Wait()
	return longest
}

// TestService_BrokenLink_SessionsGoOn breaks each link of a lone pipeline. No session moves, and nothing
// is computed again but what was in flight.
func TestService_BrokenLink_SessionsGoOn(t *testing.T) {
	const n, tokens = 8, 200
	for _, name := range []string{"shard-0-0", "shard-0-1", "sampler"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				metrics := prometheus.NewRegistry()
				m := newMesh(t, 2, 1, router.Config{Metrics: metrics})
				probe := m.computed("shard-0-0")
				m.shards["shard-0-1"].strike(30, func() { m.breakLink(name) })
				pause := m.pauses(n, tokens)
				m.struck("shard-0-1")
				m.check()
				resumed := counter(t, metrics, "lamina_router_reopens_total", "resumed")
				if resumed < 1 || resumed > 2 {
					t.Errorf(
						"the pipeline was opened again %v times",
						resumed,
					) // twice if the breaks are noticed one by one
				}
				if moves := counter(t, metrics, "lamina_router_moves_total", ""); moves != 0 {
					t.Errorf("%v sessions moved", moves)
				}
				prompts := n * len("stream 0")
				for _, stage := range []string{"shard-0-0", "shard-0-1"} {
					// A sequence has at most one row in flight; a batch of prompts may be lost as well.
					if rows := m.computed(stage) - probe; rows > prompts+n*tokens+2*n+prompts {
						t.Errorf("%s has computed %d rows, the streams have %d", stage, rows, prompts+n*(tokens-1))
					}
				}
				t.Logf("longest pause %v", pause)
				eventually(t, "the release of every session", func() bool { return m.used() == 0 })
			})
		})
	}
}

// TestService_BrokenLink_WithASpare breaks a link while another pipeline could take over.
func TestService_BrokenLink_WithASpare(t *testing.T) {
	for _, name := range []string{"shard-0-0", "shard-0-1"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				metrics := prometheus.NewRegistry()
				m := newMesh(t, 2, 2, router.Config{Metrics: metrics})
				m.shards["shard-0-1"].strike(30, func() { m.breakLink(name) })
				pause := m.pauses(8, 200)
				m.struck("shard-0-1")
				m.check()
				// A machine that is busy may need longer to connect than the sessions need to move.
				resumed := counter(t, metrics, "lamina_router_reopens_total", "resumed")
				moves := counter(t, metrics, "lamina_router_moves_total", "")
				if resumed == 1 && moves != 0 || resumed != 1 && moves == 0 {
					t.Errorf("the pipeline was opened again %v times, and %v sessions moved", resumed, moves)
				}
				t.Logf("resumed %v, moves %v, longest pause %v", resumed, moves, pause)
			})
		})
	}
}

// TestService_BrokenLink_AStageThatForgetsIsReplayed breaks a link to a stage that keeps nothing, as one
// that was restarted at once: what it had is computed again, or the sessions move.
func TestService_BrokenLink_AStageThatForgetsIsReplayed(t *testing.T) {
	for _, replicas := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d replicas", replicas), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				metrics := prometheus.NewRegistry()
				m := newMesh(t, 2, replicas, router.Config{Metrics: metrics})
				m.shards["shard-0-1"].forgets = true
				m.shards["shard-0-1"].strike(30, func() { m.breakLink("shard-0-1") })
				pause := m.pauses(8, 100)
				m.struck("shard-0-1")
				m.check()
				lost := counter(t, metrics, "lamina_router_reopens_total", "lost")
				rebuilt := counter(t, metrics, "lamina_router_reopens_total", "rebuilt")
				moves := counter(t, metrics, "lamina_router_moves_total", "")
				if lost+rebuilt != 1 || lost == 1 && moves == 0 || rebuilt == 1 && moves != 0 {
					t.Errorf("%v pipelines were lost, %v rebuilt, and %v sessions moved", lost, rebuilt, moves)
				}
				if replicas == 1 && rebuilt != 1 {
					t.Error("the lone pipeline was not rebuilt")
				}
				t.Logf("rebuilt %v, longest pause %v", rebuilt, pause)
			})
		})
	}
}

// TestService_BrokenLinks_AgainAndAgain breaks links at random under a load with everything on:
// speculation, scored prompts, several pipelines.
func TestService_BrokenLinks_AgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		m := newMesh(t, 2, 2, router.Config{Metrics: metrics, Speculate: 4, Draft: "copy"})
		m.takes(4*time.Millisecond, 0)
		rnd := rand.New(rand.NewPCG(3, 9))
		names := []string{"shard-0-0", "shard-0-1", "shard-1-0", "shard-1-1", "sampler", "draft"}
		stop := make(chan struct{})
		var breaker sync.WaitGroup
		breaker.Go(func() {
			tick := time.NewTicker(120 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					m.breakLink(names[rnd.IntN(len(names))])
				case <-stop:
					return
				}
			}
		})
		for range 4 {
			m.pauses(12, 150)
			prompt := "a prompt whose tokens are scored, of more than one page"
			r := greedy(prompt, 5)
			r.Echo, r.PromptLogprobs = true, true
			if a, err := m.retry(r, nil); err != nil || a.text != expect(prompt, 5) {
				t.Errorf("a scored prompt: %q, %v", a.text, err)
			}
		}
		close(stop)
		breaker.Wait()
		m.check()
		resumed := counter(t, metrics, "lamina_router_reopens_total", "resumed")
		t.Logf("resumed %v, lost %v, moves %v", resumed, counter(t, metrics, "lamina_router_reopens_total", "lost"),
			counter(t, metrics, "lamina_router_moves_total", ""))
		if resumed < 5 {
			t.Errorf("%v pipelines were opened again", resumed)
		}
	})
}
