package router_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/services/router"
)

// plannedOn returns the host of the only stage of the plan, or nil if the plan has none.
func (m *mesh) plannedOn(hosts []*fakeHost) *fakeHost {
	m.t.Helper()
	doc, err := router.ReadPlan(m.t.Context(), m.registry)
	if err != nil {
		m.t.Fatal(err)
	}
	if doc == nil {
		return nil
	}
	for _, p := range doc.Plan.Pipelines {
		for _, h := range hosts {
			if p.Stages[0].Host == h.id {
				return h
			}
		}
	}
	return nil
}

// placedMesh starts hosts with room for the model each, and waits until one of them serves it.
func placedMesh(t *testing.T) (*mesh, []*fakeHost, *fakeHost) {
	t.Helper()
	m, hosts := deployMesh(t, router.Placement{}, 2, 1, map[string]string{digest: "model"})
	var on *fakeHost
	eventually(t, "the model to be placed", func() bool {
		on = m.plannedOn(hosts)
		return on != nil && on.holds(digest)
	})
	return m, hosts, on
}

// A host freezes at some moment between two probes: it takes calls and answers none. It leaves the plan within two
// seconds, and the plan names another host.
func TestPlacer_FrozenHost_LeavesThePlanWithinTwoSeconds(t *testing.T) {
	for phase := time.Duration(0); phase < 250*time.Millisecond; phase += 25 * time.Millisecond {
		t.Run(fmt.Sprint(phase), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, hosts, on := placedMesh(t)
				<-time.After(5*time.Second + phase)
				on.mu.Lock()
				on.frozen = true
				on.mu.Unlock()
				begin := time.Now()
				eventually(t, "a plan without the frozen host", func() bool { return m.plannedOn(hosts) != on })
				if took := time.Since(begin); took > 2*time.Second {
					t.Errorf("a frozen host was in the plan for %v", took)
				}
				eventually(t, "a plan with the other host", func() bool {
					other := m.plannedOn(hosts)
					return other != nil && other != on && other.holds(digest)
				})
			})
		})
	}
}

// A slow host answers every probe late, but within the limit: it stays in the plan. One whose answers take about as
// long as the limit leaves the plan once and does not come back, since the plan has another host.
func TestPlacer_SlowHost_DoesNotFlap(t *testing.T) {
	for name, tc := range map[string]struct {
		late  []time.Duration
		stays bool
	}{
		"slow":                {[]time.Duration{1300 * time.Millisecond}, true},
		"about at the limit":  {[]time.Duration{1500 * time.Millisecond, 1300 * time.Millisecond}, false},
		"sometimes too quick": {[]time.Duration{1500 * time.Millisecond, 100 * time.Millisecond}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, hosts, on := placedMesh(t)
				n := 0
				on.mu.Lock()
				on.late = func() time.Duration {
					on.mu.Lock()
					defer on.mu.Unlock()
					n++
					return tc.late[n%len(tc.late)]
				}
				on.mu.Unlock()
				changes, last := 0, on
				for range 2400 { // two minutes
					<-time.After(50 * time.Millisecond)
					if now := m.plannedOn(hosts); now != last {
						changes, last = changes+1, now
					}
				}
				if want := map[bool]int{true: 0, false: 1}[tc.stays]; changes != want || (last == on) != tc.stays {
					t.Errorf("the host of the plan has changed %d times, want %d", changes, want)
				}
			})
		})
	}
}
