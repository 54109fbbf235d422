// Package gradbustest is the test suite that every gradbus.Bus must pass. The test of an
// implementation calls Run and closes the buses that it opens.
package gradbustest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// Run tests a bus. open returns an empty bus that stores at most limit bytes for each run.
func Run(t *testing.T, open func(t *testing.T, limit int) gradbus.Bus) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	t.Run("DeliversAPartInOrder", func(t *testing.T) { order(ctx, t, open(t, 1<<24)) })
	t.Run("TakesAKeyOnce", func(t *testing.T) { once(ctx, t, open(t, 1<<24)) })
	t.Run("KeepsAttemptsApart", func(t *testing.T) { attempts(ctx, t, open(t, 1<<24)) })
	t.Run("ResumesFromAStep", func(t *testing.T) { resume(ctx, t, open(t, 1<<24)) })
	t.Run("PurgesOldSteps", func(t *testing.T) { purge(ctx, t, open(t, 1<<24)) })
	t.Run("RefusesWhenFull", func(t *testing.T) { full(ctx, t, open(t, 1<<20)) })
	t.Run("NextEndsWithItsContext", func(t *testing.T) { ends(ctx, t, open(t, 1<<20)) })
	t.Run("RefusesWhatNoBusTakes", func(t *testing.T) { invalid(ctx, t, open(t, 1<<24)) })
	t.Run("TakesAKeyAgainAfterItsPurge", func(t *testing.T) { again(ctx, t, open(t, 1<<24)) })
	t.Run("TakesMoreAfterAPurge", func(t *testing.T) { room(ctx, t, open(t, 1<<20)) })
	t.Run("KeepsRunsApart", func(t *testing.T) { apart(ctx, t, open(t, 1<<24)) })
	t.Run("RemovesARun", func(t *testing.T) { remove(ctx, t, open(t, 1<<24)) })
	t.Run("CarriesManyPublishersAtOnce", func(t *testing.T) { many(ctx, t, open(t, 1<<24)) })
	t.Run("CloseEndsWhoWaits", func(t *testing.T) { closes(ctx, t, open(t, 1<<20)) })
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
	t.Cleanup(func() { _ = s.Close() })
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

func attempts(ctx context.Context, t *testing.T, b gradbus.Bus) {
	again := event("p", 1, 0)
	again.Key.Attempt, again.Data = 2, []byte("again")
	publish(ctx, t, b, event("p", 1, 0), again, again)
	expect(ctx, t, subscribe(ctx, t, b, "p", 1), event("p", 1, 0), again)
	if err := b.Purge(ctx, "run one.*", 2); err != nil {
		t.Fatal(err)
	}
	silent(ctx, t, subscribe(ctx, t, b, "p", 0))
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
		t.Errorf("publish to a full bus: %v", err)
	}
}

func ends(ctx context.Context, t *testing.T, b gradbus.Bus) {
	s := subscribe(ctx, t, b, "p", 0)
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := s.Next(ctx); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("Next with a canceled context: %v", err)
	}
}

func invalid(ctx context.Context, t *testing.T, b gradbus.Bus) {
	e := event("p", 1, 0)
	e.Data = make([]byte, gradbus.MaxEvent+1)
	if err := b.Publish(ctx, e); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an event of %d bytes: %v", len(e.Data), err)
	}
	e.Data = e.Data[1:]
	publish(ctx, t, b, e)
	for _, name := range []string{"", strings.Repeat("x", gradbus.MaxName+1)} {
		bad := event(name, 1, 0)
		if err := b.Publish(ctx, bad); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("part %q: %v", name, err)
		}
		if s, err := b.Subscribe(ctx, "run", name, 0); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("read part %q: %v, %v", name, s, err)
		}
		bad = event("p", 1, 0)
		bad.Key.Run = name
		if err := b.Publish(ctx, bad); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("run %q: %v", name, err)
		}
	}
	// The longest names, of characters that must be escaped, and an event without data.
	worst := event(strings.Repeat("*", gradbus.MaxName), 1<<63, 1<<31)
	worst.Key.Run, worst.Data = strings.Repeat(">", gradbus.MaxName), nil
	publish(ctx, t, b, worst)
	s, err := b.Subscribe(ctx, worst.Key.Run, worst.Key.Part, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	expect(ctx, t, s, worst)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Publish(gone, event("p", 9, 0)); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("publish with a canceled context: %v", err)
	}
}

