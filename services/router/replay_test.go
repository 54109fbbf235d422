package router_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// spare starts a shard that no chain uses, with the layers of another one, and waits until the router
// knows it.
func (m *mesh) spare(name, like string, change ...func(*fakeShard)) *fakeShard {
	m.t.Helper()
	s := newFakeShard(m.dialer, int(m.shards[like].lo), int(m.shards[like].hi))
	s.layers = m.shards[like].layers
	for _, f := range change {
		f(s)
	}
	m.shards[name] = s
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	m.t.Cleanup(func() { cancel(); wg.Wait() })
	m.serve(ctx, &wg, "shard", name, s.register)
	eventually(m.t, "the description of the spare", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.asked > 0
	})
	return s
}

// again returns how many rows of replays a shard has computed.
func (m *mesh) again(name string) int {
	s := m.shards[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.again
}

// TestService_LostStage_ASpareTakesItsPlace loses each stage of a lone pipeline for good, by a cut and by a
// freeze. Another shard takes its place, and the other stage keeps what it has computed.
func TestService_LostStage_ASpareTakesItsPlace(t *testing.T) {
	const n, tokens = 8, 200
	for stage := range 2 {
		for _, freezes := range []bool{false, true} {
			t.Run(fmt.Sprintf("stage %d, freezes %v", stage, freezes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					metrics := prometheus.NewRegistry()
					m := newMesh(t, 2, 1, router.Config{Metrics: metrics})
					name, other := fmt.Sprintf("shard-0-%d", stage), fmt.Sprintf("shard-0-%d", 1-stage)
					m.spare("spare", name)
					// The deadline of a batch with rows of prompts is longer, so all streams have begun.
					pause := m.pauses(n, tokens, func() {
						m.shards[name].strike(60, func() {
							if freezes { // it answers nothing, and its links stay
								m.network.Silence(name, true)
							} else {
								m.network.Cut(name, true)
							}
						})
					})
					m.network.Silence(name, false) // so that its connections can end
					m.struck(name)
					m.check()
					if rebuilt := counter(t, metrics, "lamina_router_reopens_total", "rebuilt"); rebuilt != 1 {
						t.Errorf("the pipeline was rebuilt %v times", rebuilt)
					}
					if moves := counter(t, metrics, "lamina_router_moves_total", ""); moves != 0 {
						t.Errorf("%v sessions moved", moves)
					}
					spare, rest := m.again("spare"), m.again(other)
					if want := spare * stage; spare == 0 || rest != want {
						t.Errorf("the spare has computed %d rows again, and the other stage %d, want %d", spare, rest,
							want)
					}
					resp, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
					if err != nil {
						t.Fatal(err)
					}
					p := resp.GetMesh().GetPipelines()
					if len(p) != 1 || p[0].GetStages()[stage].GetAddress() != "mem:spare" {
						t.Errorf("the pipelines are %v", p)
					}
					t.Logf("%d rows were replayed, longest pause %v", spare, pause)
					// The step deadline of 250 ms, 100 ms until the scheduler looks, 100 ms for the stage to say
					// that it is there, and the replay.
					if most := 600 * time.Millisecond; pause > most {
						t.Errorf("the longest pause is %v, want at most %v", pause, most)
					}
				})
			})
		}
	}
}
