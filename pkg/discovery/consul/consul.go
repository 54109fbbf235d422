// Package consul is the discovery registry on HashiCorp Consul: registration with a
// gRPC health check that Consul itself makes, watches by blocking queries, and
// locks by sessions. cmd/lamina and the test harness alone import it.
//
// Consul's agent checks an instance's health by calling it, so the agent must reach
// its address; where services speak TLS, the agent needs a client certificate of
// their authority (enable_agent_tls_for_checks).
package consul

import (
	"context"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	prefix       = "lamina-"              // of service names in Consul
	keyPrefix    = "lamina/lock/"         // of lock keys
	waitTime     = 30 * time.Second       // of a blocking query
	answerTime   = 5 * time.Second        // of any other, and of a blocking one beyond its wait
	backoffFirst = 100 * time.Millisecond // after a failed query
	backoffMax   = 5 * time.Second
)

// Config says how Consul is reached.
type Config struct {
	Addr       string // "host:port", "https://host:port" or "unix:///path"
	Token      string
	Datacenter string
	TLS        bool   // the services' health checks speak TLS
	CA         string // PEM files of TLS to Consul itself; "" for the system's
	Cert, Key  string
}

// Registry is a discovery.Registry on Consul.
type Registry struct {
	client *api.Client
	config *api.Config
	tls    bool

	mu         sync.Mutex
	registered map[string]*registration // by id
}

// New returns a registry; Consul is first asked when it is used.
func New(c Config) (*Registry, error) {
	config := api.DefaultConfig()
	config.Address, config.Token, config.Datacenter = c.Addr, c.Token, c.Datacenter
	config.TLSConfig = api.TLSConfig{CAFile: c.CA, CertFile: c.Cert, KeyFile: c.Key}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "connect to consul at %s", c.Addr)
	}
	return &Registry{client: client, config: config, tls: c.TLS, registered: map[string]*registration{}}, nil
}

// Close lets idle connections go. Registrations stay, and stay tended, until they
// are given up; watches until their contexts end.
func (r *Registry) Close() error {
	r.config.Transport.CloseIdleConnections()
	return nil
}

// Version asks the agent for its version, such as "2.1.0".
func (r *Registry) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var self struct{ Config struct{ Version string } }
	if _, err := r.client.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "ask consul for its version")
	}
	return self.Config.Version, nil
}

// Floor is the first release of Consul without the authorisation bypass in its leaf
// certificates that was found in October 2026.
const Floor = "2.1.0"

// Older reports whether a version, "1.22.7" or "2.1.0-beta1" or "2.1.0+ent", comes before
// another one without a suffix. A version that cannot be read does not.
func Older(version, than string) bool {
	version, _, _ = strings.Cut(version, "+")
	version, _, pre := strings.Cut(version, "-")
	a, b := strings.Split(version, "."), strings.Split(than, ".")
	for i := range min(len(a), len(b)) {
		x, err1 := strconv.Atoi(a[i])
		y, err2 := strconv.Atoi(b[i])
		if err1 != nil || err2 != nil {
			return false
		}
		if x != y {
			return x < y
		}
	}
	return pre || len(a) < len(b)
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
		state, next, err := r.query(ctx, service, index)
		if err != nil {
			// The last state stands while Consul is away. Back again it may be another,
			// so that the old index means nothing.
			wait(ctx, jitter(pause))
			pause = min(2*pause, backoffMax)
			index = 0
			continue
		}
		pause = backoffFirst
		if next != index {
			discovery.Offer(ch, state)
		}
		if next < index {
			next = 0 // Consul was restored from an older state
		}
		index = next
	}
}

// query waits until the state is not that of index, or for a while.
func (r *Registry) query(ctx context.Context, service string, index uint64) ([]discovery.Instance, uint64, error) {
	// Consul adds up to a sixteenth to the wait.
	ctx, cancel := context.WithTimeout(ctx, waitTime+waitTime/16+answerTime)
	defer cancel()
	options := (&api.QueryOptions{WaitIndex: index, WaitTime: waitTime}).WithContext(ctx)
	entries, meta, err := r.client.Health().Service(prefix+service, "", true, options)
	if err != nil {
		return nil, 0, err
	}
	state := make([]discovery.Instance, 0, len(entries))
	for _, e := range entries {
		state = append(state, discovery.Instance{
			ID: e.Service.ID, Service: service, Meta: e.Service.Meta,
			Addr: net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port)),
		})
	}
	discovery.Sort(state)
	return state, max(meta.LastIndex, 1), nil // an index of 0 would not block
}

// jitter spreads a pause over [d/2, 3d/2).
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// wait sleeps unless ctx ends first.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
