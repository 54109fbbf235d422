// Package discovery finds running services. Services register their instances in a Registry,
// which sends the healthy ones to watchers and also provides locks. A KV holds small documents that
// the members share, and a Board those that go away with their members. NewMemory returns a registry
// for one process, and discovery/consul provides one that several hosts share. discoverytest is the
// test suite that both pass.
//
// The content of a registry is a hint: an instance may be gone when it is called. Callers
// therefore set deadlines, and epochs fence off late messages.
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
	Addr    string            // an address that pkg/rpc can dial
	Meta    map[string]string // small attributes, such as the model; never secrets
}

// Registration is a registered instance. It stays registered until Deregister or until its id is
// registered again, even if the registry was unreachable for a while.
type Registration interface {
	// Update replaces Meta of the instance and notifies the watchers at once.
	Update(ctx context.Context, meta map[string]string) error
	// Deregister removes the instance and notifies the watchers at once. It does nothing if
	// the id has been registered again.
	Deregister(ctx context.Context) error
}

// Lease is a held lock.
type Lease interface {
	// Lost returns a channel that is closed when the lock is no longer held.
	Lost() <-chan struct{}
	// Token returns a number that grows with every holder of the key, so that stale holders
	// can be fenced off.
	Token() uint64
	// Release releases the lock. It must also be called after the lease was lost.
	Release(ctx context.Context) error
}

// Registry holds the instances of services.
type Registry interface {
	// Register adds an instance. Registering an id again replaces the earlier instance, and a shard at the
	// address of another one replaces that (see Succeeds).
	Register(ctx context.Context, i Instance) (Registration, error)
	// Watch sends the healthy instances of a service, sorted by id: first the current ones,
	// then the new list after each change. A slow reader only receives the newest list. The
	// channel is closed when ctx ends and not earlier: while the registry cannot be reached,
	// the last list stays valid.
	Watch(ctx context.Context, service string) (<-chan []Instance, error)
	// Lock waits for the lock of a key until ctx ends. It returns Unavailable if the registry
	// cannot be reached.
	Lock(ctx context.Context, key, holder string) (Lease, error)
}

// Check returns an error if an instance lacks a field that every registry requires.
func Check(i Instance) error {
	for _, f := range [...]struct{ name, value string }{{"id", i.ID}, {"service", i.Service}, {"addr", i.Addr}} {
		if f.value == "" {
			return fault.Field(f.name, "register instance %q: the field must be set", i.ID)
		}
	}
	return nil
}

// Sort orders instances by id.
func Sort(instances []Instance) {
	slices.SortFunc(instances, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
}

// SortMembers orders members by service and id.
func SortMembers(members []Member) {
	slices.SortFunc(members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.ID, b.ID))
	})
}

// Offer puts the newest state into a channel of capacity one and replaces an unread one. Only one
// goroutine at a time may call it.
func Offer[T any](ch chan T, state T) {
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
