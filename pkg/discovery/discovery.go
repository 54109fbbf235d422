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
	"maps"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Instance is a running service.
type Instance struct {
	ID      string            // unique in the mesh
	Service string            // "tokenizer", "shard", "sampler", "router" or "trainer"
	Addr    string            // as pkg/rpc dials it
	Meta    map[string]string // small facts; never secrets
}

// Registration is an instance's place in the registry.
type Registration interface {
	// Deregister removes the instance; watchers hear of it at once.
	Deregister(ctx context.Context) error
}

// Lease is a held lock.
type Lease interface {
	// Lost is closed when the lock is no longer held.
	Lost() <-chan struct{}
	// Token grows with every holder of the key, so that stale holders can be fenced.
	Token() uint64
	// Release gives the lock up.
	Release(ctx context.Context) error
}

// Registry is where services meet.
type Registry interface {
	// Register announces an instance. Registering an id again replaces it.
	Register(ctx context.Context, i Instance) (Registration, error)
	// Watch sends the healthy instances of a service, sorted by id: first those of
	// now, then after each change. A slow reader sees the newest state only. The
	// channel is closed when ctx ends.
	Watch(ctx context.Context, service string) (<-chan []Instance, error)
	// Lock waits for the lock of a key until ctx ends.
	Lock(ctx context.Context, key, holder string) (Lease, error)
}

// Sort orders instances by id.
func Sort(instances []Instance) {
	slices.SortFunc(instances, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
}

// Offer puts the newest state into a channel of capacity one, replacing an unread one.
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

// Memory is a registry inside one process.
type Memory struct {
	mu        sync.Mutex
	instances map[string]Instance
	watchers  map[chan []Instance]string
	locks     map[string]*memoryLock
}

type memoryLock struct {
	free  chan struct{} // holds one value while nobody holds the lock
	token uint64
}

// NewMemory returns an empty registry.
func NewMemory() *Memory {
	return &Memory{instances: map[string]Instance{}, watchers: map[chan []Instance]string{}, locks: map[string]*memoryLock{}}
}

// Register announces an instance.
func (m *Memory) Register(_ context.Context, i Instance) (Registration, error) {
	if i.ID == "" || i.Service == "" || i.Addr == "" {
		return nil, fault.New(fault.Invalid, "register %q: id, service and address must be set", i.ID)
	}
	i.Meta = maps.Clone(i.Meta)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.instances[i.ID] = i
	m.tell(i.Service)
	return &memoryRegistration{m, i.ID}, nil
}

type memoryRegistration struct {
	memory *Memory
	id     string
}

// Deregister removes the instance.
func (r *memoryRegistration) Deregister(context.Context) error {
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	i, ok := r.memory.instances[r.id]
	if ok {
		delete(r.memory.instances, r.id)
		r.memory.tell(i.Service)
	}
	return nil
}

// tell sends a service's instances to its watchers; mu is held.
func (m *Memory) tell(service string) {
	for ch, watched := range m.watchers {
		if watched == service {
			Offer(ch, m.list(service))
		}
	}
}

func (m *Memory) list(service string) []Instance {
	out := []Instance{}
	for _, i := range m.instances {
		if i.Service == service {
			i.Meta = maps.Clone(i.Meta)
			out = append(out, i)
		}
	}
	Sort(out)
	return out
}

// Watch sends the instances of a service now and after each change.
func (m *Memory) Watch(ctx context.Context, service string) (<-chan []Instance, error) {
	ch := make(chan []Instance, 1)
	m.mu.Lock()
	m.watchers[ch] = service
	Offer(ch, m.list(service))
	m.mu.Unlock()
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, ch)
		close(ch)
	})
	return ch, nil
}

// Lock waits for the lock of a key.
func (m *Memory) Lock(ctx context.Context, key, _ string) (Lease, error) {
	m.mu.Lock()
	l := m.locks[key]
	if l == nil {
		l = &memoryLock{free: make(chan struct{}, 1)}
		l.free <- struct{}{}
		m.locks[key] = l
	}
	m.mu.Unlock()
	select {
	case <-l.free:
	case <-ctx.Done():
		return nil, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "wait for lock %s", key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.token++
	return &memoryLease{lock: l, token: l.token, lost: make(chan struct{})}, nil
}

type memoryLease struct {
	lock  *memoryLock
	token uint64
	lost  chan struct{}
	once  sync.Once
}

// Lost is closed at Release.
func (l *memoryLease) Lost() <-chan struct{} { return l.lost }

// Token counts the holders.
func (l *memoryLease) Token() uint64 { return l.token }

// Release gives the lock up; more than once is no error.
func (l *memoryLease) Release(context.Context) error {
	l.once.Do(func() {
		close(l.lost)
		l.lock.free <- struct{}{}
	})
	return nil
}
