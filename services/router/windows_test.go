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
	for _, wrong := range []int{0, 23, 7, 2} {
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
					t.Logf("%d batches in flight: %v, %d chained windows, %d of them discarded, %d steps", inFlight, took[i],
						sent, discarded, counts(t, r, "lamina_router_steps_total", "answer"))
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
