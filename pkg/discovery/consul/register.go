package consul

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	checkInterval    = time.Second     // the minimum that Consul accepts for gRPC checks
	checkTimeout     = 3 * time.Second // of a check
	criticalAfter    = time.Minute     // before a failing instance is removed: the minimum that Consul accepts
	maintainInterval = 2 * time.Second // between checks that the agent still knows the instance
)

// Register registers an instance with a gRPC health check of its address. Until Deregister it
// registers it again whenever the agent has lost it.
func (r *Registry) Register(ctx context.Context, i discovery.Instance) (discovery.Registration, error) {
	if err := discovery.Check(i); err != nil {
		return nil, err
	}
	host, portText, err := net.SplitHostPort(i.Addr)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "register %s: consul needs a host and port", i.ID)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "register %s: port of %q", i.ID, i.Addr)
	}
	g := &registration{registry: r, id: i.ID, instance: i, done: make(chan struct{})}
	g.service = &api.AgentServiceRegistration{
		ID: i.ID, Name: prefix + i.Service, Address: host, Port: int(port), Meta: maps.Clone(i.Meta),
		Check: &api.AgentServiceCheck{
			CheckID: "grpc:" + i.ID, GRPC: i.Addr, GRPCUseTLS: r.tls, TLSSkipVerify: r.tls,
			Interval: checkInterval.String(),
			Timeout:  checkTimeout.String(), DeregisterCriticalServiceAfter: criticalAfter.String(),
		},
	}
	r.mu.Lock()
	before := []*registration{}
	for id, old := range r.registered {
		if id == i.ID || i.Succeeds(old.instance) {
			before = append(before, old)
			delete(r.registered, id)
		}
	}
	r.registered[i.ID] = g
	r.mu.Unlock()
	for _, old := range before {
		old.end()
	}
	if err := g.announce(ctx); err != nil {
		r.mu.Lock()
		if r.registered[i.ID] == g {
			delete(r.registered, i.ID)
		}
		r.mu.Unlock()
		return nil, err
	}
	maintained, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.mu.Lock()
	g.stop = stop
	over := g.over
	g.mu.Unlock()
	if over {
		stop() // another registration has replaced it meanwhile
	}
	go g.maintain(maintained)
	return g, nil
}

type registration struct {
	registry *Registry
	id       string
	instance discovery.Instance // as it was registered
	done     chan struct{}      // closed when maintain has returned

	mu      sync.Mutex // held during calls of the agent, so that they arrive in order
	service *api.AgentServiceRegistration
	stop    context.CancelFunc
	over    bool
}

// announce registers the instance with the agent.
func (g *registration) announce(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return fault.New(fault.FailedPrecondition, "register %s: the registration has ended", g.id)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	options := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := g.registry.client.Agent().ServiceRegisterOpts(g.service, options); err != nil {
		return fault.Wrap(fault.Unavailable, err, "register %s with consul", g.id)
	}
	if g.service.Name != prefix+"shard" { // only a shard replaces others
		return nil
	}
	if err := g.registry.replace(ctx, g.instance); err != nil {
		return fault.Wrap(fault.Unavailable, err, "register %s with consul: remove what was at its address", g.id)
	}
	return nil
}

func (g *registration) meta() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.service.Meta
}

func notFound(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}

// maintain registers the instance again when the agent has lost it, for example by a restart
// without its data, or has an older Meta.
func (g *registration) maintain(ctx context.Context) {
	defer close(g.done)
	for {
		wait(ctx, jitter(maintainInterval))
		if ctx.Err() != nil {
			return
		}
		query, cancel := context.WithTimeout(ctx, answerTime)
		known, _, err := g.registry.client.Agent().Service(g.id, (&api.QueryOptions{}).WithContext(query))
		cancel()
		if notFound(err) || err == nil && !maps.Equal(known.Meta, g.meta()) {
			// After a failure the next round tries again.
			_ = g.announce(ctx)
		}
	}
}

// end marks the registration as ended and stops maintain.
func (g *registration) end() {
	g.mu.Lock()
	g.over = true
	stop := g.stop
	g.mu.Unlock()
	if stop != nil {
		stop()
		<-g.done
	}
}

// current reports whether the id still belongs to this registration.
func (g *registration) current() bool {
	g.registry.mu.Lock()
	defer g.registry.mu.Unlock()
	return g.registry.registered[g.id] == g
}

// Update replaces Meta of the instance. When Consul cannot be reached, Update returns an error and
// Consul receives the new Meta later.
func (g *registration) Update(ctx context.Context, meta map[string]string) error {
	if !g.current() {
		return fault.New(fault.FailedPrecondition, "update %s: the registration has ended", g.id)
	}
	g.mu.Lock()
	next := *g.service
	next.Meta = maps.Clone(meta)
	g.service = &next
	g.mu.Unlock()
	return g.announce(ctx)
}

// Deregister removes the instance.
func (g *registration) Deregister(ctx context.Context) error {
	g.registry.mu.Lock()
	current := g.registry.registered[g.id] == g
	if current {
		delete(g.registry.registered, g.id)
	}
	g.registry.mu.Unlock()
	g.end()
	if !current {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	err := g.registry.client.Agent().ServiceDeregisterOpts(g.id, (&api.QueryOptions{}).WithContext(ctx))
	if notFound(err) {
		return nil // Consul has removed it already
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "deregister %s from consul", g.id)
	}
	return nil
}
