package app

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/journal"
	journalnats "github.com/lamina-mesh/lamina/pkg/journal/nats"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/pkg/swarm"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/router/anthropic"
	"github.com/lamina-mesh/lamina/services/router/batches"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/kserve"
	"github.com/lamina-mesh/lamina/services/router/ollama"
	"github.com/lamina-mesh/lamina/services/router/openai"
	"github.com/lamina-mesh/lamina/services/router/openapi"
	"github.com/lamina-mesh/lamina/services/router/responses"
	"github.com/lamina-mesh/lamina/services/router/vllm"
	"github.com/lamina-mesh/lamina/services/sampler"
	"github.com/lamina-mesh/lamina/services/shard"
	"github.com/lamina-mesh/lamina/services/tokenizer"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// target is a component of a process. build creates it and adds its parts to the process. Parts
// start in the order of the table and stop in reverse order. The targets that a target needs are
// built before it.
type target struct {
	name  string
	needs []string
	build func(*process) error
}

// targets returns the table of all components that a process of Lamina may have, in the order in
// which they start.
func targets() []target {
	return []target{
		{"memory", nil, (*process).buildMemory},
		{"metrics", nil, (*process).buildMetrics},
		{"admin", nil, (*process).buildAdmin},
		{"bus", nil, (*process).buildBus},
		{"tokenizer", nil, (*process).buildTokenizer},
		{"shards", []string{"bus"}, (*process).buildShards},
		{"sampler", nil, (*process).buildSampler},
		{"trainer", []string{"bus"}, (*process).buildTrainer},
		{"journal", nil, (*process).buildJournal},
		{"router", []string{"journal"}, (*process).buildRouter},
		// it starts early, so that /readyz can report that the process is not ready
		{"http", []string{"router"}, (*process).buildHTTP},
		{"router api", []string{"router"}, (*process).buildRouterAPI},
		{"pipelines", []string{"router"}, (*process).buildPipelines},
		{"public api", []string{"router", "trainer"}, (*process).buildPublicAPI},
	}
}

