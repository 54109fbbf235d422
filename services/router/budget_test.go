package router_test

import (
	"strings"
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

// budget returns what the router says about its budget for replays.
func (m *mesh) budget() *routerv1.ReplayBudget {
	m.t.Helper()
	resp, err := m.client.Topology(m.t.Context(), &routerv1.TopologyRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.GetMesh().GetReplays()
}

// TestService_ReplayBudget_SequencesWait loses a pipeline while nearly nothing may be computed again. The
// sequences move one after another, and every one has its text in the end.
func TestService_ReplayBudget_SequencesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		const burst = 20
		m := newMesh(
			t,
			2,
			2,
			router.Config{Metrics: metrics, ReplayShare: -1, ReplayBurst: burst, ReplayRefill: time.Second / 2},
		)
		m.shards["shard-0-1"].strike(30, func() { m.network.Cut("shard-0-1", true) })
		begin := time.Now()
		pause := m.pauses(8, 100)
		took := time.Since(begin)
		m.struck("shard-0-1")
		m.check()
		b, moves := m.budget(), counter(t, metrics, "lamina_router_moves_total", "")
		if b.GetRefused() == 0 || moves == 0 || b.GetWaiting() != 0 || b.GetBurst() != burst {
			t.Errorf("%v moves, and the budget is %v", moves, b)
		}
		again := counter(t, metrics, "lamina_router_replayed_tokens_total", "moved")
		if again != float64(b.GetSpent()) {
			t.Errorf("the metric says %v, the budget %v", again, b)
		}
		// A log has at most 108 tokens; the last may leave a debt.
		if most := burst*(1+took.Seconds()*2) + 108; float64(b.GetSpent()) > most {
			t.Errorf("%d tokens were computed again in %v, at most %v may be", b.GetSpent(), took, most)
		}
		t.Logf("%v moves, %d tokens again, longest pause %v", moves, b.GetSpent(), pause)
	})
}

// TestService_ReplayBudget_TheClientIsToldInTime loses a pipeline when nothing may be computed again for a
// long time, under requests that wait for capacity as long as they like.
func TestService_ReplayBudget_TheClientIsToldInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 2, router.Config{ReplayShare: -1, ReplayBurst: 1, ReplayRefill: time.Hour})
		m.shards["shard-0-0"].strike(30, func() { m.network.Cut("shard-0-0", true) })
		var mu sync.Mutex
		told, whole := 0, 0
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				r := greedy("told in time", 200)
				wait := uint32(1)
				r.WaitForCapacity = &wait
				a, err := m.generate(t.Context(), r, nil)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && a.text == expect("told in time", 200):
					whole++
				case status.Code(err) == codes.Unavailable &&
					strings.Contains(err.Error(), "too many are computed again"):
					told++
				default:
					t.Errorf("%q, %v", a.text, err)
				}
			})
		}
		wg.Wait()
		m.struck("shard-0-0")
		if told == 0 || whole == 0 {
			t.Errorf("%d answers are whole, %d clients were told", whole, told)
		}
		if b := m.budget(); b.GetAvailable() > 0 || b.GetRefused() == 0 || b.GetSpent() == 0 {
			t.Errorf("the budget is %v", b)
		}
	})
}

// TestService_ReplayBudget_NoStageIsRebuiltBeyondIt loses a stage that a spare shard could replace, twice while both
// streams run.
func TestService_ReplayBudget_NoStageIsRebuiltBeyondIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		m := newMesh(t, 2, 1, router.Config{Metrics: metrics, ReplayShare: -1, ReplayBurst: 1,
			ReplayRefill: 20 * time.Millisecond})
		m.spare("spare", "shard-0-1")
		m.spare("spare-2", "shard-0-1")
		m.shards["shard-0-1"].strike(20, func() { m.network.Cut("shard-0-1", true) })
		m.shards["spare"].strike(30, func() { m.network.Cut("spare", true) })
		m.pauses(2, 60)
		m.check()
		rebuilt, lost := counter(t, metrics, "lamina_router_reopens_total", "rebuilt"),
			counter(t, metrics, "lamina_router_reopens_total", "lost")
		if rebuilt != 1 || lost < 1 {
			t.Errorf("%v pipelines were rebuilt, %v lost", rebuilt, lost)
		}
	})
}
