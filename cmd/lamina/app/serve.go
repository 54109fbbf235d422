package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/sampler"
	"github.com/lamina-mesh/lamina/services/shard"
	"github.com/lamina-mesh/lamina/services/tokenizer"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// ServiceConfig is one service that meets the others through Consul.
type ServiceConfig struct {
	Log       *slog.Logger
	Listen    string // gRPC address
	Advertise string // as others reach it; Listen's when empty
	Metrics   string // HTTP address of /metrics, /healthz, /readyz; empty for none
	Consul    string // "host:port"
	Token     string // of Consul
	Files     rpc.Files
	Insecure  bool
	Ready     func(addr string) // told the bound address
}

// base is what every service is built from.
type base struct {
	ServiceConfig
	registry *consul.Registry
	dialer   *rpc.Dialer
	server   rpc.ServerOptions
	metrics  *prometheus.Registry
	listen   rpc.ListenOptions
	trimmers []trimmer
	closers  []func() error
}

func newBase(c ServiceConfig) (*base, error) {
	tls, err := c.Files.Config()
	if err != nil {
		return nil, err
	}
	registry, err := consul.New(consul.Config{Addr: c.Consul, Token: c.Token, TLS: tls != nil})
	if err != nil {
		return nil, err
	}
	b := &base{ServiceConfig: c, registry: registry, dialer: rpc.NewDialer(rpc.DialOptions{TLS: tls})}
	b.metrics = obs.NewRegistry()
	b.server = rpc.ServerOptions{Log: c.Log, Metrics: b.metrics, TLS: tls}
	b.listen = rpc.ListenOptions{TLS: tls != nil, Insecure: c.Insecure}
	b.closers = append(b.closers, b.dialer.Close)
	return b, nil
}

// run serves a service, and whatever parts come before it, until ctx ends.
func (b *base) run(ctx context.Context, kind string, s registerable, meta map[string]string, before ...lifecycle.Part) error {
	parts := append(before, memoryPart(trimInterval, b.trimmers))
	if b.Metrics != "" {
		parts = append(parts, b.metricsPart())
	}
	parts = append(parts, grpcPart(kind, b.Listen, b.server, b.listen, s, b.registry,
		discovery.Instance{ID: newID(kind), Service: kind, Addr: b.Advertise, Meta: meta}, b.Ready))
	err := lifecycle.Run(ctx, func() { b.Log.Info("serving", "service", kind, "address", b.Listen) }, parts...)
	return errors.Join(err, b.close())
}

func (b *base) close() error {
	var errs []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = append(errs, b.closers[i]())
	}
	return errors.Join(errs...)
}

func (b *base) metricsPart() lifecycle.Part {
	return lifecycle.Part{Name: "metrics", Run: func(ctx context.Context, ready func()) error {
		l, err := rpc.Listen(b.Metrics, b.listen)
		if err != nil {
			return err
		}
		ready()
		return obs.ServeHTTP(ctx, l, obs.Handler(b.metrics, func() error { return nil }), drain)
	}}
}

// TokenizerConfig is what a tokenizer serves.
type TokenizerConfig struct {
	Model, Name string // the model that it holds for good
	// Library is a folder of further models, loaded when they are asked for; Models is
	// the most to hold. Texts is the folder that vocabularies are trained on. Empty
	// folders are none.
	Library, Texts string
	Models         int
}

// Tokenizer serves vocabularies.
func Tokenizer(ctx context.Context, c ServiceConfig, t TokenizerConfig) error {
	b, err := newBase(c)
	if err != nil {
		return err
	}
	files, name, digest, err := openModel(t.Model, t.Name)
	if err != nil {
		return errors.Join(err, b.close())
	}
	b.closers = append(b.closers, files.Close)
	config := tokenizer.Config{Texts: t.Texts, MaxModels: t.Models}
	if t.Library != "" {
		config.Open = tokenizer.NewLibrary(t.Library).Open
	}
	m, err := loadModel(files, name, digest)
	if err != nil {
		return errors.Join(err, b.close())
	}
	s, err := loadTokenizer(config, m)
	if err != nil {
		return errors.Join(err, b.close())
	}
	return b.run(ctx, "tokenizer", s, nil)
}

