package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
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
	dialer *rpc.Dialer
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
	m := &Mesh{done: make(chan error, 1)}
	network := memnet.New()
	m.dialer = rpc.NewDialer(rpc.DialOptions{Net: network})
	p := &process{
		log: cfg.Log, kernels: cfg.Kernels, network: network, registry: discovery.NewMemory(), dialer: m.dialer, metrics: obs.NewRegistry(),
	}
	err := m.settings(p, cfg)
	if err == nil {
		err = p.build("memory", "tokenizer", "shards", "sampler", "trainer", "router api", "pipelines", "public api", "http")
	}
	if err != nil {
		return nil, errors.Join(err, p.close(), m.dialer.Close())
	}
	ctx, m.cancel = context.WithCancel(ctx)
	ready := make(chan struct{})
	go func() {
		err := lifecycle.Run(ctx, func() { close(ready) }, p.parts...)
		m.done <- errors.Join(err, m.dialer.Close(), p.close())
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

// settings turns the mesh's configuration into those of its process.
func (m *Mesh) settings(p *process, c MeshConfig) error {
	p.set = settings{
		bound: m.set(&m.grpcAddr), publicAddr: c.GRPC, insecure: c.Insecure, trimInterval: c.TrimInterval, train: c.Train,
		router: RouterConfig{HTTP: c.HTTP, Bound: m.set(&m.httpAddr), Speculation: c.Speculation, HiddenType: c.HiddenType},
	}
	p.set.router.Speculation.Draft = "" // a path here, a name to the router
	if c.Train {
		p.set.runsDir = cmp.Or(c.RunsDir, "runs")
	}
	for i := range c.Trainers {
		p.set.shards = append(p.set.shards, shardSetting{name: fmt.Sprintf("shard-train-%d", i), kvPositions: c.KVPositions, train: true})
	}
	if c.Model == "" {
		return nil
	}
	served, err := p.open(c.Model, c.Name)
	if err != nil {
		return err
	}
	if layers := len(served.files.Spec.Layers); c.Stages > layers {
		return fault.Field("stages", "%d are more than the model's %d layers", c.Stages, layers)
	}
	p.set.tokenizer = TokenizerConfig{Model: c.Model, Name: served.name}
	p.set.pipelines = c.Replicas
	if path := c.Speculation.Draft; path != "" {
		draft, err := p.open(path, "")
		if err != nil {
			return err
		}
		name := draft.name
		if name == served.name || draft.digest == served.digest {
			name = served.name + "-draft" // the router tells the two by their names
		}
		p.set.draft = shardSetting{name: "shard-draft", model: path, as: name, kvPositions: c.KVPositions}
		p.set.shards = append(p.set.shards, p.set.draft)
		p.set.router.Speculation.Draft = name
		p.set.pipelines++
	}
	for r := range c.Replicas {
		for i := range c.Stages {
			p.set.shards = append(p.set.shards, shardSetting{
				name: fmt.Sprintf("shard-%d-%d", r, i), model: c.Model, as: served.name, layers: fmt.Sprintf("%d/%d", i, c.Stages),
				kvPositions: c.KVPositions, train: c.Train,
			})
		}
	}
	return nil
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