// build builds the named targets and those that they need. Targets whose settings are empty add
// nothing.
func (p *process) build(names ...string) error {
	wanted := map[string]bool{}
	table := targets()
	for _, name := range names {
		wanted[name] = true
	}
	for i := len(table) - 1; i >= 0; i-- { // the needs of a target precede it in the table
		if wanted[table[i].name] {
			for _, need := range table[i].needs {
				wanted[need] = true
			}
		}
	}
	for _, t := range table {
		if !wanted[t.name] {
			continue
		}
		if err := t.build(p); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) buildMemory() error {
	p.add(memoryPart(cmp.Or(p.set.trimInterval, trimInterval), p.trimAll))
	return nil
}

func (p *process) buildMetrics() error {
	if p.set.metricsAddr != "" {
		p.add(p.httpPart("metrics", p.set.metricsAddr, p.probes(nil), nil))
	}
	return nil
}

// buildBus connects to NATS. In a mesh it starts a NATS server in this process.
func (p *process) buildBus() error {
	if !p.set.train {
		return nil
	}
	if p.network != nil {
		return p.embedBus()
	}
	c := p.set.nats
	c.Log = p.log
	bus, err := nats.Connect(c)
	if err != nil {
		return err
	}
	p.bus = bus
	p.closers = append(p.closers, bus.Close)
	p.waits = append(p.waits, wait{"nats at " + p.set.nats.URL, bus.Await})
	return nil
}

func (p *process) buildTokenizer() error {
	c := p.set.tokenizer
	if c.Model == "" && c.Store == "" {
		return nil
	}
	config := tokenizer.Config{Texts: c.Texts, MaxModels: c.Models}
	if c.Library != "" {
		config.Open = tokenizer.NewLibrary(c.Library).Open
	}
	if c.Store != "" {
		v := &vocabularies{p: p, library: config.Open}
		var err error
		if v.store, err = store.Open(c.Store, store.Options{}); err != nil {
			return err
		}
		p.closers = append(p.closers, v.store.Close)
		p.add(runPart("vocabularies", v.run))
		config.Open = v.open
	}
	if c.Model == "" {
		return p.serveTokenizer(config)
	}
	m, err := p.open(c.Model, c.Name)
	if err != nil {
		return err
	}
	known, err := m.vocabulary()
	if err != nil {
		return err
	}
	config.Models = []tokenizer.Model{known}
	if d := p.set.draft; d.model != "" {
		draft, err := p.open(d.model, d.as)
		if err != nil {
			return err
		}
		if draft.digest != m.digest {
			drafts, err := draft.vocabulary()
			if err == nil {
				err = sameVocabulary(known, drafts)
			}
			if err != nil {
				return err
			}
			config.Models = append(config.Models, drafts)
		}
	}
	return p.serveTokenizer(config)
}

func (p *process) serveTokenizer(config tokenizer.Config) error {
	s, err := tokenizer.New(config)
	if err != nil {
		return err
	}
	p.tokenizer = s
	p.serve(server{kind: "tokenizer", name: "tokenizer", services: services{s}})
	return nil
}

// shardSetting is the configuration of one shard of a process.
type shardSetting struct {
	name        string
	model, as   string // file or folder, and the name of the model; without a model the shard holds no layers
	layers      string // in the form of ParseLayers
	kvPositions int
	train       bool
	// adapterBytes bounds the memory of adapters; 0 means the default.
	adapterBytes int64
	auto         *AutoShard // it takes its layers from the placer; nil for others
	wanted       *wanted    // models of the mesh's store that it offers besides
	host         string     // the machine; empty finds a name
	kernels      Kernels    // an empty Set means those of the process
}

func (p *process) buildShards() error {
	var measured []*shard.Service
	var following []*follower
	for _, set := range p.set.shards {
		id := set.name
		if p.network == nil {
			id = newID("shard")
		}
		c := shard.Config{
			Log: p.log, Dialer: p.dialer, Kernels: p.kernels.Set, Threads: p.kernels.Threads,
			KVPositions: set.kvPositions, ID: id, Host: cmp.Or(set.host, machineName()), Tracer: p.tracer,
			AdapterBytes: set.adapterBytes,
			// The label distinguishes the shards of one process.
			Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"shard": set.name}, p.metrics),
		}
		meta := map[string]string{}
		if set.train && p.bus != nil {
			c.Bus = p.bus
			if p.set.runs.Dir != "" {
				c.Runs = checkpoint.Dir(p.set.runs.Dir)
			}
			meta[trainer.TrainsMeta] = "true"
		}
		var live liveMeta
		if set.auto != nil {
			c.Assignable, c.Zone = true, set.auto.Zone
		}
		if set.kernels.Set != nil {
			c.Kernels, c.Threads = set.kernels.Set, set.kernels.Threads
		} else if set.auto != nil { // the processors compute
			c.Quota = cputime.ReadQuota(os.DirFS("/"))
		}
		if set.auto != nil {
			var err error
			if c.Memory, err = autoMemory(*set.auto, c.Kernels, len(p.set.shards)); err != nil {
				return err
			}
		}
		s, files := shard.New(c), swarm.NewServer()
		p.closers = append(p.closers, s.Close) // also if what follows fails; it may be called again
		p.trimmers = append(p.trimmers, s)
		if set.auto != nil {
			f, err := p.newFollower(id, s, files, set)
			if err != nil {
				return err
			}
			p.closers = append(p.closers, f.close)
			if err := p.offerModels(s, set, f); err != nil {
				return err
			}
			if set.auto.ModelDir != "" || f.store != nil {
				following = append(following, f)
			}
			live, measured = s, append(measured, s)
		} else if set.model != "" && set.layers != "none" {
			m, err := p.open(set.model, set.as)
			if err != nil {
				return err
			}
			layers, err := ParseLayers(set.layers, len(m.files.Spec.Layers))
			if err != nil {
				return err
			}
			if err := s.Hold(m.name, m.digest, m.files, layers); err != nil {
				return err
			}
			files.Share(m.name, m.digest, set.model)
			meta["model"], meta["digest"], meta["layers"] = m.name, m.digest, fmt.Sprintf("%d-%d", layers.Lo, layers.Hi)
		}
		p.closers = append(p.closers, s.Close) // before the files
		p.serve(server{kind: "shard", name: set.name, id: id, services: services{s, files}, meta: meta, live: live,
			leave: s.Drain, failing: s})
	}
	p.addMeasuring(measured, following)
	return nil
}

