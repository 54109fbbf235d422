package agent_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/discovery/discoverytest"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

func TestMain(m *testing.M) { leak.Main(m) }

// start starts an agent and returns a registry that uses it.
func start(t *testing.T) (*agent.Agent, *consul.Registry) {
	t.Helper()
	a, err := agent.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	r, err := consul.New(consul.Config{Addr: a.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a, r
}

// serve runs a gRPC server that passes health checks until stop.
func serve(t *testing.T) (addr string, stop func()) {
	t.Helper()
	l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, rpc.NewServer(rpc.ServerOptions{}), l, nil) }()
	return l.Addr().String(), sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// await reads lists until one has n instances.
func await(t *testing.T, ch <-chan []discovery.Instance, n int) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		select {
		case state := <-ch:
			if len(state) == n {
				return
			}
		case <-limit:
			t.Fatalf("waited for %d instances", n)
		}
	}
}

func TestAgent_KeepsTheContractThroughTheAdapterForConsul(t *testing.T) {
	_, r := start(t)
	discoverytest.Run(t, r, serve)
	version, err := r.Version(t.Context())
	if err != nil || consul.Older(version, consul.Floor) {
		t.Errorf("version %q, %v", version, err)
	}
}

func TestAgent_ListsOnlyWhatPassesItsCheck(t *testing.T) {
	a, r := start(t)
	addr, stop := serve(t)
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := r.Watch(ctx, "shard")
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Register(ctx, discovery.Instance{ID: "a", Service: "shard", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, 1)
	if got := a.Names()["shard"]; len(got) != 1 || got[0] != addr {
		t.Errorf("names are %v", a.Names())
	}
	stop()
	await(t, ch, 0)
	if err := g.Deregister(ctx); err != nil {
		t.Error(err)
	}
}

func TestAgent_InstancesComeBackAfterAnOutage(t *testing.T) {
	a, r := start(t)
	addr, stop := serve(t)
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := r.Watch(ctx, "shard")
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Register(ctx, discovery.Instance{ID: "a", Service: "shard", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, 1)
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Version(ctx); err == nil {
		t.Error("the stopped agent answers")
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	// It has forgotten everything, so what it lists has registered again. A watch may miss the moment between.
	again, err := r.Watch(ctx, "shard")
	if err != nil {
		t.Fatal(err)
	}
	await(t, again, 1)
	if err := g.Deregister(ctx); err != nil {
		t.Error(err)
	}
	await(t, ch, 0)
}

func TestAgent_JoinsAndLeaves_LeaveNoGhost(t *testing.T) {
	a, r := start(t)
	var addrs []string
	for range 16 {
		addr, stop := serve(t)
		t.Cleanup(stop)
		addrs = append(addrs, addr)
	}
	discoverytest.Churn(t, r, 1000, func(place int) string { return addrs[place] })
	if ids := a.IDs(); len(ids) > 0 {
		t.Errorf("the agent still has %d services", len(ids))
	}
}
