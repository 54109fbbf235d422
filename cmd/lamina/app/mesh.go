package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// MeshConfig is the configuration of a mesh in one process.
type MeshConfig struct {
	Log     *slog.Logger
	Kernels Kernels
	// StageKernels are those of the stages of the first pipeline, then of the second one, and so on; an empty Set, and
	// what is missing, means Kernels. In a mesh that serves no model they are those of Trainers.
	StageKernels []Kernels
	Model        string // file or folder; empty for a mesh that serves no model
	Name         string // empty for the name of the file or folder
	// Auto are shards that take their layers from the placer, in place of Stages and Replicas.
	Auto        []AutoShard
	Placing     Placing
	Stages      int // number of stages of each pipeline; 0 means 1
	Replicas    int // number of pipelines; 0 means 1
	KVPositions int // in the KV cache of each shard; 0 for the default
	Speculation Speculation
	HiddenType  tensorv1.ElementType // of hidden states between stages; 0 is float32
	Scheduling  Scheduling
	// Adapters are offered from the start on. AdapterDir is where the router keeps adapters that it is sent; empty
	// means that it takes none. AdapterDisk bounds the bytes of its files; 0 means 8 GiB. AdapterBytes bounds the
	// memory of adapters on each shard; 0 means 1 GiB.
	Adapters     []Adapter
	AdapterDir   string
	AdapterDisk  int64
	AdapterBytes int64
	Train        bool          // run NATS and the trainer, and let the shards train
	Trainers     int           // number of shards without a model, for training only
	Runs         TrainerConfig // folders of the trainer
	Store        StoreConfig   // what the console pulls models into; with Auto it can also load them
	GRPC         string        // public address of the APIs of router and trainer; empty for none
	HTTP         string        // address of the HTTP API and the console; empty for none
	Insecure     bool          // allow public addresses that other machines can reach, without TLS or keys
	Files        rpc.Files     // certificate of the public addresses; empty for plaintext
	Access       AccessConfig  // who may use the public addresses
	Admin        AdminConfig   // listener for administrators; none by default
	Traces       trace.Config  // where spans go; nowhere by default
	// MetricsPrefix is that of RouterConfig.
	MetricsPrefix string
	Tools         string // the file of RouterConfig.Tools
	Batches       Batches
	Drain         time.Duration // how long requests may still run after a stop; 0 means 5 s
	// TrimInterval is how often memory that is no longer needed is released; 0 means 10 s.
	TrimInterval time.Duration

	network *memnet.Network // that of a test; nil for a new one
}

// meshSilent is the default of Placing.Silent for a mesh in one process: no host there is silent alone.
const meshSilent = 10 * time.Second

// meshStepFloor is the default of Scheduling.StepFloor for a mesh in one process.
const meshStepFloor = 5 * time.Second

// Mesh runs all services of Lamina in this process, on an in-memory network. Only the public
// addresses are sockets.
type Mesh struct {
	process *process
	dialer  *rpc.Dialer
	cancel  context.CancelFunc
	done    chan struct{} // closed when all parts have ended
	err     error         // of that; read after done

	mu       sync.Mutex
	grpcAddr string
	httpAddr string
}

// Start builds the mesh, starts it, and returns when it is ready.
func Start(ctx context.Context, cfg MeshConfig) (*Mesh, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Stages, cfg.Replicas = max(1, cfg.Stages), max(1, cfg.Replicas)
	m := &Mesh{done: make(chan struct{})}
	network := cfg.network
	if network == nil {
		network = memnet.New()
	}
	p := &process{
		log: cfg.Log, kernels: cfg.Kernels, network: network, registry: discovery.NewMemory(),
		metrics: obs.NewRegistry(),
	}
	if err := p.startTraces(ctx, cfg.Traces, "lamina"); err != nil {
		return nil, err
	}
	m.dialer = rpc.NewDialer(rpc.DialOptions{Net: network, Stats: p.tracer.ClientHandler()})
	m.process, p.dialer = p, m.dialer
	err := m.settings(p, cfg)
	if err == nil {
		err = p.secure(cfg.Files)
	}
	if err == nil {
		err = p.build("memory", "tokenizer", "shards", "sampler", "trainer", "router api", "pipelines", "public api",
			"http", "admin")
	}
	if err != nil {
		return nil, errors.Join(err, p.close(), m.dialer.Close())
	}
	ctx, m.cancel = context.WithCancel(ctx)
	ready := make(chan struct{})
	go func() {
		err := lifecycle.Run(ctx, func() { close(ready) }, p.parts...)
		m.err = errors.Join(err, m.dialer.Close(), p.close())
		close(m.done)
	}()
	select {
	case <-ready:
		return m, nil
	case <-m.done:
		m.cancel()
		if m.err == nil {
			return nil, ctx.Err()
		}
		return nil, m.err
	}
}

