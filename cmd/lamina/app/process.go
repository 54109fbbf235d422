package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/self"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/tokenizer"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// settings configure the targets of a process. A target whose settings are empty is left out.
type settings struct {
	listen, advertise string            // of the only service, in a process that is not a mesh
	bound             func(addr string) // called with the public gRPC address that was bound
	metricsAddr       string
	publicAddr        string // of a mesh's public gRPC API
	insecure          bool
	access            AccessConfig
	shareBudgets      bool // with the other routers of the registry
	admin             AdminConfig
	trimInterval      time.Duration
	leave             time.Duration // until a shard of its own ends training stages; 0 for the default

	train     bool
	nats      nats.Config
	tokenizer TokenizerConfig
	draft     shardSetting // of a mesh's draft model
	shards    []shardSetting
	runs      TrainerConfig
	router    RouterConfig
	store     StoreConfig
	pipelines int // number of pipelines that a mesh waits for
}

// drainLimit is how long the requests of a router may still run after a stop, and the current steps of training runs.
func (s settings) drainLimit() time.Duration { return cmp.Or(s.router.Drain, s.leave, drainDefault) }

// process holds what the targets of one process share while they are built and run.
type process struct {
	log      *slog.Logger
	kernels  Kernels
	set      settings
	network  *memnet.Network   // of a mesh; nil in a process with one service
	certs    *rpc.Certificates // nil for plaintext
	guard    *auth.Guard       // of the listeners; nil lets everyone in
	ledger   *auth.Ledger      // of a router that shares the budgets of callers with others; nil for none
	ledgerID string
	own      self.Addresses // of the listeners of this process
	registry discovery.Registry
	dialer   *rpc.Dialer
	metrics  *prometheus.Registry
	tracer   *trace.Tracer // nil traces nothing
	pending  pending
	working  atomic.Int32 // shards that have not failed

	// Targets create these for other targets that need them.
	models    map[string]opened // by path
	embedded  *nats.Embedded    // the NATS server of a mesh
	bus       *nats.Bus
	journal   journal.Journal // nil for none
	router    *router.Service
	trainer   *trainer.Service
	tokenizer *tokenizer.Service
	wanted    *wanted // models that the console has loaded; nil without shards that can take them
	trimmers  []trimmer
	waits     []wait // dependencies of the servers that are built from now on

	parts   []lifecycle.Part // in the order they start
	closers []func() error   // called in reverse
}

// wait is a dependency in another process, without which a service is not ready.
type wait struct {
	what string
	try  func(context.Context) error // returns nil when the dependency is available
}

// waitTry is the timeout of one attempt of a wait.
const waitTry = 2 * time.Second

func (p *process) add(part lifecycle.Part) { p.parts = append(p.parts, part) }

// run runs the parts until ctx ends, and then calls the closers.
func (p *process) run(ctx context.Context, ready func()) error {
	return errors.Join(lifecycle.Run(ctx, ready, p.parts...), p.close())
}

