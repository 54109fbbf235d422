// Package consul is the discovery registry on HashiCorp Consul: registration with a
// gRPC health check that Consul itself makes, watches by blocking queries, and
// locks by sessions.
package consul

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	prefix        = "lamina-"              // of service names in Consul
	keyPrefix     = "lamina/lock/"         // of lock keys
	checkInterval = time.Second            // Consul's floor for gRPC checks
	checkTimeout  = 3 * time.Second        //
	criticalAfter = time.Minute            // Consul's floor for removing the dead
	waitTime      = 5 * time.Minute        // of a blocking query
	sessionTTL    = 10 * time.Second       // Consul's floor
	backoffFirst  = 100 * time.Millisecond // after a failed query
	backoffMax    = 5 * time.Second        //
)

// Config says how Consul is reached.
type Config struct {
	Addr       string // "host:port"
	Token      string
	Datacenter string
	TLS        bool // of the services' health checks
}

// Registry is a discovery.Registry on Consul.
type Registry struct {
	client *api.Client
	tls    bool
}

// New returns a registry; Consul is first asked when it is used.
func New(c Config) (*Registry, error) {
	config := api.DefaultConfig()
	config.Address, config.Token, config.Datacenter = c.Addr, c.Token, c.Datacenter
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "connect to consul at %s", c.Addr)
	}
	return &Registry{client: client, tls: c.TLS}, nil
}

// Register announces an instance with a gRPC health check of its address.
func (r *Registry) Register(ctx context.Context, i discovery.Instance) (discovery.Registration, error) {
	host, portText, err := net.SplitHostPort(i.Addr)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "register %s: address %q", i.ID, i.Addr)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "register %s: address %q", i.ID, i.Addr)
	}
	service := &api.AgentServiceRegistration{
		ID: i.ID, Name: prefix + i.Service, Address: host, Port: port, Meta: i.Meta,
		Check: &api.AgentServiceCheck{
			CheckID: "grpc:" + i.ID, GRPC: i.Addr, GRPCUseTLS: r.tls, TLSSkipVerify: r.tls, Interval: checkInterval.String(),
			Timeout: checkTimeout.String(), DeregisterCriticalServiceAfter: criticalAfter.String(),
		},
	}
	err = r.client.Agent().ServiceRegisterOpts(service, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "register %s with consul", i.ID)
	}
	return &registration{r, i.ID}, nil
}

type registration struct {
	registry *Registry
	id       string
}

// Deregister removes the instance.
func (g *registration) Deregister(ctx context.Context) error {
	err := g.registry.client.Agent().ServiceDeregisterOpts(g.id, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "deregister %s from consul", g.id)
	}
	return nil
}

// Watch follows the passing instances of a service by blocking queries.
func (r *Registry) Watch(ctx context.Context, service string) (<-chan []discovery.Instance, error) {
	ch := make(chan []discovery.Instance, 1)
	go func() {
		defer close(ch)
		r.watch(ctx, service, ch)
	}()
	return ch, nil
}

func (r *Registry) watch(ctx context.Context, service string, ch chan []discovery.Instance) {
	var index uint64
	pause := backoffFirst
	for ctx.Err() == nil {
		options := (&api.QueryOptions{WaitIndex: index, WaitTime: waitTime}).WithContext(ctx)
		entries, meta, err := r.client.Health().Service(prefix+service, "", true, options)
		if err != nil {
			// The last state stands while Consul is away.
			wait(ctx, pause/2+rand.N(pause/2))
			pause = min(2*pause, backoffMax)
			index = 0
			continue
		}
		pause = backoffFirst
		if meta.LastIndex == index {
			continue // the wait ran out
		}
		if index = meta.LastIndex; index < options.WaitIndex {
			index = 0 // Consul was restored from an older state
		}
		state := make([]discovery.Instance, 0, len(entries))
		for _, e := range entries {
			state = append(state, discovery.Instance{
				ID: e.Service.ID, Service: service, Meta: e.Service.Meta,
				Addr: net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port)),
			})
		}
		discovery.Sort(state)
		discovery.Offer(ch, state)
	}
}

// wait sleeps unless ctx ends first.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Lock waits for a key's lock, held by a session that is renewed until Release.
func (r *Registry) Lock(ctx context.Context, key, holder string) (discovery.Lease, error) {
	write := (&api.WriteOptions{}).WithContext(ctx)
	id, _, err := r.client.Session().Create(&api.SessionEntry{
		Name: holder, TTL: sessionTTL.String(), Behavior: api.SessionBehaviorRelease, LockDelay: time.Millisecond,
	}, write)
	if err != nil {
		return nil, lockError(ctx, key, err)
	}
	renewal, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lease{registry: r, key: keyPrefix + key, session: id, lost: make(chan struct{}), stop: stop, done: make(chan struct{})}
	go l.renew(renewal)
	if err := l.acquire(ctx, holder); err != nil {
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		return nil, lockError(ctx, key, errors.Join(err, l.Release(release)))
	}
	return l, nil
}

func lockError(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "wait for lock %s", key)
	}
	return fault.Wrap(fault.Unavailable, err, "lock %s in consul", key)
}

type lease struct {
	registry *Registry
	key      string
	session  string
	token    uint64
	stop     context.CancelFunc
	lost     chan struct{}
	done     chan struct{}
	once     sync.Once
}

// acquire tries until it holds the key, waiting for changes of it between.
func (l *lease) acquire(ctx context.Context, holder string) error {
	kv := l.registry.client.KV()
	var index uint64
	for {
		pair := &api.KVPair{Key: l.key, Value: []byte(holder), Session: l.session}
		held, _, err := kv.Acquire(pair, (&api.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		now, meta, err := kv.Get(l.key, (&api.QueryOptions{WaitIndex: index, WaitTime: time.Second}).WithContext(ctx))
		if err != nil {
			return err
		}
		if held && now != nil && now.Session == l.session {
			l.token = now.LockIndex
			return nil
		}
		index = meta.LastIndex
	}
}

// renew keeps the session alive until stopped; a session that Consul no longer knows
// is lost.
func (l *lease) renew(ctx context.Context) {
	defer close(l.done)
	last := time.Now()
	for {
		wait(ctx, sessionTTL/3)
		if ctx.Err() != nil {
			return
		}
		entry, _, err := l.registry.client.Session().Renew(l.session, (&api.WriteOptions{}).WithContext(ctx))
		switch {
		case err == nil && entry != nil:
			last = time.Now()
		case err == nil, time.Since(last) > sessionTTL:
			l.once.Do(func() { close(l.lost) })
			return
		}
	}
}

// Lost is closed when the session has ended.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Token is Consul's lock index, which grows with every holder.
func (l *lease) Token() uint64 { return l.token }

// Release ends the session, which frees the lock.
func (l *lease) Release(ctx context.Context) error {
	l.stop()
	<-l.done
	l.once.Do(func() { close(l.lost) })
	kv := l.registry.client.KV()
	_, _, err := kv.Release(&api.KVPair{Key: l.key, Session: l.session}, (&api.WriteOptions{}).WithContext(ctx))
	_, destroyed := l.registry.client.Session().Destroy(l.session, (&api.WriteOptions{}).WithContext(ctx))
	return errors.Join(err, destroyed)
}