func (p *process) buildSampler() error {
	s := sampler.New(sampler.Config{Log: p.log, Metrics: p.metrics, Tracer: p.tracer})
	p.serve(server{kind: "sampler", name: "sampler", services: services{s}})
	return nil
}

// standbyEvery is how often a standby trainer looks for runs.
const standbyEvery = 2 * time.Second

func (p *process) buildTrainer() error {
	if p.set.runs.Dir == "" {
		return nil
	}
	standby := time.Duration(0)
	if p.set.runs.Standby {
		standby = standbyEvery
	}
	p.trainer = trainer.New(trainer.Config{
		Log: p.log, Dialer: p.dialer, Registry: p.registry, Dir: p.set.runs.Dir, Data: p.set.runs.Data,
		AllowPaths: p.set.runs.AllowPaths, AllowWrite: p.set.runs.AllowWrite, Models: p.set.runs.models,
		Standby: standby, Transient: p.set.runs.Transient, Runner: programs(p.set.runs.Programs, p.log),
		Metrics: p.metrics,
	})
	p.add(runPart("trainer runs", p.trainer.Run))
	p.serve(server{kind: "trainer", name: "trainer", services: services{p.trainer}, public: true})
	return nil
}

// journalBytes bounds the journal of requests in the memory of a mesh.
const journalBytes = 64 << 20