func (p *process) close() error {
	var errs []error
	for _, f := range slices.Backward(p.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (p *process) trimAll() bool {
	released := false
	for _, t := range p.trimmers {
		released = t.Trim() || released
	}
	return released
}

// registerable is a service that can be registered with a gRPC server.
type registerable interface{ Register(grpc.ServiceRegistrar) }

// services are the services on one address.
type services []registerable

// server is a gRPC server of a process.
type server struct {
	kind, name string // of the instance in the registry
	id         string // of the instance, in a process with one service; empty for a random one
	services   services
	meta       map[string]string
	live       liveMeta // adds attributes that change; nil for none
	public     bool     // users connect to it, and not only services
	// drain prepares the service for the stop of its server, for which it has until the context ends;
	// nil for nothing.
	drain func(context.Context)
	// leave is like drain, and the server takes calls until it returns.
	leave func(context.Context)
	// failing is a service that may become unable to work. The server then leaves the mesh; nil for others.
	failing failing

	// These override the defaults: the address, bound function and registry of the process, or
	// in a mesh an in-memory address with the name of the server.
	addr     string
	bound    func(string)
	registry discovery.Registry
}

// failing is a service that can fail for good, such as a shard whose device is lost.
type failing interface {
	// Failed returns a channel that is closed then; nil for never. Err then says why.
	Failed() <-chan struct{}
	Err() error
}

// serve adds a server. The server takes calls at once, but its health is NOT_SERVING until its
// dependencies are available and it is registered.
func (p *process) serve(s server) {
	i := discovery.Instance{ID: s.name, Service: s.kind, Meta: s.meta}
	switch {
	case s.addr != "":
	case p.network != nil:
		s.addr = "mem:" + s.name
		i.Addr = s.addr
	default:
		s.addr, s.bound = p.set.listen, p.set.bound
		i.ID, i.Addr = cmp.Or(s.id, newID(s.kind)), p.set.advertise
	}
	if s.registry == nil {
		s.registry = p.registry
	}
	waits := slices.Clone(p.waits)
	p.pending.begin(s.name)
	if s.failing != nil {
		p.working.Add(1)
	}
	run := func(ctx context.Context, ready func()) error {
		l, err := p.listen(s.addr)
		if err != nil {
			return err
		}
		i.Addr = cmp.Or(i.Addr, l.Addr().String())
		if s.bound != nil {
			s.bound(l.Addr().String())
		}
		options := rpc.ServerOptions{Log: p.log, Metrics: p.metrics, Public: s.public, Stats: p.tracer.ServerHandler()}
		if !rpc.InProcess(s.addr) { // a process trusts itself
			options.Guard, options.TLS, options.Certificates = p.guard, p.serverTLS("h2"), p.certs
		}
		grpcServer := rpc.NewServer(options)
		for _, service := range s.services {
			service.Register(grpcServer)
		}
		var work sync.WaitGroup
		defer work.Wait()
		whole := ctx
		ctx, unlist := context.WithCancel(ctx) // ends when the service fails, too
		defer unlist()
		await := func(waiting context.Context) error {
			for _, w := range waits {
				if err := lifecycle.Retry(waiting, p.log, w.what, limited(w.try)); err != nil {
					return err
				}
			}
			return lifecycle.Retry(waiting, p.log, "the service registry", func(waiting context.Context) error {
				if s.live != nil {
					i.Meta = maps.Clone(s.meta)
					maps.Copy(i.Meta, s.live.Meta())
				}
				reg, gone, err := announce(waiting, s.registry, i)
				if err != nil {
					return err
				}
				work.Go(func() { // deregister before calls are drained, and before the process ends
					<-ctx.Done()
					gone()
				})
				if s.live != nil {
					work.Go(func() { keepMeta(ctx, reg, s.live, s.meta, i.Meta) })
				}
				return nil
			})
		}
		if s.failing != nil {
			work.Go(func() {
				select {
				case <-s.failing.Failed():
					unlist()
				case <-ctx.Done():
				}
			})
		}
		serving := []rpc.ServeOption{rpc.Await(await)}
		if s.drain != nil {
			serving = append(serving, rpc.DrainLimit(p.set.drainLimit()+drainMargin))
			defer whenStopped(ctx, p.set.drainLimit(), s.drain)()
		}
		life := ctx
		if s.leave != nil {
			var stop func()
			life, stop = context.WithCancel(context.WithoutCancel(ctx))
			defer stop()
			defer whenStopped(ctx, p.set.drainLimit(), func(ctx context.Context) {
				s.leave(ctx)
				stop()
			})()
		}
		err = rpc.Serve(life, grpcServer, l, func() {
			p.warnOfOldConsul(ctx)
			p.pending.end(s.name)
			ready()
		}, serving...)
		if err != nil || s.failing == nil || s.failing.Err() == nil {
			return err
		}
		// The process goes on with its other shards, if there are any that work, but it is not ready.
		p.pending.begin(fmt.Sprintf("%s (%v)", s.name, s.failing.Err()))
		if p.working.Add(-1) == 0 {
			return fault.Wrap(fault.Unavailable, s.failing.Err(), "serve %s", s.name)
		}
		<-whole.Done()
		return nil
	}
	p.add(lifecycle.Part{
		Name: s.name, StartLimit: lifecycle.NoLimit, StopLimit: p.set.drainLimit() + 3*drainMargin, Run: run,
	})
}

// whenStopped calls drain when ctx ends, with a limit. The returned function waits for drain if that was
// called.
func whenStopped(ctx context.Context, limit time.Duration, drain func(context.Context)) func() {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		drain(ctx)
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

func limited(try func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, waitTry)
		defer cancel()
		return try(ctx)
	}
}

// announce registers an instance and returns a function that deregisters it.
func announce(
	ctx context.Context, registry discovery.Registry, i discovery.Instance,
) (discovery.Registration, func(), error) {
	reg, err := registry.Register(ctx, i)
	if err != nil {
		return nil, nil, err
	}
	return reg, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = reg.Deregister(ctx) // otherwise the failing health check removes the instance
	}, nil
}

