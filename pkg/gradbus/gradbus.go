package gradbus

import (
	"context"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of an event.
const (
	// MaxEvent is the most bytes an event may have.
	MaxEvent = 512 << 10
	// MaxName is the most bytes the name of a run or of a part may have.
	MaxName = 64
)

// Key says what an event is. Two events of one key are the same.
type Key struct {
	Run            string
	Part           string // of the model, as in lamina.event.v1
	Step           uint64
	SlotLo, SlotHi uint32 // the tree node's slots
	Chunk          uint32
}

// String is the key as log lines spell it.
func (k Key) String() string {
	return fmt.Sprintf("%s.%s.%d.%d-%d.%d", k.Run, k.Part, k.Step, k.SlotLo, k.SlotHi, k.Chunk)
}

// Event is a keyed piece of a gradient.
type Event struct {
	Key  Key
	Data []byte // at most MaxEvent bytes; not changed after Publish
}

// Bus is where the replicas of a run meet. It is safe for concurrent use.
type Bus interface {
	// Publish returns when the bus has stored the event. Publishing a key that is
	// stored changes nothing. An event that no bus takes is Invalid, a full bus
	// Exhausted, a closed one Unavailable.
	Publish(ctx context.Context, e Event) error
	// Subscribe delivers the events of a run's part in the order they were stored,
	// from the given step on, those already stored first.
	Subscribe(ctx context.Context, run, part string, from uint64) (Subscription, error)
	// Purge forgets the events of a run before the given step.
	Purge(ctx context.Context, run string, before uint64) error
	// Remove forgets a run. Who publishes to it again starts an empty one.
	Remove(ctx context.Context, run string) error
	// Close ends every subscription.
	Close() error
}

// Subscription is an ordered reader, for one goroutine at a time.
type Subscription interface {
	// Next waits for an event until ctx ends. A closed subscription is Canceled, a
	// closed bus Unavailable.
	Next(ctx context.Context) (Event, error)
	// Close ends the subscription, and a Next that waits. More than once is no error.
	Close() error
}

// Check reports an event that no bus takes.
func Check(e Event) error {
	if err := CheckName("run", e.Key.Run); err != nil {
		return err
	}
	if err := CheckName("part", e.Key.Part); err != nil {
		return err
	}
	if len(e.Data) > MaxEvent {
		return fault.New(fault.Invalid, "publish %v: %d bytes, more than %d", e.Key, len(e.Data), MaxEvent)
	}
	return nil
}

// CheckName reports a name of a run or part that no bus takes.
func CheckName(field, name string) error {
	if name == "" || len(name) > MaxName {
		return fault.Field(field, "name gradient events: %q has %d bytes, want 1 to %d", name, len(name), MaxName)
	}
	return nil
}
