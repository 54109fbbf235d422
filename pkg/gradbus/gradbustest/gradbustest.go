// Package gradbustest is the contract that every gradbus.Bus passes.
package gradbustest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// Run checks a bus. open returns an empty bus that stores at most limit bytes a run.
func Run(t *testing.T, open func(t *testing.T, limit int) gradbus.Bus) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t.Run("DeliversAPartInOrder", func(t *testing.T) { order(ctx, t, open(t, 1<<24)) })
	t.Run("TakesAKeyOnce", func(t *testing.T) { once(ctx, t, open(t, 1<<24)) })
	t.Run("ResumesFromAStep", func(t *testing.T) { resume(ctx, t, open(t, 1<<24)) })
	t.Run("PurgesOldSteps", func(t *testing.T) { purge(ctx, t, open(t, 1<<24)) })
	t.Run("RefusesWhenFull", func(t *testing.T) { full(ctx, t, open(t, 1<<20)) })
	t.Run("NextEndsWithItsContext", func(t *testing.T) { ends(ctx, t, open(t, 1<<20)) })
	t.Run("RefusesWhatIsTooLarge", func(t *testing.T) { large(ctx, t, open(t, 1<<24)) })
}

func event(part string, step uint64, chunk uint32) gradbus.Event {
	return gradbus.Event{
		Key:  gradbus.Key{Run: "run one.*", Part: part, Step: step, SlotLo: 2, SlotHi: 4, Chunk: chunk},
		Data: []byte(fmt.Sprintf("%s/%d/%d", part, step, chunk)),
	}
}

func publish(ctx context.Context, t *testing.T, b gradbus.Bus, events ...gradbus.Event) {
	t.Helper()
	for _, e := range events {
		if err := b.Publish(ctx, e); err != nil {
			t.Fatalf("publish %v: %v", e.Key, err)
		}
	}
}

func subscribe(ctx context.Context, t *testing.T, b gradbus.Bus, part string, from uint64) gradbus.Subscription {
	t.Helper()
	s, err := b.Subscribe(ctx, "run one.*", part, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func expect(ctx context.Context, t *testing.T, s gradbus.Subscription, want ...gradbus.Event) {
	t.Helper()
	for _, w := range want {
		got, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("waiting for %v: %v", w.Key, err)
		}
		if got.Key != w.Key || !bytes.Equal(got.Data, w.Data) {
			t.Fatalf("got %v %q, want %v %q", got.Key, got.Data, w.Key, w.Data)
		}
	}
}

func silent(ctx context.Context, t *testing.T, s gradbus.Subscription) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if e, err := s.Next(ctx); err == nil {
		t.Fatalf("got %v, want nothing", e.Key)
	}
}

func order(ctx context.Context, t *testing.T, b gradbus.Bus) {
	publish(ctx, t, b, event("0-2", 1, 0))
	s := subscribe(ctx, t, b, "0-2", 0)
	other := subscribe(ctx, t, b, "2-4", 0)
	publish(ctx, t, b, event("0-2", 1, 1), event("2-4", 1, 0), event("0-2", 2, 0))
	expect(ctx, t, s, event("0-2", 1, 0), event("0-2", 1, 1), event("0-2", 2, 0))
	expect(ctx, t, other, event("2-4", 1, 0))
	silent(ctx, t, s)
}

func once(ctx context.Context, t *testing.T, b gradbus.Bus) {
	s := subscribe(ctx, t, b, "p", 0)
	publish(ctx, t, b, event("p", 1, 0), event("p", 1, 0), event("p", 1, 1))
	expect(ctx, t, s, event("p", 1, 0), event("p", 1, 1))
}

func resume(ctx context.Context, t *testing.T, b gradbus.Bus) {
	publish(ctx, t, b, event("p", 1, 0), event("p", 2, 0), event("p", 3, 0))
	expect(ctx, t, subscribe(ctx, t, b, "p", 2), event("p", 2, 0), event("p", 3, 0))
}

func purge(ctx context.Context, t *testing.T, b gradbus.Bus) {
	publish(ctx, t, b, event("p", 1, 0), event("q", 1, 0), event("p", 2, 0))
	open := subscribe(ctx, t, b, "p", 0)
	expect(ctx, t, open, event("p", 1, 0))
	if err := b.Purge(ctx, "run one.*", 2); err != nil {
		t.Fatal(err)
	}
	expect(ctx, t, open, event("p", 2, 0))
	expect(ctx, t, subscribe(ctx, t, b, "p", 0), event("p", 2, 0))
	silent(ctx, t, subscribe(ctx, t, b, "q", 0))
}

func full(ctx context.Context, t *testing.T, b gradbus.Bus) {
	var err error
	for chunk := uint32(0); err == nil && chunk < 64; chunk++ {
		e := event("p", 1, chunk)
		e.Data = make([]byte, 128<<10)
		err = b.Publish(ctx, e)
	}
	if fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a full bus answers %v", err)
	}
}

func ends(ctx context.Context, t *testing.T, b gradbus.Bus) {
	s := subscribe(ctx, t, b, "p", 0)
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := s.Next(ctx); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("a canceled wait ends with %v", err)
	}
}

func large(ctx context.Context, t *testing.T, b gradbus.Bus) {
	e := event("p", 1, 0)
	e.Data = make([]byte, gradbus.MaxEvent+1)
	if err := b.Publish(ctx, e); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an event of %d bytes: %v", len(e.Data), err)
	}
	e.Data = e.Data[1:]
	publish(ctx, t, b, e)
}
