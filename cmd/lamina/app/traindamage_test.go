package app_test

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/lamina-mesh/lamina/internal/natstest"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// gated is a bus whose subscriptions wait for a gate to open, so that until then the events of a step are in the
// store and nowhere else but in the outboxes.
type gated struct {
	gradbus.Bus
	open chan struct{} // closed when subscriptions may begin

	mu      sync.Mutex
	stored  int           // acked events
	waiting int           // subscriptions
	changed chan struct{} // closed and replaced with every change
}

func (b *gated) count(n *int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*n++
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *gated) Publish(ctx context.Context, e gradbus.Event) error {
	err := b.Bus.Publish(ctx, e)
	if err == nil {
		b.count(&b.stored)
	}
	return err
}

func (b *gated) Subscribe(ctx context.Context, run, part string, from uint64) (gradbus.Subscription, error) {
	b.count(&b.waiting)
	select {
	case <-b.open:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return b.Bus.Subscribe(ctx, run, part, from)
}

// await waits until there are so many stored events and subscriptions that wait.
func (b *gated) await(ctx context.Context, stored, waiting int) error {
	for {
		b.mu.Lock()
		done, changed := b.stored >= stored && b.waiting >= waiting, b.changed
		b.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fileServer is a NATS server that stores streams in files.
type fileServer struct {
	t      *testing.T
	dir    string
	s      *server.Server
	random *rand.Rand
}

func newFileServer(t *testing.T) *fileServer {
	f := &fileServer{t: t, dir: t.TempDir(), random: rand.New(rand.NewPCG(20, 2))}
	f.s = natstest.Start(t, &server.Options{StoreDir: f.dir})
	return f
}

// damage stops the server, flips bits in its blocks of messages and starts it again. It returns how many bits were
// flipped.
func (f *fileServer) damage(powerCut bool) (flips int) {
	port := f.s.Addr().(*net.TCPAddr).Port
	natstest.Stop(f.s)
	flips = natstest.Damage(f.t, f.dir, f.random, powerCut)
	f.s = natstest.Start(f.t, &server.Options{Port: port, StoreDir: f.dir})
	return flips
}

// T2: bits flip in what JetStream has stored. First all gradients of a step are in the store only, and then the server
// is stopped in the middle of steps. No step is lost, no replica is blamed, and the weights are those of a calm run.
func TestTrain_DamagedBlocksCostNoBit(t *testing.T) {
	for _, c := range []struct {
		wire             string
		stages, replicas uint32
	}{{"f32", 2, 2}, {"int8", 1, 3}, {"diloco", 1, 2}} {
		t.Run(c.wire, func(t *testing.T) {
			change := map[string]any{"steps": 24, "slots": 6, "checkpoint_every": 1000, "name": "damaged-" + c.wire}
			for k, v := range wires()[c.wire] {
				change[k] = v
			}
			raw := manifest(t, "damaged", change)
			s := newFileServer(t)
			inner, err := nats.Connect(nats.Config{URL: s.s.ClientURL()})
			if err != nil {
				t.Fatal(err)
			}
			bus := &gated{Bus: inner, open: make(chan struct{}), changed: make(chan struct{})}
			f := (&trainFleet{bus: bus, outbox: gradbus.OutboxConfig{Resend: 100 * time.Millisecond}}).start(t,
				int(c.stages*c.replicas), trainer.Config{})
			calmOut, out := t.TempDir(), t.TempDir()
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)

			// A stage that misses events gives up after five minutes, and the run starts again from its checkpoint.
			ctx, cancel := context.WithTimeout(f.ctx, 3*time.Minute)
			defer cancel()
			f.ctx = ctx
			first := make(chan int, 1)
			go func() {
				defer close(bus.open)
				if err := bus.await(ctx, int(c.replicas), int(c.replicas)); err != nil {
					t.Error(err)
					return
				}
				first <- s.damage(false)
			}()
			check, at, flips := forward(t), uint64(6), 0
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: c.stages, Replicas: c.replicas,
				Out: out}, func(r *trainerv1.Run) {
				check(r)
				if r.GetState() == trainerv1.RunState_RUN_STATE_RUNNING && r.GetStep() >= at {
					at += 6
					flips += s.damage(at%12 == 0)
				}
			})
			same(t, c.wire, out, calmOut, got, calm)
			if n := <-first; n == 0 || flips == 0 {
				t.Errorf("%d bits flipped before the gradients were read, %d later", n, flips)
			}
			if len(got.GetQuarantined()) > 0 || got.GetLost() > 0 {
				t.Errorf("%d replicas lost, quarantined: %v", got.GetLost(), got.GetQuarantined())
			}
		})
	}
}
