package nats_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/internal/natstest"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/gradbustest"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
)

func TestMain(m *testing.M) { leak.Main(m) }

func join(t *testing.T, e *nats.Embedded, c nats.Config) *nats.Bus {
	t.Helper()
	b, err := e.Connect(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestBus_KeepsTheContract(t *testing.T) {
	for name, memory := range map[string]bool{"Memory": true, "Files": false} {
		t.Run(name, func(t *testing.T) {
			gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
				return join(t, natstest.Embedded(t), nats.Config{MaxBytes: int64(limit), Memory: memory})
			})
		})
	}
}

// A subscription that is impatient takes events for lost that are on their way, as one does on a machine that is slow.
// It reads all of them again, and delivers none twice.
func TestBus_KeepsTheContractWhenItTakesEventsForLost(t *testing.T) {
	nats.SetIdle(t, time.Millisecond)
	gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
		return join(t, natstest.Embedded(t), nats.Config{MaxBytes: int64(limit), Memory: true})
	})
}

func event(step uint64, chunk uint32) gradbus.Event {
	return gradbus.Event{Key: gradbus.Key{Run: "r", Part: "0-2", Step: step, SlotHi: 1, Chunk: chunk},
		Data: []byte{byte(step), byte(chunk)}}
}

func publish(ctx context.Context, t *testing.T, b gradbus.Bus, e gradbus.Event) {
	t.Helper()
	if err := b.Publish(ctx, e); err != nil {
		t.Fatal(err)
	}
}

func read(ctx context.Context, t *testing.T, s gradbus.Subscription, want gradbus.Event) {
	t.Helper()
	got, err := s.Next(ctx)
	if err != nil || got.Key != want.Key || string(got.Data) != string(want.Data) {
		t.Fatalf("got %v %v, want %v", got.Key, err, want.Key)
	}
}

func TestBus_CountLimitRefuses(t *testing.T) {
	b := join(t, natstest.Embedded(t), nats.Config{MaxMsgs: 2, Memory: true})
	publish(t.Context(), t, b, event(1, 0))
	publish(t.Context(), t, b, event(1, 1))
	publish(t.Context(), t, b, event(1, 1)) // stored already: no matter that it is full
	if err := b.Publish(t.Context(), event(1, 2)); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("publish to a full bus: %v", err)
	}
}

func TestBus_GoesOnWhenTheStoreIsLost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	e := natstest.Embedded(t)
	a, b := join(t, e, nats.Config{Memory: true}), join(t, e, nats.Config{Memory: true})
	s, err := b.Subscribe(ctx, "r", "0-2", 0)
	if err != nil {
		t.Fatal(err)
	}
	for step := range uint64(3) {
		publish(ctx, t, b, event(step, 0))
		read(ctx, t, s, event(step, 0))
	}
	if err := a.Remove(ctx, "r"); err != nil { // behind b's back
		t.Fatal(err)
	}
	publish(ctx, t, b, event(2, 0)) // its publisher still had it
	read(ctx, t, s, event(2, 0))
	// Without a subscriber the publisher creates the stream again.
	alone := event(1, 0)
	alone.Key.Run = "alone"
	publish(ctx, t, b, alone)
	if err := a.Remove(ctx, "alone"); err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, b, alone)
}

// listening starts a server with a token on a port; 0 means a free one.
func listening(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	return natstest.Start(t, &server.Options{Port: port, StoreDir: dir, Authorization: "secret"})
}

func TestBus_GoesOnWhenTheServerComesBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	s := listening(t, dir, 0)
	b, err := nats.Connect(nats.Config{URL: s.ClientURL(), Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	reader, err := b.Subscribe(ctx, "r", "0-2", 0)
	if err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, b, event(1, 0))
	read(ctx, t, reader, event(1, 0))
	port := s.Addr().(*net.TCPAddr).Port
	natstest.Stop(s)
	if err := b.Publish(shortly(ctx, t), event(1, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publish with no server: %v", err)
	}
	if _, err := reader.Next(shortly(ctx, t)); fault.CodeOf(err) != fault.DeadlineExceeded {
		t.Errorf("read with no server: %v", err)
	}
	listening(t, dir, port)
	publish(ctx, t, b, event(1, 1))
	for { // the server may have lost how far the reader was, and events may be delivered again
		got, err := reader.Next(ctx)
		if err == nil && got.Key == event(1, 0).Key {
			continue
		}
		if err != nil || got.Key != event(1, 1).Key {
			t.Fatalf("got %v %v, want %v", got.Key, err, event(1, 1).Key)
		}
		return
	}
}

func shortly(ctx context.Context, t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestConnect_RefusedCredentialsAreNotTriedForEver(t *testing.T) {
	s := listening(t, t.TempDir(), 0)
	b, err := nats.Connect(nats.Config{URL: s.ClientURL(), Token: "wrong"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.Await(ctx); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("a wrong token: %v", err)
	}
}

func TestConnect_WaitsForAServerThatStartsLater(t *testing.T) {
	dir := t.TempDir()
	s := listening(t, dir, 0)
	port, url := s.Addr().(*net.TCPAddr).Port, s.ClientURL()
	natstest.Stop(s)
	b, err := nats.Connect(nats.Config{URL: url, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Await(shortly(t.Context(), t)); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("without a server: %v", err)
	}
	if err := b.Publish(shortly(t.Context(), t), event(1, 0)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publish without a server: %v", err)
	}
	listening(t, dir, port)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.Await(ctx); err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, b, event(1, 0))
}

func TestEmbedded_RemovesItsOwnDirectory(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	e, err := nats.NewEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) == 0 {
		t.Errorf("files outside the folder: %v, %v", left, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
