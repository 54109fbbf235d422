package trainer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// takingRouter takes every adapter.
type takingRouter struct {
	routerv1.UnimplementedRouterServiceServer
	taken chan string // the names
}

func (r *takingRouter) LoadAdapter(
	stream grpc.ClientStreamingServer[routerv1.LoadAdapterRequest, routerv1.LoadAdapterResponse],
) error {
	first, err := stream.Recv()
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	r.taken <- first.GetOpen().GetName()
	return stream.SendAndClose(&routerv1.LoadAdapterResponse{})
}

// startRouters starts a trainer, and a router at mem:there; one at mem:gone is registered, too. The run that it
// returns publishes.
func startRouters(ctx context.Context, t *testing.T, p *Publish) (*run, *takingRouter, chan struct{}) {
	t.Helper()
	network, registry := memnet.New(), discovery.NewMemory()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	for _, name := range []string{"gone", "there"} {
		i := discovery.Instance{ID: name, Service: "router", Addr: "mem:" + name}
		if _, err := registry.Register(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
	router := &takingRouter{taken: make(chan string, 1)}
	server := rpc.NewServer(rpc.ServerOptions{})
	routerv1.RegisterRouterServiceServer(server, router)
	l, err := rpc.Listen("mem:there", rpc.ListenOptions{Net: network})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
		if err := dialer.Close(); err != nil {
			t.Error(err)
		}
	})
	s := New(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Dialer: dialer, Registry: registry})
	m := &Manifest{Name: "letters", Publish: p}
	r, stop := newRun(s, m, nil, t.TempDir()), make(chan struct{})
	r.manifest, r.stop = m, stop
	if err := adapter.Write(filepath.Join(r.dir, adapterDir), &adapter.Adapter{
		Config: adapter.Config{Rank: 1, Alpha: 1, Targets: adapter.Pattern{Names: []string{"q_proj"}}},
		Modules: []adapter.Module{{Name: "model.layers.0.self_attn.q_proj", Rank: 1, Scale: 1, In: 2, Out: 1,
			A: []float32{1, 2}, B: []float32{3}}},
	}); err != nil {
		t.Fatal(err)
	}
	return r, router, stop
}

// TestRun_PublishReachesTheRoutersBehindOneThatIsGone publishes to two routers, of which nobody listens at the first.
func TestRun_PublishReachesTheRoutersBehindOneThatIsGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, router, stop := startRouters(ctx, t, &Publish{})
	ended := make(chan error, 1)
	go func() { ended <- r.publish(ctx) }()
	select {
	case name := <-router.taken:
		if name != "letters" {
			t.Errorf("the router has taken %q", name)
		}
	case <-ctx.Done():
		t.Error("the router behind the one that is gone was sent nothing")
	}
	close(stop) // nobody waits for the other one
	if err := <-ended; err != nil && ctx.Err() == nil {
		t.Error(err)
	}
	published := r.state.GetPublished()
	if len(published) != 2 || published[0].GetRouter() != "mem:gone" || published[0].GetError() == "" ||
		published[1].GetRouter() != "mem:there" { // the answer of the second may have been cut off
		t.Errorf("published %v", published)
	}
}

// A manifest may name one router of the mesh, and no address outside of it.
func TestRun_PublishToTheRouterThatTheManifestNames(t *testing.T) {
	for addr, fails := range map[string]string{"mem:there": "", "mem:elsewhere": "publish.router"} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		r, router, _ := startRouters(ctx, t, &Publish{Router: addr, Name: "mine"})
		if err := r.publish(ctx); err != nil {
			t.Fatal(err)
		}
		published := r.state.GetPublished()
		if len(published) != 1 || published[0].GetRouter() != addr ||
			!strings.Contains(published[0].GetError(), fails) ||
			(published[0].GetError() == "") != (fails == "") {
			t.Errorf("%s: published %v", addr, published)
		}
		select {
		case name := <-router.taken:
			if fails != "" || name != "mine" {
				t.Errorf("%s: the router has taken %q", addr, name)
			}
		default:
			if fails == "" {
				t.Errorf("%s: the router has taken nothing", addr)
			}
		}
	}
}
