package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/sampler"
	"github.com/lamina-mesh/lamina/services/shard"
	"github.com/lamina-mesh/lamina/services/tokenizer"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// MeshConfig is a whole mesh in one process.
type MeshConfig struct {
	Log         *slog.Logger
	Kernels     Kernels
	Model       string // file or folder; empty serves none
	Name        string // empty: the file's or folder's
	Stages      int    // of each pipeline; 0 means 1
	Replicas    int    // pipelines; 0 means 1
	KVPositions int    // of each shard's cache; 0 for its default
	Speculation Speculation
	HiddenType  tensorv1.ElementType // of hidden states between stages; 0 is float32
	Train       bool                 // run NATS and the trainer, and let the shards train
	Trainers    int                  // shards without a model that only train
	RunsDir     string               // the trainer's folder
	GRPC        string               // public address of the router's and trainer's APIs; empty for none
	HTTP        string               // HTTP face's address; empty for none
	Insecure    bool                 // public listeners may be reachable from elsewhere
	// TrimInterval is how often the memory of a past load is looked for; 0 means 10 s.
	TrimInterval time.Duration
}

// Mesh is all services of Lamina in this process, on an in-memory network. Only the
// router's public addresses are sockets.
type Mesh struct {
	cfg      MeshConfig
	network  *memnet.Network
	registry *discovery.Memory
	dialer   *rpc.Dialer

	cancel context.CancelFunc
	done   chan error

	mu       sync.Mutex
	grpcAddr string
	httpAddr string
}

// Start builds the mesh and returns when it can be asked.
func Start(ctx context.Context, cfg MeshConfig) (*Mesh, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Stages, cfg.Replicas = max(1, cfg.Stages), max(1, cfg.Replicas)
	m := &Mesh{cfg: cfg, network: memnet.New(), registry: discovery.NewMemory(), done: make(chan error, 1)}
	m.dialer = rpc.NewDialer(rpc.DialOptions{Net: m.network})
	parts, cleanup, err := m.parts()
	if err != nil {
		return nil, errors.Join(err, cleanup())
	}
	ctx, m.cancel = context.WithCancel(ctx)
	ready := make(chan struct{})
	go func() {
		err := lifecycle.Run(ctx, func() { close(ready) }, parts...)
		m.done <- errors.Join(err, m.dialer.Close(), cleanup())
	}()
	select {
	case <-ready:
		return m, nil
	case err := <-m.done:
		m.cancel()
		if err == nil {
			err = ctx.Err()
		}
		return nil, err
	}
}

// Close stops the mesh and returns when every part has ended.
func (m *Mesh) Close() error {
	m.cancel()
	return <-m.done
}

// Wait returns when the mesh has ended by itself or its context has.
func (m *Mesh) Wait() error { return <-m.done }

// Router is a connection to the router.
func (m *Mesh) Router() (grpc.ClientConnInterface, error) { return m.dialer.Dial("mem:router") }

// Trainer is a connection to the trainer.
func (m *Mesh) Trainer() (grpc.ClientConnInterface, error) { return m.dialer.Dial("mem:trainer") }

// Dial is a connection to an address of the in-memory network, such as
// "mem:shard-0-1": replica 0, stage 1.
func (m *Mesh) Dial(addr string) (*grpc.ClientConn, error) { return m.dialer.Dial(addr) }

// GRPCAddr is where the router listens for users.
func (m *Mesh) GRPCAddr() string { return m.read(&m.grpcAddr) }

// HTTPAddr is where the HTTP face listens.
func (m *Mesh) HTTPAddr() string { return m.read(&m.httpAddr) }

func (m *Mesh) read(s *string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *s
}

func (m *Mesh) set(s *string) func(string) {
	return func(v string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		*s = v
	}
}

// together is several services on one address.
type together []registerable

// Register adds them all to a server.
func (t together) Register(s grpc.ServiceRegistrar) {
	for _, service := range t {
		service.Register(s)
	}
}

// part serves a service on the in-memory network.
func (m *Mesh) part(service, name string, s registerable, meta map[string]string) lifecycle.Part {
	addr := "mem:" + name
	return grpcPart(name, addr, rpc.ServerOptions{Log: m.cfg.Log}, rpc.ListenOptions{Net: m.network}, s, m.registry,
		discovery.Instance{ID: name, Service: service, Addr: addr, Meta: meta}, nil)
}

