package router_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/services/router"
)

// TestService_ChainedWindows_FillLongLinks generates one text over slow links, with one batch in flight and
// with five. In the latter case the draft model goes on while its draft tokens travel.
func TestService_ChainedWindows_FillLongLinks(t *testing.T) {
	for _, wrong := range some(0, 23, 7, 2) {
		t.Run(fmt.Sprintf("one in %d wrong", wrong), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 400
				var took [2]time.Duration
				for i, inFlight := range []int{1, 5} {
					m, r := draftMesh(t, 2, len("right"), wrong, router.Config{MicroBatches: inFlight})
					m.network.Delay("shard-0-0", 20*time.Millisecond)
					m.network.Delay("shard-0-1", 20*time.Millisecond)
					start := time.Now()
					a, err := m.generate(t.Context(), greedy("right", n), nil)
					if took[i] = time.Since(start); err != nil {
						t.Fatal(err)
					}
					if want := expect("right", n); a.text != want {
						t.Errorf("text %q, want %q", a.text, want)
					}
					sent, discarded := counts(t, r, "lamina_router_chained_windows_total", "sent"),
						counts(t, r, "lamina_router_chained_windows_total", "discarded")
					if (sent > 0) != (inFlight > 1) || discarded > sent || wrong == 0 && discarded > sent/3 {
						t.Errorf("%d windows were sent behind others, %d of them discarded", sent, discarded)
					}
					t.Logf(
						"%d batches in flight: %v, %d chained windows, %d of them discarded, %d steps",
						inFlight,
						took[i],
						sent,
						discarded,
						counts(t, r, "lamina_router_steps_total", "answer"),
					)
					eventually(t, "the release of every session", func() bool { return m.used() == 0 })
					m.check()
				}
				switch {
				case wrong == 0 && took[1] > took[0]*2/3:
					t.Errorf("%v with windows in flight, %v without", took[1], took[0])
				case took[1] > took[0]+took[0]/10:
					t.Errorf("%v with windows in flight, %v without: they do not pay and do not rest", took[1], took[0])
				}
			})
		})
	}
}

// TestService_SpeculationThatDoesNotPay_Rests compares speculation with plain decoding where a draft token
// costs half a row of the model, and a window more the longer it is. Time is virtual.
func TestService_SpeculationThatDoesNotPay_Rests(t *testing.T) {
	const n = 400
	perRow := func(first, more time.Duration) func(int) time.Duration {
		return func(rows int) time.Duration { return first + time.Duration(rows-1)*more }
	}
	run := func(t *testing.T, m *mesh) time.Duration {
		t.Helper()
		for _, name := range []string{"shard-0-0", "shard-0-1"} {
			m.shards[name].mu.Lock()
			m.shards[name].cost = perRow(4*time.Millisecond, 2*time.Millisecond)
			m.shards[name].mu.Unlock()
		}
		if d := m.shards["draft"]; d != nil {
			d.mu.Lock()
			d.cost = perRow(4*time.Millisecond, time.Millisecond)
			d.mu.Unlock()
		}
		for range 4 { // too short for a draft session, so that plain steps are measured, as a probe does
			if _, err := m.generate(t.Context(), greedy("warm", 3), nil); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if a, err := m.generate(t.Context(), greedy("right", n), nil); err != nil || a.text != expect("right", n) {
			t.Fatalf("text %q, %v", a.text, err)
		}
		return time.Since(start)
	}
	for _, wrong := range some(1, 2, 3, 5, 11, 0) {
		t.Run(fmt.Sprintf("one in %d wrong", wrong), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				plain := run(t, newMesh(t, 2, 1, router.Config{MicroBatches: 3}))
				m, r := draftMesh(t, 2, len("right"), wrong, router.Config{MicroBatches: 3})
				took := run(t, m)
				ratio := plain.Seconds() / took.Seconds()
				t.Logf(
					"%v plain, %v with draft tokens: %.2f times the speed; %d of %d draft tokens accepted",
					plain,
					took,
					ratio,
					counts(t, r, "lamina_router_accepted_tokens_total"),
					counts(t, r, "lamina_router_draft_tokens_total"),
				)
				if ratio < 0.97 || wrong == 0 && ratio < 1.2 {
					t.Errorf("%.3f times the speed of plain decoding", ratio)
				}
			})
		})
	}
}