// buildJournal connects the journal of requests: to the NATS server of this process if there is one, or
// to the one that the settings name. Without either, requests are resumed only at their own router. A
// server that cannot be reached delays nothing.
func (p *process) buildJournal() error {
	var conn *natsgo.Conn
	var err error
	c := journalnats.Config{}
	switch {
	case p.embedded != nil:
		c = journalnats.Config{Memory: true, Limits: journal.Limits{Bytes: journalBytes}}
		conn, err = p.embedded.Dial()
	case p.set.router.NATS.URL != "":
		conn, err = nats.Dial(p.set.router.NATS)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	j, err := journalnats.New(conn, c)
	if err != nil {
		conn.Close()
		return err
	}
	p.closers = append(p.closers, j.Close)
	p.journal = j
	p.add(runPart("journal", func(ctx context.Context) error {
		_ = lifecycle.Retry(ctx, p.log, "the journal of requests", limited(j.Open)) // the first record tells more
		<-ctx.Done()
		return nil
	}))
	return nil
}

// config returns the settings of the router service.
func (c RouterConfig) config() router.Config {
	speculation, scheduling := c.Speculation, c.Scheduling
	return router.Config{
		Speculate: speculation.ids(), Draft: speculation.Draft, DraftMinProb: speculation.MinProbability,
		HiddenType: c.HiddenType, Queue: scheduling.Queue, CacheIdle: scheduling.CacheIdle,
		StepFloor: scheduling.StepFloor, ChunkRows: scheduling.ChunkRows, ReplayShare: scheduling.ReplayShare,
		ReplayBurst: scheduling.ReplayBurst, ReplayRefill: scheduling.ReplayRefill,
		MicroBatches: scheduling.MicroBatches, Hedge: scheduling.Hedge, ReadLimit: scheduling.ReadLimit,
		ProbeLimit:    scheduling.ProbeLimit,
		MetricsPrefix: c.MetricsPrefix, MixClasses: scheduling.MixClasses,
	}
}

func (p *process) buildRouter() error {
	if err := obs.CheckPrefix(p.set.router.MetricsPrefix); err != nil {
		return err
	}
	adapters, err := p.adapterSources()
	if err != nil {
		return err
	}
	c := p.set.router.config()
	c.Adapters, c.AdapterDir, c.AdapterDisk = adapters, p.set.router.AdapterDir, p.set.router.AdapterDisk
	c.Log, c.Metrics, c.Dialer, c.Registry, c.Journal = p.log, p.metrics, p.dialer, p.registry, p.journal
	c.Placement, c.Tracer = p.set.router.Placing.placement(p), p.tracer
	c.Meters = p.guard // a nil guard has no budgets
	p.router = router.New(c)
	p.add(runPart("router pipelines", p.router.Run))
	p.shareBudgets()
	return nil
}

func (p *process) buildRouterAPI() error {
	p.serve(server{kind: "router", name: "router", services: p.routerAPIs(), public: true, drain: p.router.Drain})
	return nil
}

// routerAPIs returns the gRPC APIs of the router.
func (p *process) routerAPIs() services {
	return services{p.router, kserve.NewGRPC(p.router.Backend(), p.set.router.Scheduling.ReadLimit)}
}

// buildPipelines delays the readiness of a mesh until its pipelines are ready.
func (p *process) buildPipelines() error {
	if p.set.pipelines > 0 {
		part := awaitPart("pipelines", p.awaitServed)
		part.StartLimit = 2 * p.set.router.Scheduling.ProbeLimit // 0 is the default
		p.add(part)
	}
	return nil
}

// buildPublicAPI serves the router and the trainer of a mesh to its users, on one address.
func (p *process) buildPublicAPI() error {
	if p.set.publicAddr == "" {
		return nil
	}
	served := p.routerAPIs()
	if p.trainer != nil {
		served = append(served, p.trainer)
	}
	p.serve(server{
		kind: "router", name: "public", services: served, public: true, addr: p.set.publicAddr, bound: p.set.bound,
		// The registry of the mesh has these services under their in-memory addresses already.
		registry: discovery.NewMemory(), drain: p.router.Drain,
	})
	return nil
}

// buildHTTP serves the HTTP APIs, the console, metrics and probes.
func (p *process) buildHTTP() error {
	if p.set.router.HTTP == "" {
		return nil
	}
	b := p.router.Backend()
	mux := p.probes(b.Ready)
	limit := p.set.router.Scheduling.ReadLimit
	tools, err := p.serverTools(p.set.router.Tools)
	if err != nil {
		return err
	}
	o := httpapi.Options{Log: p.log, WriteTimeout: limit, Tools: tools}
	// It ends after the router has been drained, since it starts before, and before the router ends.
	jobs := batches.New(batches.Options{
		Options: o, Dir: p.set.router.Batches.Dir, Handler: mux, Guard: p.guard, Lowest: router.Lowest,
		Limits:  batches.Limits{Disk: p.set.router.Batches.Disk, Requests: p.set.router.Batches.Requests},
		Metrics: p.metrics, Fail: openai.Fail(o), Error: openai.ErrorObject,
	})
	p.add(runPart("batches", jobs.Run))
	config, err := p.consoleOptions(o)
	if err != nil {
		return err
	}
	httpapi.Register(mux, httpAPIs(b, jobs, config)...)
	mux.Handle("/v1/", openai.Unknown(o))
	mux.Handle("/", console.Pages())
	p.add(p.httpPart("http", p.set.router.HTTP, mux, p.set.router.Bound))
	return nil
}

// httpAPIs returns the HTTP APIs with all their routes. The options of the console include those of all APIs.
func httpAPIs(b *router.Backend, jobs *batches.Service, config console.Options) []httpapi.API {
	o := config.Options
	fail := openai.Fail(o)
	apis := []httpapi.API{
		openai.Routes(b, o),
		responses.Routes(b, responses.Options{Options: o, Fail: fail, Error: openai.ErrorObject}),
		jobs.Routes(),
		anthropic.Routes(b, o),
		ollama.Routes(b, o),
		vllm.Routes(b, vllm.Options{Options: o, Fail: fail}),
		kserve.Routes(b, o),
		console.Routes(b, config),
	}
	return append(apis, openapi.Routes(apis, fail, o.Log))
}
