package shard_test

import (
	"context"
	"encoding/binary"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const eventBytes = 256 << 10

// gradientEvents returns replica 1's valid events of step 1 with these values.
func gradientEvents(values []float32) []*eventv1.Gradient {
	data := wire.Bytes(values)
	var out []*eventv1.Gradient
	for at := 0; at < len(data); at += eventBytes {
		piece := data[at:min(len(data), at+eventBytes)]
		out = append(out, &eventv1.Gradient{
			Run: "run", Step: 1, Part: "0-2.0", SlotLo: 2, SlotHi: 4, Chunk: uint32(at / eventBytes), Chunks: uint32(
				(len(data) + eventBytes - 1) / eventBytes,
			),
			Checksum: wire.Checksum(piece), WholeChecksum: wire.Checksum(data), Replica: 1, Data: piece,
		})
	}
	return out
}

func keyOf(g *eventv1.Gradient) gradbus.Key {
	return gradbus.Key{
		Run: g.GetRun(), Part: g.GetPart(), Step: g.GetStep(), SlotLo: g.GetSlotLo(), SlotHi: g.GetSlotHi(),
		Chunk: g.GetChunk(),
	}
}

func put(t *testing.T, bus gradbus.Bus, key gradbus.Key, g proto.Message) {
	t.Helper()
	raw, err := proto.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(context.Background(), gradbus.Event{Key: key, Data: raw}); err != nil {
		t.Fatal(err)
	}
}

func TestTrain_DamagedGradientsNeverReachTheWeights(t *testing.T) {
	reseal := func(g *eventv1.Gradient) { g.Checksum = wire.Checksum(g.GetData()) }
	value := func(v float64) func(*eventv1.Gradient) {
		return func(g *eventv1.Gradient) {
			g.Data = append([]byte(nil), g.GetData()...)
			binary.LittleEndian.PutUint32(g.GetData()[400:], math.Float32bits(float32(v)))
			reseal(g)
			if g.GetChunk() == 0 { // the checksum of the complete gradient matches too
				values := make([]float32, tensorCount)
				values[100] = float32(v)
				g.WholeChecksum = wire.Checksum(wire.Bytes(values))
			}
		}
	}
	type damage struct {
		event func(*eventv1.Gradient)
		key   func(*gradbus.Key)
	}
	for name, d := range map[string]damage{
		"not a number": {event: value(math.NaN())},
		"infinite":     {event: value(math.Inf(-1))},
		"bits flipped": {event: func(g *eventv1.Gradient) { g.Data = append([]byte{1}, g.GetData()[1:]...) }},
		"resealed after damage": {event: func(g *eventv1.Gradient) {
			g.Data = append(
				[]byte{1}, g.GetData()[1:]...,
			)
			reseal(g)
		}},
		"too short": {event: func(g *eventv1.Gradient) { g.Data = g.GetData()[4:]; reseal(g) }},
		"too long": {event: func(g *eventv1.Gradient) {
			g.Data = append(g.GetData()[:len(g.GetData()):len(g.GetData())], 0, 0, 0, 0)
			reseal(g)
		}},
		"of more chunks":         {event: func(g *eventv1.Gradient) { g.Chunks++ }},
		"of another step inside": {event: func(g *eventv1.Gradient) { g.Step = 2 }},
		"of another run inside":  {event: func(g *eventv1.Gradient) { g.Run = "other" }},
		"of another slot inside": {event: func(g *eventv1.Gradient) { g.SlotLo = 0 }},
		"of a later step": {event: func(g *eventv1.Gradient) { g.Step = 7 },
			key: func(k *gradbus.Key) { k.Step = 7 }},
		"of a node of nobody": {
			event: func(g *eventv1.Gradient) { g.SlotLo = 1 }, key: func(k *gradbus.Key) { k.SlotLo = 1 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			bus := gradbus.NewMemory(busLimit)
			c := newTrainRig(t, bus).train(trainOpening(0, 2))
			for i, g := range gradientEvents(make([]float32, tensorCount)) {
				key := keyOf(g)
				if i == 0 {
					d.event(g)
					if d.key != nil {
						d.key(&key)
					}
				}
				put(t, bus, key, g)
			}
			c.step(1, 0, 2, false)
			if got := c.rejected(); got.GetReplica() != 1 || got.GetStep() != 1 {
				t.Errorf("got %v, want a rejection of replica 1", got)
			}
			c.abort(1, 0)
			c.end()
		})
	}
}

// doubling delivers every event twice and inserts old events.
type doubling struct{ gradbus.Bus }

type doubled struct {
	gradbus.Subscription
	again *gradbus.Event
}

func (b doubling) Subscribe(ctx context.Context, run, part string, from uint64) (gradbus.Subscription, error) {
	s, err := b.Bus.Subscribe(ctx, run, part, 0)
	return &doubled{Subscription: s}, err
}

func (s *doubled) Next(ctx context.Context) (gradbus.Event, error) {
	if s.again != nil {
		e := *s.again
		s.again = nil
		return e, nil
	}
	e, err := s.Subscription.Next(ctx)
	if err == nil {
		s.again = &e
	}
	return e, err
}

func TestTrain_RepeatedAndStaleEventsChangeNothing(t *testing.T) {
	norms, digests := alone(t, 3)
	bus := doubling{gradbus.NewMemory(busLimit)}
	stale := gradientEvents(make([]float32, tensorCount))
	for _, g := range stale {
		g.Step = 0
		put(t, bus, keyOf(g), g)
	}
	r := newTrainRig(t, bus)
	a, b := r.train(trainOpening(0, 2)), r.train(trainOpening(1, 2))
	for step := uint64(1); step <= 3; step++ {
		a.step(step, 0, 2, false)
		b.step(step, 2, 4, false)
		for _, c := range []*conversation{a, b} {
			if _, got := c.folded(); !sameNorms(got, norms[step-1]) {
				t.Errorf("step %d: norms differ from those of a single replica", step)
			}
		}
		for _, c := range []*conversation{a, b} {
			if got := c.apply(step); got != digests[step-1] {
				t.Errorf("step %d: weights %x, a single replica has %x", step, got, digests[step-1])
			}
		}
	}
	a.end()
	b.end()
}
