package router_test

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/internal/logtest"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// counts returns a counter of a router, summed over the labels that are not given.
func counts(t *testing.T, r *prometheus.Registry, name string, labels ...string) int {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			has := map[string]bool{}
			for _, l := range m.GetLabel() {
				has[l.GetValue()] = true
			}
			fits := f.GetName() == name
			for _, l := range labels {
				fits = fits && has[l]
			}
			if fits {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return int(n)
}

// draftMesh starts a mesh with a draft model for prompts of that length. Its draft tokens are wrong
// after one log in wrong; 0 means never. pages limits its KV cache.
func draftMesh(
	t *testing.T, stages, prompt, wrong int, cfg router.Config, pages ...uint32,
) (*mesh, *prometheus.Registry) {
	t.Helper()
	r := prometheus.NewRegistry()
	cfg.Metrics, cfg.Speculate = r, max(cfg.Speculate, 4)
	if cfg.Draft == "" {
		cfg.Draft = "copy"
	}
	m := newMesh(t, stages, 1, cfg, pages...)
	// A draft pays off only if it is faster than its model.
	target := m.shards["shard-0-0"]
	target.mu.Lock()
	target.cost = func(int) time.Duration { return 2 * time.Millisecond }
	target.mu.Unlock()
	d := m.shards["draft"]
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = func(log []uint32) uint32 {
		best := next(log)
		if wrong > 0 && best%uint32(wrong) == 0 {
			return '?'
		}
		return picked(best, len(log)-prompt)
	}
	return m, r
}

// awaitDraft delays the model's third token until the draft has answered once. Otherwise the fakes
// are so fast that a text may end before that.
func (m *mesh) awaitDraft(last string, prompt int) {
	answered := make(chan struct{})
	first := sync.OnceFunc(func() { close(answered) })
	d, s := m.shards["draft"], m.shards[last]
	d.mu.Lock()
	answer := d.answer
	d.answer = func(log []uint32) uint32 {
		defer first()
		return answer(log)
	}
	d.mu.Unlock()
	s.mu.Lock()
	s.answer = func(log []uint32) uint32 {
		if len(log) == prompt+2 {
			select {
			case <-answered:
			case <-time.After(patience):
			}
		}
		return next(log)
	}
	s.mu.Unlock()
}

func TestService_CorrectDraft_TakesFewerSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, name := range []string{"copy", "like"} {
			m, r := draftMesh(t, 2, len("right"), 0, router.Config{Draft: name})
			m.awaitDraft("shard-0-1", len("right"))
			const n = 600
			a, err := m.generate(t.Context(), greedy("right", n), nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := expect("right", n); a.text != want {
				t.Errorf("text %q, want %q", a.text, want)
			}
			if steps := counts(t, r, "lamina_router_steps_total", "answer"); steps > n/2 {
				t.Errorf("draft %s: %d steps for %d tokens with 4 draft tokens each", name, steps, n)
			}
			drafted, accepted := counts(t, r, "lamina_router_draft_tokens_total", "draft"), counts(
				t, r, "lamina_router_accepted_tokens_total", "draft",
			)
			if drafted < n/4 || accepted < drafted-4 {
				t.Errorf("draft %s: %d of %d draft tokens were accepted", name, accepted, drafted)
			}
			if d := counts(t, r, "lamina_router_draft_sessions_dropped_total"); d != 0 {
				t.Errorf("draft %s: %d were dropped", name, d)
			}
			eventually(t, "the release of every session", func() bool { return m.used() == 0 })
			m.check()
		}
	})
}

func TestService_PartlyWrongDraft_ChangesNoText(t *testing.T) {
	for _, wrong := range []int{1, 2, 3, 5, 11} {
		t.Run(fmt.Sprintf("one in %d wrong", wrong), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, r := draftMesh(t, 2, len("stream 0"), wrong, router.Config{Speculate: 1 + wrong%7})
				m.streams(9, 150)
				drafted, accepted := counts(t, r, "lamina_router_draft_tokens_total"), counts(
					t, r, "lamina_router_accepted_tokens_total",
				)
				if drafted == 0 || accepted >= drafted || wrong > 1 && accepted == 0 {
					t.Errorf("%d of %d draft tokens were accepted", accepted, drafted)
				}
				if wrong == 1 && drafted > 9*150/4 { // every draft token is '?', so the proposer rests
					t.Errorf("%d draft tokens though all are wrong", drafted)
				}
				eventually(t, "the release of every session", func() bool { return m.used() == 0 })
				m.check()
			})
		})
	}
}

// Whatever a draft session does, the text stays the same and arrives in time.
func TestService_BrokenDraft_IsDroppedAndTheTextGoesOn(t *testing.T) {
	for _, c := range []struct {
		name, code string
		spoil      func(m *mesh, d *fakeShard)
	}{
		{"lost", "unavailable", func(m *mesh, d *fakeShard) {
			d.strike(20, func() { m.network.Cut("draft", true) })
		}},
		{"lost at once", "unavailable", func(m *mesh, d *fakeShard) {
			d.strike(1, func() { m.network.Cut("draft", true) })
		}},
		{"hung", "deadline exceeded", func(_ *mesh, d *fakeShard) { d.freeze(21) }},
		{"hung within a round", "deadline exceeded", func(_ *mesh, d *fakeShard) { d.freeze(24) }},
		{"refusing", "unavailable", func(_ *mesh, d *fakeShard) {
			d.strike(20, func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.refuse = true
			})
		}},
		{"beyond the vocabulary", "internal", func(_ *mesh, d *fakeShard) {
			d.mu.Lock()
			defer d.mu.Unlock()
			right := d.answer
			d.answer = func(log []uint32) uint32 {
				if len(log) > 60 {
					return vocab + 1000
				}
				return right(log)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log logtest.Buffer
				m, r := draftMesh(
					t,
					1,
					len("stream 0"),
					0,
					router.Config{Log: slog.New(slog.NewTextHandler(&log, nil))},
				)
				if c.name != "lost at once" {
					m.awaitDraft("shard-0-0", len("stream 0"))
				}
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("the router's log:\n%s", log.String())
					}
				})
				c.spoil(m, m.shards["draft"])
				start := time.Now()
				m.streams(1, 600)
				if took := time.Since(start); took > 8*time.Second {
					t.Errorf("the stream took %v", took)
				}
				eventually(
					t, "the drop of the draft",
					func() bool { return counts(t, r, "lamina_router_draft_sessions_dropped_total", c.code) == 1 },
				)
				if n := counts(t, r, "lamina_router_draft_sessions_dropped_total"); n != 1 {
					t.Errorf("%d drops", n)
				}
				eventually(t, "a line of the log", func() bool { return log.Has("drop draft session") })
				if drafted := counts(t, r, "lamina_router_draft_tokens_total", "draft"); drafted > 150 {
					t.Errorf("%d draft tokens", drafted)
				}
			})
		})
	}
}