// parts builds every part in the order they start, and what to clean up at the end.
func (m *Mesh) parts() ([]lifecycle.Part, func() error, error) {
	var parts []lifecycle.Part
	var closers []func() error
	cleanup := func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	c := m.cfg
	metrics := obs.NewRegistry()
	var bus shard.Bus
	if c.Train {
		b, err := embeddedBus(&closers)
		if err != nil {
			return nil, cleanup, err
		}
		bus = b
	}
	var trimmers []trimmer
	draft := "" // the name of the draft model
	if c.Model != "" {
		files, name, digest, err := openModel(c.Model, c.Name)
		if err != nil {
			return nil, cleanup, err
		}
		closers = append(closers, files.Close)
		known, err := loadModel(files, name, digest)
		if err != nil {
			return nil, cleanup, err
		}
		models := []tokenizer.Model{known}
		if c.Speculation.Draft != "" {
			d, err := m.draft(known, &closers, metrics)
			if err != nil {
				return nil, cleanup, err
			}
			draft = d.model.Name
			if d.model.Digest != digest {
				models = append(models, d.model)
			}
			parts = append(parts, d.shard)
		}
		tok, err := loadTokenizer(tokenizer.Config{}, models...)
		if err != nil {
			return nil, cleanup, err
		}
		parts = append(parts, m.part("tokenizer", "tokenizer", tok, nil))
		if c.Stages > len(files.Spec.Layers) {
			return nil, cleanup, fault.Field("stages", "%d are more than the model's %d layers", c.Stages, len(files.Spec.Layers))
		}
		for r := range c.Replicas {
			for i, layers := range model.Split(len(files.Spec.Layers), c.Stages) {
				shardName := fmt.Sprintf("shard-%d-%d", r, i)
				s := m.shard(shardName, bus, metrics)
				trimmers = append(trimmers, s)
				if err := s.Hold(name, digest, files, layers); err != nil {
					return nil, cleanup, err
				}
				parts = append(parts, m.part("shard", shardName, s, m.trains()))
			}
		}
	}
	for i := range c.Trainers {
		shardName := fmt.Sprintf("shard-train-%d", i)
		parts = append(parts, m.part("shard", shardName, m.shard(shardName, bus, metrics), m.trains()))
	}
	parts = append(parts, m.part("sampler", "sampler", sampler.New(sampler.Config{Log: c.Log, Metrics: metrics}), nil))
	var t *trainer.Service
	if c.Train {
		if c.RunsDir == "" {
			c.RunsDir = "runs"
		}
		t = trainer.New(trainer.Config{Log: c.Log, Dialer: m.dialer, Registry: m.registry, Dir: c.RunsDir})
		parts = append(parts, runPart("trainer runs", t.Run), m.part("trainer", "trainer", t, nil))
	}
	var users together // what the public gRPC address serves
	if t != nil {
		users = append(users, t)
	}
	r := router.New(router.Config{
		Log: c.Log, Metrics: metrics, Dialer: m.dialer, Registry: m.registry,
		Speculate: c.Speculation.ids(), Draft: draft, DraftLeast: c.Speculation.Least, HiddenType: c.HiddenType,
	})
	parts = append(parts, runPart("router pipelines", r.Run), m.part("router", "router", r, nil))
	public := rpc.ListenOptions{Insecure: c.Insecure}
	if c.Model != "" {
		parts = append(parts, m.serving(r))
	}
	if c.GRPC != "" {
		public := grpcPart("router grpc", c.GRPC, rpc.ServerOptions{Log: c.Log, Metrics: metrics, Public: true}, public, append(users, r), discovery.NewMemory(), discovery.Instance{ID: "public", Service: "router"}, m.set(&m.grpcAddr))
		parts = append(parts, public)
	}
	parts = append(parts, memoryPart(cmp.Or(c.TrimInterval, trimInterval), trimmers))
	if c.HTTP != "" {
		parts = append(parts, httpPart(c.HTTP, public, c.Log, r, metrics, m.set(&m.httpAddr)))
	}
	return parts, cleanup, nil
}

func (m *Mesh) trains() map[string]string {
	if m.cfg.Train {
		return map[string]string{trainer.TrainsMeta: "true"}
	}
	return nil
}

// shard makes a shard whose metrics carry its name, since several share the registry.
func (m *Mesh) shard(name string, bus shard.Bus, metrics prometheus.Registerer) *shard.Service {
	return shard.New(shard.Config{
		Log: m.cfg.Log, Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"shard": name}, metrics), Dialer: m.dialer, Kernels: m.cfg.Kernels.Set, Threads: m.cfg.Kernels.Threads, KVPositions: m.cfg.KVPositions, Bus: bus,
	})
}

// serving is ready when every pipeline stands.
func (m *Mesh) serving(r *router.Service) lifecycle.Part {
	return lifecycle.Part{Name: "pipelines", Run: func(ctx context.Context, ready func()) error {
		n := m.cfg.Replicas
		if m.cfg.Speculation.Draft != "" {
			n++
		}
		if err := r.AwaitPipelines(ctx, n); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	}}
}

// embeddedBus starts NATS in this process with a store of its own.
func embeddedBus(closers *[]func() error) (*nats.Bus, error) {
	dir, err := os.MkdirTemp("", "lamina-nats-")
	if err != nil {
		return nil, err
	}
	*closers = append(*closers, func() error { return os.RemoveAll(dir) })
	server, err := nats.NewEmbedded(dir)
	if err != nil {
		return nil, err
	}
	*closers = append(*closers, server.Close)
	bus, err := server.Connect(nats.Config{Memory: true})
	if err != nil {
		return nil, err
	}
	*closers = append(*closers, bus.Close)
	return bus, nil
}