// Sampler serves the sampler.
func Sampler(ctx context.Context, c ServiceConfig) error {
	b, err := newBase(c)
	if err != nil {
		return err
	}
	return b.run(ctx, "sampler", sampler.New(sampler.Config{Log: c.Log, Metrics: b.server.Metrics}), nil)
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

// Shard serves layers of a model, and training if asked to.
func Shard(ctx context.Context, c ServiceConfig, sc ShardConfig) error {
	b, err := newBase(c)
	if err != nil {
		return err
	}
	cfg := shard.Config{
		Log: c.Log, Metrics: b.server.Metrics, Dialer: b.dialer, Kernels: sc.Kernels.Set, Threads: sc.Kernels.Threads, KVPositions: sc.KVPositions,
	}
	meta := map[string]string{}
	if sc.Train {
		bus, err := nats.Connect(sc.NATS)
		if err != nil {
			return errors.Join(err, b.close())
		}
		b.closers = append(b.closers, bus.Close)
		cfg.Bus = bus
		meta[trainer.TrainsMeta] = "true"
	}
	s := shard.New(cfg)
	b.trimmers = append(b.trimmers, s)
	if sc.Model != "" && sc.Layers != "none" {
		files, name, digest, err := openModel(sc.Model, sc.Name)
		if err != nil {
			return errors.Join(err, b.close())
		}
		b.closers = append(b.closers, files.Close)
		layers, err := ParseLayers(sc.Layers, len(files.Spec.Layers))
		if err == nil {
			err = s.Hold(name, digest, files, layers)
		}
		if err != nil {
			return errors.Join(err, b.close())
		}
		meta["model"], meta["digest"], meta["layers"] = name, digest, fmt.Sprintf("%d-%d", layers.Lo, layers.Hi)
	}
	return b.run(ctx, "shard", s, meta)
}

// Speculation is how a router proposes draft tokens.
type Speculation struct {
	IDs   int     // the most draft tokens after each token; 0 for none
	Draft string  // the draft model: a path to a mesh, a name or digest to a router; empty for none
	Least float64 // a draft token of lower probability is the last of its round; 0 for none
}

// draftIDs is the most draft tokens of a draft model by default.
const draftIDs = 5

func (s Speculation) ids() int {
	if s.IDs == 0 && s.Draft != "" {
		return draftIDs
	}
	return s.IDs
}

// RouterConfig is what a router is given beyond what every service is.
type RouterConfig struct {
	HTTP        string // address of the HTTP face and console; empty for none
	Speculation Speculation
	HiddenType  tensorv1.ElementType // of hidden states between stages; 0 is float32
	Bound       func(addr string)    // told the bound HTTP address
}

// Router serves the gRPC API, and the HTTP face and console.
func Router(ctx context.Context, c ServiceConfig, r RouterConfig) error {
	b, err := newBase(c)
	if err != nil {
		return err
	}
	b.server.Public = true
	s := router.New(router.Config{
		Log: c.Log, Metrics: b.server.Metrics, Dialer: b.dialer, Registry: b.registry,
		Speculate: r.Speculation.ids(), Draft: r.Speculation.Draft, DraftLeast: r.Speculation.Least, HiddenType: r.HiddenType,
	})
	before := []lifecycle.Part{runPart("pipelines", s.Run)}
	if r.HTTP != "" {
		before = append(before, httpPart(r.HTTP, b.listen, c.Log, s, b.metrics, r.Bound))
	}
	return b.run(ctx, "router", s, nil, before...)
}

// Trainer serves training runs, whose files are kept under dir.
func Trainer(ctx context.Context, c ServiceConfig, dir string) error {
	b, err := newBase(c)
	if err != nil {
		return err
	}
	b.server.Public = true
	s := trainer.New(trainer.Config{Log: c.Log, Dialer: b.dialer, Registry: b.registry, Dir: dir})
	return b.run(ctx, "trainer", s, nil, runPart("runs", s.Run))
}
