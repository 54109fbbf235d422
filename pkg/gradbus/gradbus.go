// Package gradbus carries gradient events between the shards of a training run. A
// Bus delivers at least once and in order within a part; the key of an event says
// what it is, so whoever folds takes each once. NewMemory is the twin inside one
// process, gradbus/nats the one on JetStream; gradbustest is their contract.
//
// The bus carries bytes: lamina.event.v1 says what they mean. Publishers keep what
// they sent until the step that used it is committed, since no store is for ever.
package gradbus

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// MaxEvent is the most bytes an event may have.
const MaxEvent = 512 << 10

// Key says what an event is. Two events of one key are the same.
type Key struct {
	Run            string
	Part           string // of the model, as in lamina.event.v1
	Step           uint64
	SlotLo, SlotHi uint32 // the tree node's slots
	Chunk          uint32
}

// String is the key as log lines and message ids spell it.
func (k Key) String() string {
	return fmt.Sprintf("%s.%s.%d.%d-%d.%d", k.Run, k.Part, k.Step, k.SlotLo, k.SlotHi, k.Chunk)
}

// Event is a keyed piece of a gradient.
type Event struct {
	Key  Key
	Data []byte // at most MaxEvent; not changed after Publish
}

// Bus is where the replicas of a run meet.
type Bus interface {
	// Publish returns when the bus has stored the event. Publishing a key again
	// changes nothing. A full bus is Exhausted.
	Publish(ctx context.Context, e Event) error
	// Subscribe delivers the events of a run's part in the order they were stored,
	// from the given step on, those already stored first.
	Subscribe(ctx context.Context, run, part string, from uint64) (Subscription, error)
	// Purge forgets the events of a run before the given step.
	Purge(ctx context.Context, run string, before uint64) error
	// Close ends every subscription.
	Close() error
}

// Subscription is an ordered reader.
type Subscription interface {
	// Next waits for an event until ctx ends.
	Next(ctx context.Context) (Event, error)
	// Close ends the subscription.
	Close() error
}

// Memory is a bus inside one process.
type Memory struct {
	limit int

	mu     sync.Mutex
	events []Event
	keys   map[Key]bool
	bytes  int
	grown  chan struct{} // closed and renewed when events or closed change
	closed bool
	purged uint64 // events dropped from the front, to keep cursors valid
}

// NewMemory returns an empty bus that holds at most limit bytes; 0 for no limit.
func NewMemory(limit int) *Memory {
	return &Memory{limit: limit, keys: map[Key]bool{}, grown: make(chan struct{})}
}

// Check reports an event that no bus takes.
func Check(e Event) error {
	if e.Key.Run == "" || e.Key.Part == "" {
		return fault.New(fault.Invalid, "publish %v: run and part must be set", e.Key)
	}
	if len(e.Data) > MaxEvent {
		return fault.New(fault.Invalid, "publish %v: %d bytes, more than %d", e.Key, len(e.Data), MaxEvent)
	}
	return nil
}

// Publish stores an event.
func (m *Memory) Publish(ctx context.Context, e Event) error {
	if err := Check(e); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "publish %v", e.Key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return fault.New(fault.Unavailable, "publish %v: the bus is closed", e.Key)
	case m.keys[e.Key]:
		return nil
	case m.limit > 0 && m.bytes+len(e.Data) > m.limit:
		return fault.New(fault.Exhausted, "publish %v: the bus holds %d of %d bytes", e.Key, m.bytes, m.limit)
	}
	e.Data = slices.Clone(e.Data)
	m.events = append(m.events, e)
	m.keys[e.Key] = true
	m.bytes += len(e.Data)
	m.wake()
	return nil
}

func (m *Memory) wake() {
	close(m.grown)
	m.grown = make(chan struct{})
}

// Subscribe reads a part of a run.
func (m *Memory) Subscribe(_ context.Context, run, part string, from uint64) (Subscription, error) {
	return &memorySubscription{bus: m, run: run, part: part, from: from, done: make(chan struct{})}, nil
}

type memorySubscription struct {
	bus       *Memory
	run, part string
	from      uint64
	at        uint64 // events passed, counted from the bus's first
	done      chan struct{}
	once      sync.Once
}

// Next waits for an event.
func (s *memorySubscription) Next(ctx context.Context) (Event, error) {
	for {
		s.bus.mu.Lock()
		s.at = max(s.at, s.bus.purged)
		for i := s.at - s.bus.purged; i < uint64(len(s.bus.events)); i++ {
			s.at++
			if e := s.bus.events[i]; e.Key.Run == s.run && e.Key.Part == s.part && e.Key.Step >= s.from {
				s.bus.mu.Unlock()
				return e, nil
			}
		}
		grown, closed := s.bus.grown, s.bus.closed
		s.bus.mu.Unlock()
		if closed {
			return Event{}, fault.New(fault.Unavailable, "read %s.%s: the bus is closed", s.run, s.part)
		}
		select {
		case <-grown:
		case <-s.done:
			return Event{}, fault.New(fault.Canceled, "read %s.%s: the subscription is closed", s.run, s.part)
		case <-ctx.Done():
			return Event{}, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "read %s.%s", s.run, s.part)
		}
	}
}

// Close ends the subscription.
func (s *memorySubscription) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// Purge forgets old events. Those behind a kept one stay until it goes.
func (m *Memory) Purge(_ context.Context, run string, before uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.events) > 0 && m.events[0].Key.Run == run && m.events[0].Key.Step < before {
		m.bytes -= len(m.events[0].Data)
		delete(m.keys, m.events[0].Key)
		m.events[0] = Event{}
		m.events = m.events[1:]
		m.purged++
	}
	return nil
}

// Close ends every subscription.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		m.wake()
	}
	return nil
}