// settings fills in the settings of the process from the configuration of the mesh.
func (m *Mesh) settings(p *process, c MeshConfig) error {
	p.set = settings{
		bound: m.set(&m.grpcAddr), publicAddr: c.GRPC, insecure: c.Insecure, access: c.Access, admin: c.Admin,
		trimInterval: c.TrimInterval,
		train:        c.Train,
		store:        c.Store,
		router: RouterConfig{HTTP: c.HTTP, Bound: m.set(&m.httpAddr), Speculation: c.Speculation,
			HiddenType: c.HiddenType, Scheduling: c.Scheduling, Placing: c.Placing, Drain: cmp.Or(c.Drain, meshDrain),
			MetricsPrefix: c.MetricsPrefix, Tools: c.Tools, Batches: c.Batches,
			Adapters: c.Adapters, AdapterDir: c.AdapterDir, AdapterDisk: c.AdapterDisk},
	}
	// In one process no stage can freeze alone, so a late answer means that the machine is busy.
	p.set.router.Placing.Silent = cmp.Or(c.Placing.Silent, meshSilent)
	p.set.router.Scheduling.StepFloor = cmp.Or(c.Scheduling.StepFloor, meshStepFloor)
	// A second pipeline shares the processors with the first one, so it would only make both slower.
	p.set.router.Scheduling.Hedge = cmp.Or(c.Scheduling.Hedge, -1)
	p.set.router.Speculation.Draft = "" // it is a path here, but the router needs a name
	if c.Train {
		p.set.runs = c.Runs
		p.set.runs.Dir = cmp.Or(c.Runs.Dir, "runs")
	}
	for i := range c.Trainers {
		set := shardSetting{name: fmt.Sprintf("shard-train-%d", i), kvPositions: c.KVPositions, train: true}
		if c.Model == "" && i < len(c.StageKernels) {
			set.kernels = c.StageKernels[i]
		}
		p.set.shards = append(p.set.shards, set)
	}
	if c.Model == "" {
		return nil
	}
	served, err := p.open(c.Model, c.Name)
	if err != nil {
		return err
	}
	if layers := len(served.files.Spec.Layers); c.Stages > layers && len(c.Auto) == 0 {
		return fault.Field("stages", "%d stages: the model has only %d layers", c.Stages, layers)
	}
	p.set.tokenizer = TokenizerConfig{Model: c.Model, Name: served.name}
	if c.Train && len(c.Auto) == 0 {
		path, err := filepath.Abs(c.Model)
		if err != nil {
			return err
		}
		p.set.runs.models = map[string]string{served.name: path}
	}
	p.set.pipelines = c.Replicas
	if path := c.Speculation.Draft; path != "" {
		draft, err := p.open(path, "")
		if err != nil {
			return err
		}
		name := draft.name
		if name == served.name || draft.digest == served.digest {
			name = served.name + "-draft" // the router needs two different names
		}
		p.set.draft = shardSetting{name: "shard-draft", model: path, as: name, kvPositions: c.KVPositions}
		p.set.shards = append(p.set.shards, p.set.draft)
		p.set.router.Speculation.Draft = name
		p.set.pipelines++
	}
	if c.Store.Dir != "" && len(c.Auto) > 0 {
		p.wanted = &wanted{digests: map[string]string{}}
	}
	for i, auto := range c.Auto {
		p.set.shards = append(p.set.shards, shardSetting{
			name: fmt.Sprintf("shard-auto-%d", i), model: c.Model, as: served.name, kvPositions: c.KVPositions,
			auto: &auto, kernels: auto.Kernels, wanted: p.wanted, adapterBytes: c.AdapterBytes,
		})
	}
	if len(c.Auto) > 0 && c.Placing.Off {
		p.set.pipelines = 0 // somebody else places layers, or nobody
		return nil
	}
	if len(c.Auto) > 0 {
		p.set.pipelines += max(1, c.Placing.Replicas) - c.Replicas
		return nil
	}
	for r := range c.Replicas {
		for i := range c.Stages {
			set := shardSetting{
				name: fmt.Sprintf("shard-%d-%d", r, i), model: c.Model, as: served.name,
				layers:      fmt.Sprintf("%d/%d", i, c.Stages),
				kvPositions: c.KVPositions, train: c.Train, adapterBytes: c.AdapterBytes,
			}
			if at := r*c.Stages + i; at < len(c.StageKernels) {
				set.kernels = c.StageKernels[at]
			}
			p.set.shards = append(p.set.shards, set)
		}
	}
	return nil
}

// Close stops the mesh and returns when all of its parts have ended. It may be called more than once.
func (m *Mesh) Close() error {
	m.cancel()
	return m.Wait()
}

// Wait returns when the mesh has ended, by itself or with its context.
func (m *Mesh) Wait() error {
	<-m.done
	return m.err
}

// Router returns a connection to the router.
func (m *Mesh) Router() (grpc.ClientConnInterface, error) { return m.dialer.Dial("mem:router") }

// Trainer returns a connection to the trainer.
func (m *Mesh) Trainer() (grpc.ClientConnInterface, error) { return m.dialer.Dial("mem:trainer") }

// Dial returns a connection to an address of the in-memory network. For example, "mem:shard-0-1" is
// stage 1 of replica 0.
func (m *Mesh) Dial(addr string) (*grpc.ClientConn, error) { return m.dialer.Dial(addr) }

// GRPCAddr returns the address of the public gRPC API.
func (m *Mesh) GRPCAddr() string { return m.read(&m.grpcAddr) }

// HTTPAddr returns the address of the HTTP API.
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
