package shard_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// damaging is a bus on which one replica's next event is damaged.
type damaging struct {
	gradbus.Bus
	mu     sync.Mutex
	damage func(*gradbus.Event, *eventv1.Gradient) // nil for none
}

func (b *damaging) set(d func(*gradbus.Event, *eventv1.Gradient)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.damage = d
}

func (b *damaging) Publish(ctx context.Context, e gradbus.Event) error {
	b.mu.Lock()
	var g eventv1.Gradient
	if err := proto.Unmarshal(e.Data, &g); err != nil {
		b.mu.Unlock()
		return err
	}
	if d := b.damage; d != nil && g.GetReplica() == 1 {
		b.damage = nil
		raw := e.Data
		g.Data = bytes.Clone(g.GetData())
		d(&e, &g)
		if bytes.Equal(e.Data, raw) { // the damage is in the message
			e.Data, _ = proto.Marshal(&g)
		}
	}
	b.mu.Unlock()
	return b.Bus.Publish(ctx, e)
}

// T6: 12 kinds of gradients that must not be used, 100 times each at random places. Each is rejected, with the
// replica that has sent it, and none changes the weights.
func TestTrain_BadGradientsAreRejectedAndNeverApplied(t *testing.T) {
	const vocab, largest = 64, 1e4
	times := 100
	if testing.Short() { // under the race detector
		times = 10
	}
	r := rand.New(rand.NewPCG(6, 6))
	value := func(v func(float32) float32) func(*gradbus.Event, *eventv1.Gradient) {
		return func(_ *gradbus.Event, g *eventv1.Gradient) {
			at := g.GetData()[4*r.IntN(len(g.GetData())/4):]
			binary.LittleEndian.PutUint32(at, math.Float32bits(v(math.Float32frombits(binary.LittleEndian.Uint32(at)))))
			g.Checksum = wire.Checksum(g.GetData())
			g.WholeChecksum = g.GetChecksum()
		}
	}
	constant := func(v float64) func(float32) float32 { return func(float32) float32 { return float32(v) } }
	notFinite, huge := shardv1.RejectReason_REJECT_REASON_NOT_FINITE, shardv1.RejectReason_REJECT_REASON_HUGE
	stale, misshapen := shardv1.RejectReason_REJECT_REASON_STALE, shardv1.RejectReason_REJECT_REASON_MISSHAPEN
	kinds := map[string]struct {
		damage func(*gradbus.Event, *eventv1.Gradient)
		want   shardv1.RejectReason
	}{
		"not a number":      {value(constant(math.NaN())), notFinite},
		"infinite":          {value(constant(math.Inf(1))), notFinite},
		"minus infinity":    {value(constant(math.Inf(-1))), notFinite},
		"huge":              {value(constant(3e38)), huge},
		"above the limit":   {value(constant(-1.1 * largest)), huge},
		"of a step before":  {func(_ *gradbus.Event, g *eventv1.Gradient) { g.Step-- }, stale},
		"of an old attempt": {func(_ *gradbus.Event, g *eventv1.Gradient) { g.Attempt-- }, stale},
		"too short": {func(_ *gradbus.Event, g *eventv1.Gradient) {
			g.Data = g.GetData()[:4*r.IntN(len(g.GetData())/4)]
			g.Checksum = wire.Checksum(g.GetData())
		}, misshapen},
		"flipped bit": {func(_ *gradbus.Event, g *eventv1.Gradient) {
			g.Data[r.IntN(len(g.GetData()))] ^= 1 << r.IntN(8)
		}, misshapen},
		"another wire type": {func(_ *gradbus.Event, g *eventv1.Gradient) { g.Wire = "bf16" }, misshapen},
		"of a node of nobody": {func(e *gradbus.Event, g *eventv1.Gradient) {
			g.SlotLo, e.Key.SlotLo = 1, 1
		}, misshapen},
		"no message": {func(e *gradbus.Event, _ *eventv1.Gradient) {
			e.Data = append([]byte{0xff}, e.Data[:r.IntN(len(e.Data))]...)
		}, misshapen},
	}
	open := func(replica, replicas uint32) *shardv1.TrainOpen {
		o := trainOpening(replica, replicas)
		o.ConfigJson = []byte(`{"model_type":"llama","hidden_size":8,"num_hidden_layers":2,"num_attention_heads":2,` +
			`"intermediate_size":8,"vocab_size":64,"max_position_embeddings":8,"tie_word_embeddings":true}`)
		return o
	}
	send := func(c *conversation, step uint64, n, lo, hi uint32) {
		s := &shardv1.Step{Step: step, Attempt: n, Targets: slotCount * slotLength, MaxNorm: largest}
		for slot := lo; slot < hi; slot++ {
			s.Slots = append(s.Slots, slot)
		}
		c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: s}})
		for slot := lo; slot < hi; slot++ {
			m := microbatch(step, slot)
			for i := range m.GetIds() {
				m.Ids[i], m.Targets[i] = m.GetIds()[i]%vocab, m.GetTargets()[i]%vocab
			}
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: m}})
		}
	}
	bus := &damaging{Bus: gradbus.NewMemory(busLimit)}
	rig := newTrainRig(t, bus)
	calm := newTrainRig(t, gradbus.NewMemory(busLimit)).train(open(0, 1))
	a, b := rig.train(open(0, 2)), rig.train(open(1, 2))
	step := uint64(1)
	for name, kind := range kinds {
		for range times {
			step++ // so that there is one before
			bus.set(nil)
			for n := range uint32(2) { // the first attempt makes the second one have one before it
				if n == 1 {
					bus.set(kind.damage)
				}
				send(a, step, n, 0, 2)
				send(b, step, n, 2, 4)
				if n == 1 {
					got := a.rejected()
					if got.GetReplica() != 1 || got.GetReason() != kind.want || got.GetStep() != step ||
						got.GetAttempt() != 1 ||
						len(got.GetEvidence()) == 0 || got.GetMessage() == "" {
						got.Evidence = nil
						t.Fatalf("%s: rejected %v, want replica 1 for %v", name, got, kind.want)
					}
				} else {
					a.folded()
					b.folded()
				}
				a.abort(step, n)
				b.abort(step, n)
			}
			send(a, step, 2, 0, 2)
			send(b, step, 2, 2, 4)
			a.folded()
			b.folded()
			send(calm, step, 0, 0, 4)
			calm.folded()
			want := calm.applyAs(&shardv1.Apply{Step: step})
			for _, c := range []*conversation{a, b} {
				if got := c.applyAs(&shardv1.Apply{Step: step, Attempt: 2}); got != want {
					t.Fatalf("%s, step %d: weights %x, undisturbed %x", name, step, got, want)
				}
			}
		}
	}
	t.Logf("%d bad gradients of %d kinds were rejected", times*len(kinds), len(kinds))
	a.end()
	b.end()
	calm.end()
}
