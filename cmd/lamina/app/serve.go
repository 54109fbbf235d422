package app

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// ServiceConfig is what every service has that finds the others through Consul.
type ServiceConfig struct {
	Log       *slog.Logger // nil logs nothing
	Listen    string       // gRPC address
	Advertise string       // as others reach it; Listen's when empty
	Metrics   string       // HTTP address of /metrics, /healthz, /readyz; empty for none
	Consul    string       // "host:port"
	Token     string       // of Consul
	Files     rpc.Files
	Insecure  bool
	Ready     func(addr string) // told the bound address
}

// run runs one service until ctx ends: the targets of its own, and those of any process.
func (c ServiceConfig) run(ctx context.Context, kernels Kernels, set settings, targets ...string) error {
	tls, err := c.Files.Config()
	if err != nil {
		return err
	}
	registry, err := consul.New(consul.Config{Addr: c.Consul, Token: c.Token, TLS: tls != nil})
	if err != nil {
		return err
	}
	set.listen, set.advertise, set.bound = c.Listen, c.Advertise, c.Ready
	set.metricsAddr, set.insecure = c.Metrics, c.Insecure
	p := &process{
		log: cmp.Or(c.Log, slog.New(slog.DiscardHandler)), kernels: kernels, set: set, tls: tls, registry: registry,
		dialer: rpc.NewDialer(rpc.DialOptions{TLS: tls}), metrics: obs.NewRegistry(),
	}
	p.closers = append(p.closers, registry.Close, p.dialer.Close)
	if err := p.build(append(targets, "memory", "metrics")...); err != nil {
		return errors.Join(err, p.close())
	}
	return p.run(ctx, func() { p.log.Info("serving", "targets", targets, "address", c.Listen) })
}

// TokenizerConfig is what a tokenizer serves.
type TokenizerConfig struct {
	Model, Name string // the model whose vocabulary it always holds
	// Library is a folder of further models, loaded when they are asked for; Models is
	// the most to hold. Texts is the folder that vocabularies are trained on. Empty
	// folders are none.
	Library, Texts string
	Models         int
}

// Tokenizer serves vocabularies.
func Tokenizer(ctx context.Context, c ServiceConfig, t TokenizerConfig) error {
	return c.run(ctx, Kernels{}, settings{tokenizer: t}, "tokenizer")
}

// Sampler serves the sampler.
func Sampler(ctx context.Context, c ServiceConfig) error {
	return c.run(ctx, Kernels{}, settings{}, "sampler")
}

// ShardConfig is what a shard holds and may do.
type ShardConfig struct {
	Kernels     Kernels
	Model       string // empty holds nothing
	Name        string
	Layers      string // "LO:HI", "I/N" for the I-th of N even parts, "none", or empty for all
	KVPositions int
	Train       bool
	NATS        nats.Config // where gradient events go, for a shard that trains
}

// Shard serves layers of a model, and training if asked to.
func Shard(ctx context.Context, c ServiceConfig, s ShardConfig) error {
	set := settings{train: s.Train, nats: s.NATS, shards: []shardSetting{{
		name: "shard", model: s.Model, as: s.Name, layers: s.Layers, kvPositions: s.KVPositions, train: s.Train,
	}}}
	return c.run(ctx, s.Kernels, set, "shards")
}

// ParseLayers reads a layer range of a model of the given depth.
func ParseLayers(text string, layers int) (model.Range, error) {
	bad := func() (model.Range, error) {
		return model.Range{}, fault.Field("layers", "parse %q: want LO:HI, or I/N for part I (from 0) of N, of %d layers", text, layers)
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

// Speculation says how a router speculates: which draft tokens it proposes.
type Speculation struct {
	IDs   int     // most draft tokens after each token; 0 for none
	Draft string  // the draft model: a path to a mesh, a name or digest to a router; empty for none
	Least float64 // a draft token of lower probability is the last of its round; 0 for none
}

// draftIDs is the most draft tokens of a draft model where nothing else is said.
const draftIDs = 5

func (s Speculation) ids() int {
	if s.IDs == 0 && s.Draft != "" {
		return draftIDs
	}
	return s.IDs
}

// RouterConfig is what a router is given beyond what every service is.
type RouterConfig struct {
	HTTP        string // address of the HTTP API and console; empty for none
	Speculation Speculation
	HiddenType  tensorv1.ElementType // of hidden states between stages; 0 is float32
	Bound       func(addr string)    // told the bound HTTP address
}

// Router serves the gRPC API, and the HTTP API and console.
func Router(ctx context.Context, c ServiceConfig, r RouterConfig) error {
	return c.run(ctx, Kernels{}, settings{router: r}, "http", "router api")
}

// Trainer serves training runs, whose files are kept under dir.
func Trainer(ctx context.Context, c ServiceConfig, dir string) error {
	return c.run(ctx, Kernels{}, settings{runsDir: cmp.Or(dir, "runs")}, "trainer")
}