func TestService_SlowDraft_IsRarelyAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := draftMesh(t, 1, len("stream 0"), 0, router.Config{})
		d := m.shards["draft"]
		d.mu.Lock()
		right := d.answer
		d.answer = func(log []uint32) uint32 {
			<-time.After(20 * time.Millisecond) // the delay is what this test is about
			return right(log)
		}
		d.mu.Unlock()
		m.awaitDraft("shard-0-0", len("stream 0"))
		m.streams(1, 400)
		if drafted := counts(t, r, "lamina_router_draft_tokens_total", "draft"); drafted == 0 || drafted > 100 {
			t.Errorf("%d draft tokens of a draft that takes 20 ms for each", drafted)
		}
		m.check()
	})
}

// A draft model may hold fewer positions and fewer sessions than the model.
func TestService_SmallDraft_IsUsedWithinItsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			streams int
			pages   uint32
			dropped int
		}{{1, 4, 1}, {9, 12, 0}, {9, 4, 9}} {
			m, r := draftMesh(t, 1, len("stream 0"), 0, router.Config{}, c.pages)
			m.streams(c.streams, 150)
			if drafted := counts(
				t, r, "lamina_router_draft_tokens_total", "draft",
			); drafted == 0 || c.pages == 4 && drafted > c.streams*4*pageLen {
				t.Errorf("%d streams, %d pages: %d draft tokens", c.streams, c.pages, drafted)
			}
			if n := counts(
				t, r, "lamina_router_draft_sessions_dropped_total", "exhausted",
			); n > c.dropped || c.streams == 1 && n < c.dropped {
				t.Errorf("%d streams, %d pages: %d drafts dropped, want %d", c.streams, c.pages, n, c.dropped)
			}
			eventually(t, "the release of every session", func() bool { return m.used() == 0 })
			m.check()
		}
	})
}

func TestService_BrokenDraft_HarmsNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := draftMesh(t, 2, len("stream 0"), 3, router.Config{})
		m.shards["draft"].strike(30, func() {
			m.network.Cut("draft", true)
			m.network.Cut("draft", false)
		})
		m.streams(9, 150)
		m.struck("draft")
		m.streams(9, 50) // works whether or not the draft model is back
	})
}

func TestService_LostShard_MovesSessionsWithTheirDraft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		m := newMesh(t, 2, 2, router.Config{Metrics: r, Speculate: 3, Draft: "copy"})
		d := m.shards["draft"]
		d.mu.Lock()
		d.answer = func(log []uint32) uint32 { return picked(next(log), len(log)-len("stream 0")) }
		d.mu.Unlock()
		m.shards["shard-0-1"].strike(30, func() { m.network.Cut("shard-0-1", true) })
		m.streams(8, 300)
		m.struck("shard-0-1")
		if moves, drafted := counts(t, r, "lamina_router_moves_total"), counts(
			t, r, "lamina_router_accepted_tokens_total", "draft",
		); moves == 0 || drafted == 0 {
			t.Errorf("%d moves, %d accepted draft tokens", moves, drafted)
		}
	})
}

func TestService_DraftWithAnotherVocabulary_IsRefusedAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logtest.Buffer
		m, r := draftMesh(
			t, 1, len("stream 0"), 0, router.Config{Draft: "other", Log: slog.New(slog.NewTextHandler(&log, nil))},
		)
		eventually(
			t, "the refusal, by both names",
			func() bool { return log.Has("refuse draft") && log.Has("model=fake draft=other") },
		)
		m.streams(3, 40)
		if n := counts(t, r, "lamina_router_draft_tokens_total", "draft"); n != 0 {
			t.Errorf("%d draft tokens by a draft model with another vocabulary", n)
		}
	})
}

func TestService_DraftModel_AnswersOnlyRequestsThatNameIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := draftMesh(t, 1, 0, 0, router.Config{Draft: "like"})
		for name, want := range map[string]string{"": digest, "fake": digest, "like": "sha256:like"} {
			r := greedy("who", 3)
			r.Model = name
			a, err := m.generate(t.Context(), r, nil)
			if err != nil || a.started.GetDigest() != want {
				t.Errorf("model %q is %s, want %s: %v", name, a.started.GetDigest(), want, err)
			}
		}
		list, err := m.client.ListModels(t.Context(), &routerv1.ListModelsRequest{})
		if err != nil || len(list.GetModels()) != 1 || list.GetModels()[0].GetName() != "fake" {
			t.Errorf("models %v, %v: want only the model that answers", list.GetModels(), err)
		}
	})
}
