package router_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/services/router"
)

// gone takes a router that has ended off the registry.
func (m *mesh) gone(name string) {
	m.t.Helper()
	if err := m.entries[name].Deregister(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	m.stops[name]()
}

// A router is killed and leaves an adapter on a shard. One that starts does not know it, and unloads it once there is
// no other router that may offer it. What it offers itself stays.
func TestService_AdapterThatAKilledRouterHasLeft(t *testing.T) {
	left, _ := adapterFolder(t, 0)
	kept, sum := adapterFolder(t, 1)
	stores := [2]string{t.TempDir(), t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		killed := m.peer("killed", router.Config{AdapterDir: stores[0]})
		if _, err := upload(t, killed.client, "left", left, nil); err != nil {
			t.Fatal(err)
		}
		killed.kill()
		m.gone("killed")
		next := m.peer("next", router.Config{AdapterDir: stores[1]})
		if _, err := upload(t, next.client, "kept", kept, nil); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Minute)
		shard := m.shards["shard-0-0"]
		if n := shard.loaded(); n != 2 {
			t.Fatalf("beside another router there are %d adapters, want 2", n)
		}
		m.gone("router")
		eventually(t, "the adapter that is left is unloaded", func() bool { return shard.loaded() == 1 })
		alone := &mesh{t: t, client: next.client, service: next.service}
		alone.mustAnswer(withAdapter("kept", "a prompt", 10), 10, sum, nil)
		if n := shard.loaded(); n != 1 {
			t.Errorf("there are %d adapters, want 1", n)
		}
	})
}
