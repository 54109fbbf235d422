// Package discovery says who is alive. A Registry is told of instances of services
// and tells watchers about them; it hands out one lock a key. NewMemory is the twin
// inside one process, discovery/consul the one that hosts share; discoverytest
// holds the contract that both pass.
//
// What a registry says is a hint: an instance may be gone when it is called, so
// callers bring deadlines, and epochs fence off the past.
package discovery

import (
	"cmp"
	"context"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Instance is a running service.
type Instance struct {
	ID      string            // unique in the mesh
	Service string            // "tokenizer", "shard", "sampler", "router" or "trainer"
	Addr    string            // as pkg/rpc dials it
	Meta    map[string]string // small facts; never secrets
}

// Registration is an instance's place in the registry. It stays until it is given
// up or replaced, also when the registry was away for a while.
type Registration interface {
	// Update replaces the instance's facts; watchers hear of it at once.
	Update(ctx context.Context, meta map[string]string) error
	// Deregister removes the instance; watchers hear of it at once. After another
	// registration has taken its id it does nothing.
	Deregister(ctx context.Context) error
}

// Lease is a held lock.
type Lease interface {
	// Lost is closed when the lock is no longer held.
	Lost() <-chan struct{}
	// Token grows with every holder of the key, so that stale holders can be fenced.
	Token() uint64
	// Release gives the lock up. A lease that was lost is released too.
	Release(ctx context.Context) error
}

// Registry is where services meet.
type Registry interface {
	// Register announces an instance. Registering an id again replaces it.
	Register(ctx context.Context, i Instance) (Registration, error)
	// Watch sends the healthy instances of a service, sorted by id: first those of
	// now, then after each change. A slow reader sees the newest state only. The
	// channel is closed when ctx ends, and only then: while the registry is away the
	// last state stands.
	Watch(ctx context.Context, service string) (<-chan []Instance, error)
	// Lock waits for the lock of a key until ctx ends. A registry that cannot be
	// reached is Unavailable.
	Lock(ctx context.Context, key, holder string) (Lease, error)
}

// Check reports an instance that no registry takes.
func Check(i Instance) error {
	for _, f := range [...]struct{ name, value string }{{"id", i.ID}, {"service", i.Service}, {"addr", i.Addr}} {
		if f.value == "" {
			return fault.Field(f.name, "register %q: it must be set", i.ID)
		}
	}
	return nil
}

// Sort orders instances by id.
func Sort(instances []Instance) {
	slices.SortFunc(instances, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
}

// Offer puts the newest state into a channel of capacity one, replacing an unread
// one. One goroutine at a time may offer.
func Offer(ch chan []Instance, state []Instance) {
	for {
		select {
		case ch <- state:
			return
		default:
		}
		select {
		case <-ch:
		default:
		}
	}
}
