// Package consul implements the discovery registry with HashiCorp Consul: instances are registered
// with a gRPC health check, watches are blocking queries, and locks are held by sessions. Only
// cmd/lamina and the test harness import it.
//
// The Consul agent calls an instance to check its health, so it must be able to reach the
// address. Where services use TLS, the agent needs a client certificate of their authority
// (enable_agent_tls_for_checks).
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
	prefix    = "lamina-"        // of service names in Consul
	keyPrefix = "lamina/lock/"   // of lock keys
	waitTime  = 30 * time.Second // of a blocking query
	// of any other query; a blocking query may take this much longer than its wait
	answerTime   = 5 * time.Second
	backoffFirst = 100 * time.Millisecond // after a failed query
	backoffMax   = 5 * time.Second
)

// Config says how to reach Consul.
type Config struct {
	Addr       string // "host:port", "https://host:port" or "unix:///path"
	Token      string
	Datacenter string
	TLS        bool   // the services' health checks speak TLS
	CA         string // PEM files for TLS to Consul itself; an empty CA means the system's
	Cert, Key  string
}

// Registry implements discovery.Registry with Consul.
type Registry struct {
	client *api.Client
	config *api.Config
	tls    bool

	mu         sync.Mutex
	registered map[string]*registration // by id
	posts      map[string]*post         // by key
}

// New returns a registry. It does not connect to Consul; the first use does.
func New(c Config) (*Registry, error) {
	config := api.DefaultConfig()
	config.Address, config.Token, config.Datacenter = c.Addr, c.Token, c.Datacenter
	config.TLSConfig = api.TLSConfig{CAFile: c.CA, CertFile: c.Cert, KeyFile: c.Key}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "connect to consul at %s", c.Addr)
	}
	return &Registry{client: client, config: config, tls: c.TLS, registered: map[string]*registration{},
		posts: map[string]*post{}}, nil
}

// Close closes idle connections. Registrations are maintained until Deregister, and watches run
// until their contexts end.
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

// Floor is the first release of Consul that fixes the authorisation bypass through leaf
// certificates, which was found in October 2026.
const Floor = "2.1.0"

// Older reports whether a version, such as "1.22.7", "2.1.0-beta1" or "2.1.0+ent", comes before
// another one that has no suffix. It returns false for a version that it cannot parse.
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

// Watch sends the instances of a service that pass their health checks. It uses blocking queries.
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
			// The last list stays valid while Consul cannot be reached. The query starts again
			// without an index, because a restarted Consul may count from elsewhere.
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
			next = 0 // Consul was restored from an older snapshot
		}
		index = next
	}
}

// query returns the instances and their index. It waits until the index differs from the given
// one, but at most for waitTime.
func (r *Registry) query(ctx context.Context, service string, index uint64) ([]discovery.Instance, uint64, error) {
	// Consul adds up to a sixteenth of the wait to it.
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

// jitter returns a random pause in [d/2, 3d/2).
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
