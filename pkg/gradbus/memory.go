package gradbus

import (
	"context"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Memory is a bus for one process.
type Memory struct {
	limit int

	mu     sync.Mutex
	runs   map[string]*memoryRun
	grown  chan struct{} // closed and replaced when an event is stored or the bus is closed
	closed bool
	seq    uint64 // of the last event stored
}

// memoryRun holds the stored events of one run.
type memoryRun struct {
	events []memoryEvent // by seq
	keys   map[Key]bool
	bytes  int
}

type memoryEvent struct {
	seq uint64
	Event
}

// NewMemory returns an empty bus that stores at most limit bytes for each run; 0 means no limit.
func NewMemory(limit int) *Memory {
	return &Memory{limit: limit, runs: map[string]*memoryRun{}, grown: make(chan struct{})}
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
	if m.closed {
		return fault.New(fault.Unavailable, "publish %v: the bus is closed", e.Key)
	}
	run := m.runs[e.Key.Run]
	if run == nil {
		run = &memoryRun{keys: map[Key]bool{}}
		m.runs[e.Key.Run] = run
	}
	if run.keys[e.Key] {
		return nil
	}
	if m.limit > 0 && run.bytes+len(e.Data) > m.limit {
		return fault.New(fault.Exhausted, "publish %v: the run holds %d of %d bytes", e.Key, run.bytes, m.limit)
	}
	e.Data = slices.Clone(e.Data)
	m.seq++
	run.events = append(run.events, memoryEvent{m.seq, e})
	run.keys[e.Key] = true
	run.bytes += len(e.Data)
	m.wake()
	return nil
}

func (m *Memory) wake() {
	close(m.grown)
	m.grown = make(chan struct{})
}

// Subscribe returns a reader of a part of a run.
func (m *Memory) Subscribe(_ context.Context, run, part string, from uint64) (Subscription, error) {
	if err := CheckName("run", run); err != nil {
		return nil, err
	}
	if err := CheckName("part", part); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fault.New(fault.Unavailable, "read %s.%s: the bus is closed", run, part)
	}
	return &memorySubscription{bus: m, run: run, part: part, from: from, done: make(chan struct{})}, nil
}

type memorySubscription struct {
	bus       *Memory
	run, part string
	from      uint64
	at        uint64 // seq of the last event looked at
	done      chan struct{}
	once      sync.Once
}

// Next waits for an event.
func (s *memorySubscription) Next(ctx context.Context) (Event, error) {
	for {
		select {
		case <-s.done:
			return Event{}, fault.New(fault.Canceled, "read %s.%s: the subscription is closed", s.run, s.part)
		default:
		}
		e, found, grown, closed := s.look()
		switch {
		case closed:
			return Event{}, fault.New(fault.Unavailable, "read %s.%s: the bus is closed", s.run, s.part)
		case found:
			return e, nil
		}
		select {
		case <-grown:
		case <-s.done:
		case <-ctx.Done():
			return Event{}, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "read %s.%s", s.run, s.part)
		}
	}
}

// look returns the next stored event. If there is none, grown is closed when it is worth looking
// again.
func (s *memorySubscription) look() (e Event, found bool, grown <-chan struct{}, closed bool) {
	m := s.bus
	m.mu.Lock()
	defer m.mu.Unlock()
	if run := m.runs[s.run]; run != nil {
		first, _ := slices.BinarySearchFunc(run.events, s.at+1, func(e memoryEvent, seq uint64) int {
			if e.seq < seq {
				return -1
			}
			return int(min(e.seq-seq, 1))
		})
		for _, e := range run.events[first:] {
			s.at = e.seq
			if e.Key.Part == s.part && e.Key.Step >= s.from {
				return e.Event, true, nil, m.closed
			}
		}
	}
	return Event{}, false, m.grown, m.closed
}

// Close ends the subscription.
func (s *memorySubscription) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// Purge deletes the events of a run before a step.
func (m *Memory) Purge(_ context.Context, name string, before uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fault.New(fault.Unavailable, "purge run %s: the bus is closed", name)
	}
	run := m.runs[name]
	if run == nil {
		return nil
	}
	run.events = slices.DeleteFunc(run.events, func(e memoryEvent) bool {
		if e.Key.Step >= before {
			return false
		}
		delete(run.keys, e.Key)
		run.bytes -= len(e.Data)
		return true
	})
	return nil
}

// Remove deletes a run.
func (m *Memory) Remove(_ context.Context, run string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fault.New(fault.Unavailable, "remove run %s: the bus is closed", run)
	}
	delete(m.runs, run)
	return nil
}

// Close ends all subscriptions.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		m.wake()
	}
	return nil
}
