package shard_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/services/shard"
)

// fullBus refuses events until it has room.
type fullBus struct {
	shard.Bus
	refused chan struct{} // closed when an event is refused
	once    sync.Once
	room    chan struct{} // closed when there is room
}

func (b *fullBus) Publish(ctx context.Context, e gradbus.Event) error {
	select {
	case <-b.room:
		return b.Bus.Publish(ctx, e)
	default:
		b.once.Do(func() { close(b.refused) })
		return fault.New(fault.Exhausted, "publish %v: the bus is full", e.Key)
	}
}

// An attempt that is aborted while the bus is full ends, although a part of its gradient has not been published. The
// next attempt is made when there is room.
func TestTrain_AnAbortedAttemptDoesNotWaitForAFullBus(t *testing.T) {
	_, digests := alone(t, 1)
	bus := &fullBus{Bus: gradbus.NewMemory(busLimit), refused: make(chan struct{}), room: make(chan struct{})}
	// There is room for one event on its way, and a gradient has several.
	r := newRigOf(t, shard.Config{Kernels: ref.New[float32](), Bus: bus,
		Outbox: gradbus.OutboxConfig{Window: 300 << 10, Refused: time.Hour}})
	a, b := r.train(trainOpening(0, 2)), r.train(trainOpening(1, 2))
	a.attempt(1, 0, 0, 2, 2)
	<-bus.refused
	a.abort(1, 0)
	close(bus.room)
	a.attempt(1, 1, 0, 2, 2)
	b.attempt(1, 1, 2, 4, 2)
	for _, c := range []*conversation{a, b} {
		c.folded()
		if got := c.applyAs(&shardv1.Apply{Step: 1, Attempt: 1}); got != digests[0] {
			t.Errorf("weights %x, a single replica has %x", got, digests[0])
		}
	}
	a.end()
	b.end()
}
