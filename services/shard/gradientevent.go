package shard

import (
	"context"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// send sends a node's gradient as events.
func (m *reducer) send(part string, n schedule.Node, flat []float32) error {
	data := wire.Bytes(flat)
	chunks := (len(data) + chunkSize - 1) / chunkSize
	whole := wire.Checksum(data)
	for i := range chunks {
		piece := data[i*chunkSize : min(len(data), (i+1)*chunkSize)]
		event := &eventv1.Gradient{
			Run: m.run.open.GetRun(), Step: m.step, Part: part, SlotLo: uint32(n.Lo), SlotHi: uint32(n.Hi),
			Chunk: uint32(i), Chunks: uint32(chunks),
			Checksum: wire.Checksum(piece), WholeChecksum: whole, Replica: m.run.open.GetReplica(), Data: piece,
		}
		raw, err := proto.Marshal(event)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "encode gradient event")
		}
		key := gradbus.Key{
			Run: m.busRun(), Part: part, Step: m.step, SlotLo: uint32(n.Lo), SlotHi: uint32(n.Hi), Chunk: uint32(i),
		}
		if err := m.run.service.cfg.Bus.Publish(m.run.ctx, gradbus.Event{Key: key, Data: raw}); err != nil {
			return err
		}
	}
	return nil
}

// busRun returns the run's name on the bus.
func (m *reducer) busRun() string { return m.run.open.GetRun() }

// await fills flat with a node's gradient, which it waits for on the bus.
func (m *reducer) await(part string, n schedule.Node, flat []float32) error {
	ctx, cancel := context.WithTimeout(m.run.ctx, meetTimeout)
	defer cancel()
	in := m.readers[part]
	if in == nil {
		events, err := m.run.service.cfg.Bus.Subscribe(ctx, m.busRun(), part, m.step)
		if err != nil {
			return err
		}
		in = &reader{events: events, partial: map[schedule.Node]*assembly{}, whole: map[schedule.Node][]float32{}}
		m.readers[part] = in
	}
	for in.whole[n] == nil {
		e, err := in.events.Next(ctx)
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "wait for %s slots %d-%d of step %d", part, n.Lo, n.Hi, m.step)
		}
		if err := m.take(in, e, len(flat)); err != nil {
			return err
		}
	}
	copy(flat, in.whole[n])
	return nil
}

// take stores an event under its node. Repeated and late events are dropped. An event of
// this step for a node that no other replica publishes is an error.
func (m *reducer) take(in *reader, e gradbus.Event, values int) error {
	n := schedule.Node{Lo: int(e.Key.SlotLo), Hi: int(e.Key.SlotHi)}
	known := m.theirs[n]
	if e.Key.Part != m.part() { // a part of a tied embedding
		known = n == schedule.Node{Lo: 0, Hi: int(m.run.open.GetSlots())}
	} else if m.own[n] {
		return nil
	}
	switch {
	case e.Key.Step < m.step || in.whole[n] != nil:
		return nil
	case e.Key.Step > m.step || !known:
		return fault.New(fault.DataLoss, "read gradient event %v: no replica publishes it in step %d", e.Key, m.step)
	}
	if in.partial[n] == nil {
		in.partial[n] = &assembly{have: map[uint32]bool{}}
	}
	whole, err := in.partial[n].add(e, values)
	if whole != nil {
		in.whole[n] = whole
		delete(in.partial, n)
	}
	return err
}

// assembly collects the chunks of one node.
type assembly struct {
	data []byte
	have map[uint32]bool
	sum  uint64
}

// add adds an event and returns the node's values once all chunks have arrived. An event with a
// wrong shape or checksum or with values that are not finite is an error, which ends the step.
func (a *assembly) add(e gradbus.Event, want int) ([]float32, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.DataLoss, "read gradient event %v: %s", e.Key, fmt.Sprintf(format, args...))
	}
	var g eventv1.Gradient
	if err := proto.Unmarshal(e.Data, &g); err != nil {
		return nil, bad("%v", err)
	}
	chunks := (4*want + chunkSize - 1) / chunkSize
	lo := int(g.GetChunk()) * chunkSize
	switch {
	case g.GetStep() != e.Key.Step || g.GetPart() != e.Key.Part || g.GetSlotLo() != e.Key.SlotLo ||
		g.GetSlotHi() != e.Key.SlotHi || g.GetChunk() != e.Key.Chunk:
		return nil, bad("its fields differ from its key")
	case g.GetRun() != e.Key.Run:
		return nil, bad("it belongs to run %q", g.GetRun())
	case int(g.GetChunks()) != chunks || int(g.GetChunk()) >= chunks ||
		len(g.GetData()) != min(4*want, lo+chunkSize)-lo:
		return nil, bad(
			"chunk %d of %d with %d bytes does not fit %d values", g.GetChunk(), g.GetChunks(), len(g.GetData()), want,
		)
	case wire.Checksum(g.GetData()) != g.GetChecksum():
		return nil, bad("its checksum is wrong")
	}
	if a.data == nil {
		a.data, a.sum = make([]byte, 4*want), g.GetWholeChecksum()
	}
	copy(a.data[lo:], g.GetData())
	a.have[g.GetChunk()] = true
	if len(a.have) < chunks {
		return nil, nil
	}
	if wire.Checksum(a.data) != a.sum {
		return nil, bad("the whole gradient's checksum is wrong")
	}
	values := wire.Floats(make([]float32, 0, want), a.data)
	for _, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, bad("it is not finite")
		}
	}
	return values, nil
}