func again(ctx context.Context, t *testing.T, b gradbus.Bus) {
	publish(ctx, t, b, event("p", 2, 0), event("p", 1, 0))
	if err := b.Purge(ctx, "run one.*", 2); err != nil { // step 1 is stored after step 2, and goes too
		t.Fatal(err)
	}
	publish(ctx, t, b, event("p", 1, 0), event("p", 2, 0))
	expect(ctx, t, subscribe(ctx, t, b, "p", 0), event("p", 2, 0), event("p", 1, 0))
	if err := b.Purge(ctx, "run that never was", 2); err != nil {
		t.Errorf("purge a run that does not exist: %v", err)
	}
}

func room(ctx context.Context, t *testing.T, b gradbus.Bus) {
	for step := uint64(1); step < 9; step++ {
		for chunk := range uint32(3) {
			e := event("p", step, chunk)
			e.Data = make([]byte, 128<<10)
			publish(ctx, t, b, e)
		}
		if err := b.Purge(ctx, "run one.*", step); err != nil {
			t.Fatal(err)
		}
	}
}

func apart(ctx context.Context, t *testing.T, b gradbus.Bus) {
	other := event("p", 1, 0)
	other.Key.Run, other.Data = "run one_", []byte("other")
	publish(ctx, t, b, other, event("p", 1, 0))
	s := subscribe(ctx, t, b, "p", 0)
	expect(ctx, t, s, event("p", 1, 0))
	silent(ctx, t, s)
	if err := b.Purge(ctx, "run one.*", 2); err != nil {
		t.Fatal(err)
	}
	kept, err := b.Subscribe(ctx, "run one_", "p", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kept.Close() })
	expect(ctx, t, kept, other)
}

func remove(ctx context.Context, t *testing.T, b gradbus.Bus) {
	publish(ctx, t, b, event("p", 1, 0))
	for range 2 { // removing a missing run is no error
		if err := b.Remove(ctx, "run one.*"); err != nil {
			t.Fatal(err)
		}
	}
	publish(ctx, t, b, event("p", 2, 0))
	expect(ctx, t, subscribe(ctx, t, b, "p", 0), event("p", 2, 0))
}

func many(ctx context.Context, t *testing.T, b gradbus.Bus) {
	const publishers, chunks = 8, 16
	s := subscribe(ctx, t, b, "p", 0)
	g, ctx := errgroup.WithContext(ctx)
	for p := range uint64(publishers) {
		g.Go(func() error {
			for c := range uint32(chunks) {
				// Two publishers share each step, so that they publish the same keys.
				e := event("p", p/2, c)
				e.Data = bytes.Repeat(e.Data, 4096)
				if err := b.Publish(ctx, e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	seen := map[gradbus.Key]bool{}
	for len(seen) < publishers/2*chunks {
		e, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("after %d events: %v, %v", len(seen), err, g.Wait())
		}
		if seen[e.Key] {
			t.Errorf("%v was delivered twice, without any failure", e.Key)
		}
		if want := bytes.Repeat(event("p", e.Key.Step, e.Key.Chunk).Data, 4096); !bytes.Equal(e.Data, want) {
			t.Errorf("%v was delivered with other data", e.Key)
		}
		seen[e.Key] = true
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func closes(ctx context.Context, t *testing.T, b gradbus.Bus) {
	one, two := subscribe(ctx, t, b, "p", 0), subscribe(ctx, t, b, "p", 0)
	wait := func(s gradbus.Subscription) <-chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := s.Next(ctx)
			ended <- err
		}()
		return ended
	}
	ended := wait(one)
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; fault.CodeOf(err) != fault.Canceled {
		t.Errorf("Next on a closed subscription: %v", err)
	}
	ended = wait(two)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Next on a closed bus: %v", err)
	}
	if err := b.Publish(ctx, event("p", 1, 0)); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("publish on a closed bus: %v", err)
	}
	if _, err := b.Subscribe(ctx, "run", "p", 0); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("read a closed bus: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}
