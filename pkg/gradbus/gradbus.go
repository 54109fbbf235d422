package gradbus

import (
	"context"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of an event.
const (
	// MaxEvent is the maximum size of an event in bytes.
	MaxEvent = 512 << 10
	// MaxName is the maximum length in bytes of the name of a run or of a part.
	MaxName = 64
)

// Key identifies an event. Two events with the same key are equal.
type Key struct {
	Run            string
	Part           string // of the model, as in lamina.event.v1
	Step           uint64
	SlotLo, SlotHi uint32 // the slots of the node in the gradient tree, [SlotLo, SlotHi)
	Chunk          uint32
	// Attempt numbers the attempts at a step, from 0. An event of an attempt that was aborted hides none of the
	// next attempt.
	Attempt uint32
}

// String returns the key as it appears in log lines.
func (k Key) String() string {
	text := fmt.Sprintf("%s.%s.%d.%d-%d.%d", k.Run, k.Part, k.Step, k.SlotLo, k.SlotHi, k.Chunk)
	if k.Attempt > 0 {
		text += fmt.Sprintf("-%d", k.Attempt)
	}
	return text
}

// Event is a keyed piece of a gradient.
type Event struct {
	Key  Key
	Data []byte // at most MaxEvent bytes; not changed after Publish
}

// Bus connects the replicas of a run. It is safe for concurrent use.
type Bus interface {
	// Publish returns when the bus has stored the event. Publishing a key that is already
	// stored has no effect. Publish returns Invalid for an event that fails Check, Exhausted
	// if the bus is full, and Unavailable if it is closed.
	Publish(ctx context.Context, e Event) error
	// Subscribe delivers the events of a part of a run from the given step on, in the order
	// in which they were stored. It starts with those that are already stored.
	Subscribe(ctx context.Context, run, part string, from uint64) (Subscription, error)
	// Purge deletes the events of a run before the given step.
	Purge(ctx context.Context, run string, before uint64) error
	// Remove deletes a run. Publishing to it again starts an empty one.
	Remove(ctx context.Context, run string) error
	// Close ends every subscription.
	Close() error
}

// Subscription is an ordered reader, for one goroutine at a time.
type Subscription interface {
	// Next waits for an event until ctx ends. It returns Canceled if the subscription is
	// closed and Unavailable if the bus is closed.
	Next(ctx context.Context) (Event, error)
	// Close ends the subscription and a waiting Next. It may be called more than once.
	Close() error
}

// Check returns an error for an event that no bus accepts.
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

// CheckName returns an error for a name of a run or part that no bus accepts.
func CheckName(field, name string) error {
	if name == "" || len(name) > MaxName {
		return fault.Field(field, "publish gradient events: name %q has %d bytes, want 1 to %d", name, len(name),
			MaxName)
	}
	return nil
}
