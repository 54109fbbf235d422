package app

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/ledger"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// ServiceConfig is the common configuration of services that find each other through Consul.
type ServiceConfig struct {
	Log       *slog.Logger // nil logs nothing
	Listen    string       // gRPC address
	Advertise string       // address for other services; empty for that of Listen
	Metrics   string       // HTTP address of /metrics, /healthz, /readyz; empty for none
	Consul    string       // "host:port"
	Token     string       // for Consul
	Files     rpc.Files
	Insecure  bool
	Access    AccessConfig
	Admin     AdminConfig
	Traces    trace.Config      // where spans go; nowhere by default
	Ready     func(addr string) // called with the bound address
}

// run runs one service until ctx ends. The process has the given targets, and those that every
// process has.
func (c ServiceConfig) run(ctx context.Context, kernels Kernels, set settings, targets ...string) error {
	set.listen, set.advertise, set.bound = c.Listen, c.Advertise, c.Ready
	set.metricsAddr, set.insecure, set.access, set.admin = c.Metrics, c.Insecure, c.Access, c.Admin
	p := &process{log: cmp.Or(c.Log, slog.New(slog.DiscardHandler)), kernels: kernels, set: set,
		metrics: obs.NewRegistry()}
	if err := c.Files.Mutual(); err != nil {
		return err
	}
	if err := p.startTraces(ctx, c.Traces, "lamina-"+targets[0]); err != nil {
		return err
	}
	if set.shareBudgets {
		p.ledgerID = ledger.NewID()
		p.ledger = auth.NewLedger(p.ledgerID, nil)
	}
	if err := p.secure(c.Files); err != nil {
		return errors.Join(err, p.close())
	}
	if p.guard != nil && p.certs == nil && !c.Access.OpenProbes {
		return errors.Join(p.close(), fault.Field("auth-keys", "the Consul agent has no key or token, and could not check the "+
			"health of this service: give --tls-cert, --tls-key and --tls-ca, or --open-probes"))
	}
	registry, err := consul.New(consul.Config{Addr: c.Consul, Token: c.Token, TLS: p.certs != nil})
	if err != nil {
		return errors.Join(err, p.close())
	}
	p.registry, p.dialer = registry, rpc.NewDialer(p.dialOptions())
	p.closers = append(p.closers, registry.Close, p.dialer.Close)
	if err := p.build(append(targets, "memory", "metrics", "admin")...); err != nil {
		return errors.Join(err, p.close())
	}
	return p.run(ctx, func() { p.log.Info("serving", "targets", targets, "address", c.Listen) })
}

// TokenizerConfig is the configuration of a tokenizer.
type TokenizerConfig struct {
	Model, Name string // the model whose vocabulary is always loaded
	// Library is a folder of more models, whose vocabularies are loaded on demand; Models is
	// the maximum number to keep. Texts is the folder of texts on which vocabularies may be
	// trained. Either folder may be empty for none.
	Library, Texts string
	Models         int
	// Store is the folder of the store of models; empty for none. The vocabularies of its models are loaded on demand,
	// and those of models that shards have are fetched into it. Model may then be empty.
	Store string
}

// Tokenizer runs the tokenizer service until ctx ends.
func Tokenizer(ctx context.Context, c ServiceConfig, t TokenizerConfig) error {
	return c.run(ctx, Kernels{}, settings{tokenizer: t}, "tokenizer")
}

// Sampler runs the sampler service until ctx ends.
func Sampler(ctx context.Context, c ServiceConfig) error {
	return c.run(ctx, Kernels{}, settings{}, "sampler")
}

// ShardConfig is the configuration of a shard.
type ShardConfig struct {
	Kernels     Kernels
	Model       string // empty for a shard without layers
	Name        string
	Layers      string // "LO:HI", "I/N" for the I-th of N even parts, "none", or empty for all
	KVPositions int
	Train       bool
	NATS        nats.Config // for gradient events, if Train is set
	// RunsDir is the trainer's folder of runs, if this machine has it; empty if not. Stages read and write
	// checkpoints there.
	RunsDir string
	// AdapterBytes bounds the memory of adapters; 0 means 1 GiB.
	AdapterBytes int64
	// Auto says that the shard takes its layers from the placer; Model and Layers are then empty.
	Auto *AutoShard
	// Host names the machine; empty finds a name. Replicas on shards with the same name exchange gradients directly.
	Host string
	// Drain is how long the current steps of training runs may still take when the shard is stopped; 0 for the
	// default.
	Drain time.Duration
}

// Shard runs a shard until ctx ends.
func Shard(ctx context.Context, c ServiceConfig, s ShardConfig) error {
	set := settings{train: s.Train, nats: s.NATS, leave: s.Drain, runs: TrainerConfig{Dir: s.RunsDir}}
	set.shards = []shardSetting{{
		name: "shard", model: s.Model, as: s.Name, layers: s.Layers, kvPositions: s.KVPositions, train: s.Train,
		adapterBytes: s.AdapterBytes, auto: s.Auto, host: s.Host,
	}}
	return c.run(ctx, s.Kernels, set, "shards")
}

