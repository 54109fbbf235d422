package nats_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/natstest"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
)

// TestBus_DamagedBlocksLoseNothing flips bits in the stored blocks while the server is down. Publishers still have
// their events and publish them again, as an outbox does. The reader gets all of them, with the bits that they had,
// also if the server has lost its index of the blocks and gives out sequence numbers for a second time.
func TestBus_DamagedBlocksLoseNothing(t *testing.T) {
	rounds := uint64(12)
	if os.Getenv("LAMINA_SLOW") != "" {
		rounds = 200
	}
	for seed := range rounds {
		read, indexed := 8*int(seed%2), seed%4 < 2
		t.Run(fmt.Sprintf("Seed=%d,Read=%d,Index=%v", seed, read, indexed), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			random := rand.New(rand.NewPCG(seed, 9))
			dir := t.TempDir()
			s := listening(t, dir, 0)
			dial := func() *nats.Bus {
				b, err := nats.Connect(nats.Config{URL: s.ClientURL(), Token: "secret"})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { b.Close() })
				return b
			}
			publisher, reader := dial(), dial()
			var events []gradbus.Event
			for i := range uint32(12) {
				e := event(1, i)
				e.Data = make([]byte, 200)
				for j := range e.Data {
					e.Data[j] = byte(random.Uint32())
				}
				events = append(events, e)
			}
			sub, err := reader.Subscribe(ctx, "r", "0-2", 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events[:8] {
				publish(ctx, t, publisher, e)
			}
			for _, e := range events[:read] {
				read1(ctx, t, sub, e)
			}
			if read == 0 { // those that the client has taken in advance would not be read from the store
				if err := sub.Close(); err != nil {
					t.Fatal(err)
				}
			}
			port := s.Addr().(*net.TCPAddr).Port
			natstest.Stop(s)
			if natstest.Damage(t, dir, random, !indexed) == 0 {
				t.Fatal("the server has stored no blocks")
			}
			listening(t, dir, port)
			if read == 0 {
				if sub, err = reader.Subscribe(ctx, "r", "0-2", 1); err != nil {
					t.Fatal(err)
				}
			}
			want := map[gradbus.Key][]byte{}
			for _, e := range events[read:] {
				want[e.Key] = e.Data
			}
			again := make(chan map[gradbus.Key]error, 1)
			ended, end := context.WithCancel(ctx)
			go func() { again <- republish(ended, publisher, events) }()
			for len(want) > 0 {
				var e gradbus.Event
				if e, err = sub.Next(ctx); err != nil {
					break
				}
				if data := want[e.Key]; data != nil && !bytes.Equal(e.Data, data) {
					t.Errorf("%v has other bits", e.Key)
				}
				delete(want, e.Key)
			}
			end()
			refused := <-again
			for key := range want {
				t.Errorf("%v is not read: %v; the last error of its publisher: %v", key, err, refused[key])
			}
		})
	}
}

// read1 reads an event.
func read1(ctx context.Context, t *testing.T, s gradbus.Subscription, want gradbus.Event) {
	t.Helper()
	if got, err := s.Next(ctx); err != nil || got.Key != want.Key || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("got %v, %v, want %v", got.Key, err, want.Key)
	}
}

// republish publishes events again and again until ctx ends. It returns the last error before that for each.
func republish(ctx context.Context, b gradbus.Bus, events []gradbus.Event) map[gradbus.Key]error {
	refused := map[gradbus.Key]error{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, e := range events {
			if err := b.Publish(ctx, e); ctx.Err() == nil {
				refused[e.Key] = err // it counts if the reader goes without the event
			}
		}
		select {
		case <-ctx.Done():
			return refused
		case <-tick.C:
		}
	}
}
