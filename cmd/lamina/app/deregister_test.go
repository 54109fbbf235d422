package app

// This test is internal because a process makes its registry itself.

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// slowRegistry takes a moment to remove an instance, as Consul does.
type slowRegistry struct {
	*discovery.Memory
	removed atomic.Bool
}

func (r *slowRegistry) Register(ctx context.Context, i discovery.Instance) (discovery.Registration, error) {
	g, err := r.Memory.Register(ctx, i)
	return slowRegistration{g, r}, err
}

type slowRegistration struct {
	discovery.Registration
	registry *slowRegistry
}

func (g slowRegistration) Deregister(ctx context.Context) error {
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	g.registry.removed.Store(true)
	return g.Registration.Deregister(ctx)
}

// A service that has nothing to drain must not end, and its process with it, while the registry still lists it.
func TestProcess_ServiceEndsAfterItIsDeregistered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowRegistry{Memory: discovery.NewMemory()}
		p := &process{log: slog.New(slog.DiscardHandler), network: memnet.New(), registry: r,
			metrics: prometheus.NewRegistry()}
		p.serve(server{kind: "sampler", name: "sampler"})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		if err := p.parts[0].Run(ctx, stop); err != nil { // it is stopped when it is ready
			t.Fatal(err)
		}
		if !r.removed.Load() {
			t.Error("the service has ended, and is still listed")
		}
	})
}