// ParseLayers parses a range of layers of a model with the given number of layers.
func ParseLayers(text string, layers int) (model.Range, error) {
	bad := func() (model.Range, error) {
		return model.Range{}, fault.Field("layers",
			"parse %q: want LO:HI, or I/N for part I (from 0) of N; the model has %d layers", text, layers)
	}
	if text == "" {
		return model.Range{Lo: 0, Hi: layers}, nil
	}
	if a, b, ok := strings.Cut(text, "/"); ok {
		i, err1 := strconv.Atoi(a)
		n, err2 := strconv.Atoi(b)
		if err1 != nil || err2 != nil || n < 1 || n > layers || i < 0 || i >= n {
			return bad()
		}
		return model.Split(layers, n)[i], nil
	}
	a, b, ok := strings.Cut(text, ":")
	lo, err1 := strconv.Atoi(a)
	hi, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || lo < 0 || hi > layers || lo >= hi {
		return bad()
	}
	return model.Range{Lo: lo, Hi: hi}, nil
}

// Speculation configures the speculative decoding of a router.
type Speculation struct {
	IDs   int    // maximum number of draft tokens in a step; 0 for none
	Draft string // the draft model: a path for a mesh, a name or digest for a router; empty for none
	// MinProbability ends the proposals of a round: a draft token of lower probability is the last.
	MinProbability float64
}

// draftIDs is the default of IDs for a draft model.
const draftIDs = 5

func (s Speculation) ids() int {
	if s.IDs == 0 && s.Draft != "" {
		return draftIDs
	}
	return s.IDs
}

// RouterConfig is the configuration of a router.
type RouterConfig struct {
	HTTP        string // address of the HTTP API and console; empty for none
	Speculation Speculation
	HiddenType  tensorv1.ElementType // of hidden states between stages; 0 is float32
	Scheduling  Scheduling
	Placing     Placing
	Bound       func(addr string) // called with the bound HTTP address
	// NATS is the server for the journal of resumable requests; none if it has no URL. A mesh with a NATS
	// server of its own uses that.
	NATS  nats.Config
	Drain time.Duration // how long requests may still run after a stop; 0 means 20 s
	// Adapters are offered from the start on. AdapterDir is where the router keeps adapters that it is sent; empty
	// means that it takes none. AdapterDisk bounds the bytes of its files; 0 means 8 GiB.
	Adapters    []Adapter
	AdapterDir  string
	AdapterDisk int64
	// MetricsPrefix is the prefix of the metrics with vLLM's names; empty means "vllm:", and "none" leaves them out.
	MetricsPrefix string
	// Tools is the file of the tools that the router runs for requests (docs/tools.md); empty for none.
	Tools   string
	Batches Batches
}

// Batches are the settings of batches of requests. Zero values mean the defaults of batches.Limits.
type Batches struct {
	Dir      string // where the router keeps them with their files; empty means that it takes none
	Disk     int64  // bytes of all files
	Requests int    // that run at a time
}

// Scheduling holds the settings of a router's schedulers. Zero values mean the defaults of
// router.Config.
type Scheduling struct {
	Queue     int           // requests that may wait for a pipeline
	CacheIdle time.Duration // how long unused pages of prompts stay in the prefix cache; below 0 turns it off
	StepFloor time.Duration // the shortest step deadline while a spare pipeline exists
	// ProbeLimit is how long a new pipeline may take for its first tokens.
	ProbeLimit time.Duration

	ReplayShare  float64 // the budget for positions that are computed again, as in router.Config
	ReplayBurst  int
	ReplayRefill time.Duration
	ChunkRows    int           // the most rows of one prompt in a batch
	Hedge        time.Duration // the shortest time after which a late first token is hedged; below 0 turns it off
	// MicroBatches is how many batches may be in flight on a pipeline.
	MicroBatches int
	ReadLimit    time.Duration // how long a client may read nothing before it is disconnected
	// MixClasses lets a pipeline have stages of several kernel classes, such as GPUs and processors, if no class has
	// all layers.
	MixClasses bool
}

// Router runs a router until ctx ends: the gRPC API, the HTTP API and the console.
func Router(ctx context.Context, c ServiceConfig, r RouterConfig) error {
	return c.run(ctx, Kernels{}, settings{router: r, shareBudgets: true}, "http", "router api")
}

// TrainerConfig holds the folders of a trainer.
type TrainerConfig struct {
	Dir        string   // of training runs; "runs" if empty
	Data       string   // of the files that manifests name; the working folder if empty
	AllowPaths []string // further folders for files that manifests name
	AllowWrite []string // further folders for the files of runs
	Standby    bool     // take up runs of Dir whose trainer has gone
	Transient  bool     // it ends with its only run, and writes into the run's folder alone
	Programs   bool     // manifests may name programs that score answers

	models map[string]string // served by the same process, which manifests may start from by their names
}

// Trainer runs the trainer service until ctx ends.
func Trainer(ctx context.Context, c ServiceConfig, t TrainerConfig) error {
	t.Dir = cmp.Or(t.Dir, "runs")
	return c.run(ctx, Kernels{}, settings{runs: t}, "trainer")
}
