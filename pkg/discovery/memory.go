package discovery

import (
	"bytes"
	"context"
	"maps"
	"strings"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Memory is a registry for one process. All registered instances count as healthy.
type Memory struct {
	mu        sync.Mutex
	instances map[string]*memoryRegistration
	watchers  map[chan []Instance]string
	locks     map[string]*memoryLock
	values    map[string]Entry
	followers map[chan Entry]string
	posts     map[string][]byte
	readers   map[chan map[string][]byte]string // of posts, with their prefixes
	version   uint64                            // of the last write
}

type memoryLock struct {
	free  chan struct{} // holds one value while nobody holds the lock
	token uint64
}

// NewMemory returns an empty registry.
func NewMemory() *Memory {
	return &Memory{instances: map[string]*memoryRegistration{}, watchers: map[chan []Instance]string{},
		locks: map[string]*memoryLock{}, values: map[string]Entry{}, followers: map[chan Entry]string{},
		posts: map[string][]byte{}, readers: map[chan map[string][]byte]string{}}
}

// Register adds an instance.
func (m *Memory) Register(_ context.Context, i Instance) (Registration, error) {
	if err := Check(i); err != nil {
		return nil, err
	}
	i.Meta = maps.Clone(i.Meta)
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.instances[i.ID]
	r := &memoryRegistration{memory: m, instance: i}
	m.instances[i.ID] = r
	for id, old := range m.instances {
		if i.Succeeds(old.instance) {
			delete(m.instances, id)
		}
	}
	m.tell(i.Service)
	if before != nil && before.instance.Service != i.Service {
		m.tell(before.instance.Service)
	}
	return r, nil
}

type memoryRegistration struct {
	memory   *Memory
	instance Instance // guarded by memory.mu
}

// Update replaces Meta of the instance.
func (r *memoryRegistration) Update(_ context.Context, meta map[string]string) error {
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	if r.memory.instances[r.instance.ID] != r {
		return fault.New(fault.FailedPrecondition, "update %s: the registration has ended", r.instance.ID)
	}
	r.instance.Meta = maps.Clone(meta)
	r.memory.tell(r.instance.Service)
	return nil
}

// Deregister removes the instance.
func (r *memoryRegistration) Deregister(context.Context) error {
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	if r.memory.instances[r.instance.ID] == r {
		delete(r.memory.instances, r.instance.ID)
		r.memory.tell(r.instance.Service)
	}
	return nil
}

// tell sends the instances of a service to its watchers. The caller holds mu.
func (m *Memory) tell(service string) {
	for ch, watched := range m.watchers {
		if watched == service {
			Offer(ch, m.list(service))
		}
	}
}

func (m *Memory) list(service string) []Instance {
	out := []Instance{}
	for _, r := range m.instances {
		if i := r.instance; i.Service == service {
			i.Meta = maps.Clone(i.Meta)
			out = append(out, i)
		}
	}
	Sort(out)
	return out
}

// subscribe adds a channel for what changes under a key, and sends what is there now. It closes the channel, and
// forgets it, when ctx ends.
func subscribe[T any](ctx context.Context, m *Memory, channels map[chan T]string, key string, now func() T) <-chan T {
	ch := make(chan T, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	channels[ch] = key
	Offer(ch, now())
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(channels, ch)
		close(ch)
	})
	return ch
}

// Watch sends the instances of a service, now and after each change.
func (m *Memory) Watch(ctx context.Context, service string) (<-chan []Instance, error) {
	return subscribe(ctx, m, m.watchers, service, func() []Instance { return m.list(service) }), nil
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

// Lost returns a channel that Release closes.
func (l *memoryLease) Lost() <-chan struct{} { return l.lost }

// Token returns how many holders the key has had.
func (l *memoryLease) Token() uint64 { return l.token }

// Release releases the lock. It may be called more than once.
func (l *memoryLease) Release(context.Context) error {
	l.once.Do(func() {
		close(l.lost)
		l.lock.free <- struct{}{}
	})
	return nil
}

// Get returns the entry of a key.
func (m *Memory) Get(_ context.Context, key string) (Entry, error) {
	if err := CheckEntry(key, nil); err != nil {
		return Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entry(key), nil
}

// entry returns a copy of the entry of a key. The caller holds mu.
func (m *Memory) entry(key string) Entry {
	e := m.values[key]
	e.Value = bytes.Clone(e.Value)
	return e
}

// Swap writes a value if the key has a version.
func (m *Memory) Swap(_ context.Context, key string, value []byte, version uint64) error {
	if err := CheckEntry(key, value); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.values[key].Version; now != version {
		return fault.New(fault.Aborted, "write %s: want version %d, it is %d", key, version, now)
	}
	m.version++
	m.values[key] = Entry{bytes.Clone(value), m.version}
	for ch, followed := range m.followers {
		if followed == key {
			Offer(ch, m.entry(key))
		}
	}
	return nil
}

// Follow sends the entry of a key, now and after each change.
func (m *Memory) Follow(ctx context.Context, key string) (<-chan Entry, error) {
	if err := CheckEntry(key, nil); err != nil {
		return nil, err
	}
	return subscribe(ctx, m, m.followers, key, func() Entry { return m.entry(key) }), nil
}

// Post puts up a document. It stays until it is withdrawn: the members of one process end together.
func (m *Memory) Post(_ context.Context, key string, value []byte) error {
	if err := CheckEntry(key, value); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.posts[key] = bytes.Clone(value)
	m.tellReaders(key)
	return nil
}

// Withdraw takes a document down.
func (m *Memory) Withdraw(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.posts[key]; ok {
		delete(m.posts, key)
		m.tellReaders(key)
	}
	return nil
}

// tellReaders sends the documents to the readers of a key. The caller holds mu.
func (m *Memory) tellReaders(key string) {
	for ch, prefix := range m.readers {
		if strings.HasPrefix(key, prefix) {
			Offer(ch, m.posted(prefix))
		}
	}
}

// posted returns a copy of the documents with a prefix. The caller holds mu.
func (m *Memory) posted(prefix string) map[string][]byte {
	out := map[string][]byte{}
	for key, value := range m.posts {
		if strings.HasPrefix(key, prefix) {
			out[key] = bytes.Clone(value)
		}
	}
	return out
}

// Posts sends the documents with a prefix, now and after each change.
func (m *Memory) Posts(ctx context.Context, prefix string) (<-chan map[string][]byte, error) {
	if err := CheckEntry(prefix, nil); err != nil {
		return nil, err
	}
	return subscribe(ctx, m, m.readers, prefix, func() map[string][]byte { return m.posted(prefix) }), nil
}

// Members returns all instances.
func (m *Memory) Members(context.Context) ([]Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Member, 0, len(m.instances))
	for _, r := range m.instances {
		i := r.instance
		i.Meta = maps.Clone(i.Meta)
		out = append(out, Member{Instance: i, Healthy: true})
	}
	SortMembers(out)
	return out, nil
}

// Remove removes an instance.
func (m *Memory) Remove(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.instances[id]
	if r == nil {
		return fault.New(fault.NotFound, "remove %s: there is no such instance", id)
	}
	delete(m.instances, id)
	m.tell(r.instance.Service)
	return nil
}
