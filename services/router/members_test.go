package router_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// A registry that comes back empty lists nobody, and everybody still works.
func TestService_EmptyRegistry_ChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		m := newMesh(t, 2, 2, router.Config{Metrics: r})
		for _, entry := range m.entries {
			if err := entry.Deregister(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 { // long enough for several checks of health
			m.streams(4, 40)
			<-time.After(time.Second)
		}
		if n := counts(t, r, "lamina_router_moves_total"); n != 0 {
			t.Errorf("%d sessions moved", n)
		}
		m.check()
	})
}

// A shard that is being stopped waits for its streams. The router leaves it as soon as it is no longer
// listed, so it need not wait.
func TestService_StoppedShard_IsLeftAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{})
		m.takes(time.Millisecond, 0)
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.streams(8, 300)
		}()
		eventually(t, "work on both pipelines", func() bool {
			return m.shards["shard-0-0"].sessions() > 0 && m.shards["shard-1-0"].sessions() > 0
		})
		if err := m.entries["shard-0-1"].Deregister(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.stops["shard-0-1"]()
		eventually(t, "the shard's streams to be gone", func() bool { return m.shards["shard-0-1"].sessions() == 0 })
		<-done // every stream has its text
		m.check()
	})
}

// Shards that were killed and started again are listed twice, since the health checks of their former entries
// pass as well. Two pipelines over the same processes would be lost together.
func TestService_EntriesOfOneAddress_AreOneMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{})
		for _, name := range []string{"shard-0-0", "shard-0-1"} {
			for _, id := range []string{"a former " + name, "the next " + name} { // one sorts before the name
				entry := discovery.Instance{ID: id, Service: "shard", Addr: "mem:" + name}
				if _, err := m.registry.Register(t.Context(), entry); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.streams(4, 40)
		<-time.After(2 * time.Second)
		resp, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(resp.GetMesh().GetPipelines()); n != 1 {
			t.Errorf("%d pipelines over two processes", n)
		}
		m.check()
	})
}
