package router_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