// warnOfOldConsul logs a warning if the Consul agent has a known vulnerability, by which others can
// pose as services.
func (p *process) warnOfOldConsul(ctx context.Context) {
	registry, ok := p.registry.(*consul.Registry)
	if !ok {
		return
	}
	version, err := registry.Version(ctx)
	switch {
	case err != nil:
		p.log.Info("the consul agent did not tell its version", "error", err)
	case consul.Older(version, consul.Floor):
		p.log.Warn("the consul agent has a known authorisation bypass: upgrade it", "version", version, "want",
			consul.Floor+" or later")
	}
}

// startTraces makes the tracer of the process, which is called like its service.
func (p *process) startTraces(ctx context.Context, c trace.Config, service string) error {
	c.Service = cmp.Or(c.Service, service)
	tracer, err := trace.New(ctx, c)
	if err != nil {
		return err
	}
	p.tracer = tracer
	p.closers = append(p.closers, tracer.Close) // called after all services have ended
	return nil
}

// newID returns a random instance id.
func newID(service string) string {
	b := make([]byte, 4)
	rand.Read(b) // never fails
	return service + "-" + hex.EncodeToString(b)
}

// pending holds the names of the servers that are not ready yet.
type pending struct {
	mu    sync.Mutex
	names map[string]bool
}

func (p *pending) begin(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names == nil {
		p.names = map[string]bool{}
	}
	p.names[name] = true
}

func (p *pending) end(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.names, name)
}

// check returns an error that names the servers that are not ready, if there are any.
func (p *pending) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.names) == 0 {
		return nil
	}
	return fault.New(fault.Unavailable, "not ready: %s", strings.Join(slices.Sorted(maps.Keys(p.names)), ", "))
}

// probes returns a handler of /metrics, /healthz and /readyz. The process is ready when its servers
// are ready and the function ready, if not nil, returns no error.
func (p *process) probes(ready func() error) *http.ServeMux {
	h := obs.Handler(p.metrics, func() error {
		if err := p.pending.check(); err != nil || ready == nil {
			return err
		}
		return ready()
	})
	mux := http.NewServeMux()
	for _, route := range probeRoutes() {
		mux.Handle(route, h)
	}
	return mux
}

func probeRoutes() []string { return []string{"GET /metrics", "GET /healthz", "GET /readyz"} }

// runPart returns a part that runs the main loop of a service. It is ready at once.
func runPart(name string, run func(context.Context) error) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		ready()
		return run(ctx)
	}}
}

// awaitPart returns a part that is ready when f has returned.
func awaitPart(name string, f func(context.Context) error) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		if err := f(ctx); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	}}
}

// embedBus starts a NATS server in this process, which stores its data in a temporary folder.
func (p *process) embedBus() error {
	dir, err := os.MkdirTemp("", "lamina-nats-")
	if err != nil {
		return err
	}
	p.closers = append(p.closers, func() error { return os.RemoveAll(dir) })
	server, err := nats.NewEmbedded(dir)
	if err != nil {
		return err
	}
	p.embedded = server
	p.closers = append(p.closers, server.Close)
	if p.bus, err = server.Connect(nats.Config{Memory: true}); err != nil {
		return err
	}
	p.closers = append(p.closers, p.bus.Close)
	return nil
}

// open opens a model, or returns it if it is open already. The name is as, or else that of the file.
func (p *process) open(path, as string) (opened, error) {
	m, ok := p.models[path]
	if !ok {
		var err error
		if m.files, m.name, m.digest, err = openModel(path, ""); err != nil {
			return opened{}, err
		}
		if p.models == nil {
			p.models = map[string]opened{}
		}
		p.models[path] = m
		p.closers = append(p.closers, m.files.Close)
	}
	m.name = cmp.Or(as, m.name)
	return m, nil
}

// vocabulary loads the vocabulary, chat template and defaults of the model.
func (m opened) vocabulary() (tokenizer.Model, error) { return loadModel(m.files, m.name, m.digest) }
