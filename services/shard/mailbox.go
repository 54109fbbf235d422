package shard

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const (
	// chunkSize is the number of gradient bytes in one event.
	chunkSize = 256 << 10
	// meetTimeout is how long a stage waits for another replica's gradient.
	meetTimeout = 5 * time.Minute
)

// mailbox sends and receives the nodes of a span on the gradient bus. Events are identified by their keys
// and a node has the same bits whoever computed it, so repetition and order are of no importance.
type mailbox struct {
	run     *trainRun
	ctx     context.Context // of the attempt
	at      attempt
	readers map[string]*reader // by part
	read    uint64             // bytes since the last report
}

// reader reads one part's events of the current step. Chunks of several nodes arrive interleaved, so
// chunks that are not needed yet are kept.
type reader struct {
	events  gradbus.Subscription
	partial map[schedule.Node]*assembly
	whole   map[schedule.Node][]byte
	early   []gradbus.Event // of the attempts at the step that come after this one
}

// parcel describes what is expected on a part in a step.
type parcel struct {
	part string
	wire string
	size int // bytes of an encoded node
	// publishers has the replica that publishes each node. Other nodes are an error.
	publishers map[schedule.Node]int
	// ignored has the nodes that this replica publishes itself.
	ignored map[schedule.Node]bool
}

// begin prepares for an attempt at a step. A repeated attempt reads the same events, so what has arrived is
// kept.
func (m *mailbox) begin(ctx context.Context, a attempt) {
	m.ctx = ctx
	if a == m.at {
		return
	}
	m.at = a
	for _, in := range m.readers {
		clear(in.partial)
		clear(in.whole)
	}
}

func (m *mailbox) close() {
	for part, in := range m.readers {
		if err := in.events.Close(); err != nil {
			m.run.service.log.Warn("close gradient events", "part", part, "error", err)
		}
	}
}

// send publishes an encoded node as events, in the background.
func (m *mailbox) send(part string, n schedule.Node, wireType string, data []byte) error {
	for g := range m.events(part, n, wireType, data) {
		if m.ctx.Err() != nil { // an abort makes room in the outbox, which is not for the rest of its attempt
			return context.Cause(m.ctx)
		}
		raw, err := proto.Marshal(g)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "encode gradient event")
		}
		if err := m.run.outbox.Publish(gradbus.Event{Key: keyOf(g), Data: raw}); err != nil {
			return err
		}
	}
	return nil
}

// events divides an encoded node into events of this attempt, whose data are parts of data.
func (m *mailbox) events(part string, n schedule.Node, wireType string, data []byte) iter.Seq[*eventv1.Gradient] {
	return func(yield func(*eventv1.Gradient) bool) {
		chunks := (len(data) + chunkSize - 1) / chunkSize
		whole := wire.Checksum(data)
		o := m.run.open
		for i := range chunks {
			piece := data[i*chunkSize : min(len(data), (i+1)*chunkSize)]
			if !yield(&eventv1.Gradient{
				Run: o.GetRun(), Step: m.at.step, Attempt: m.at.n, Part: part,
				SlotLo: uint32(n.Lo), SlotHi: uint32(n.Hi), Chunk: uint32(i), Chunks: uint32(chunks), Wire: wireType,
				Checksum: wire.Checksum(piece), WholeChecksum: whole, Replica: o.GetReplica(), Data: piece,
			}) {
				return
			}
		}
	}
}

// keyOf returns the key of an event.
func keyOf(g *eventv1.Gradient) gradbus.Key {
	return gradbus.Key{Run: g.GetRun(), Part: g.GetPart(), Step: g.GetStep(), SlotLo: g.GetSlotLo(),
		SlotHi: g.GetSlotHi(), Chunk: g.GetChunk(), Attempt: g.GetAttempt()}
}

// await waits for a node of a parcel and returns its bytes.
func (m *mailbox) await(p *parcel, n schedule.Node) ([]byte, error) {
	if p.size == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(m.ctx, meetTimeout)
	defer cancel()
	in := m.readers[p.part]
	if in == nil {
		events, err := m.run.service.cfg.Bus.Subscribe(ctx, m.run.open.GetRun(), p.part, m.at.step)
		if err != nil {
			return nil, err
		}
		in = &reader{events: events, partial: map[schedule.Node]*assembly{}, whole: map[schedule.Node][]byte{}}
		m.readers[p.part] = in
	}
	for in.whole[n] == nil {
		e, err := in.next(ctx, m.at)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "wait for %s slots %d-%d of step %d", p.part, n.Lo, n.Hi,
				m.at.step)
		}
		m.read += uint64(len(e.Data))
		if err := m.take(p, in, e); err != nil {
			return nil, err
		}
	}
	return in.whole[n], nil
}

// next returns the next event. Those of an attempt that this stage has not begun yet wait for it.
func (in *reader) next(ctx context.Context, at attempt) (gradbus.Event, error) {
	for i, e := range in.early {
		if e.Key.Step != at.step || e.Key.Attempt <= at.n {
			in.early = append(in.early[:i], in.early[i+1:]...)
			return e, nil
		}
	}
	for {
		e, err := in.events.Next(ctx)
		if err != nil || e.Key.Step != at.step || e.Key.Attempt <= at.n {
			return e, err
		}
		in.early = append(in.early, e)
	}
}

// take stores an event under its node. Repeated and late events are dropped, those of aborted attempts too. An
// event of this step for a node that no replica publishes is rejected.
func (m *mailbox) take(p *parcel, in *reader, e gradbus.Event) error {
	n := schedule.Node{Lo: int(e.Key.SlotLo), Hi: int(e.Key.SlotHi)}
	_, known := p.publishers[n]
	switch {
	case p.ignored[n], m.at.after(attempt{e.Key.Step, e.Key.Attempt}), in.whole[n] != nil:
		return nil
	case e.Key.Step > m.at.step:
		return m.rejectEvent(p, n, e, &eventError{e.Key, true, fmt.Sprintf("step %d has not begun", e.Key.Step)})
	case !known:
		return m.rejectEvent(p, n, e, &eventError{e.Key, false, "no replica publishes the node"})
	}
	if in.partial[n] == nil {
		in.partial[n] = &assembly{have: map[uint32]bool{}}
	}
	whole, err := in.partial[n].add(e, p)
	if err != nil {
		return m.rejectEvent(p, n, e, err)
	}
	if whole != nil {
		in.whole[n] = whole
		delete(in.partial, n)
	}
	return nil
}

// assembly collects the chunks of one node.
type assembly struct {
	data []byte
	have map[uint32]bool
	sum  uint64
}

// add adds an event and returns the encoded node once all chunks have arrived. An event with a wrong shape
// or checksum is an error, which ends the step.
func (a *assembly) add(e gradbus.Event, p *parcel) ([]byte, error) {
	var g eventv1.Gradient
	if err := proto.Unmarshal(e.Data, &g); err != nil {
		return nil, &eventError{e.Key, false, err.Error()}
	}
	return a.take(e.Key, &g, p)
}

// take adds the contents of an event.
func (a *assembly) take(key gradbus.Key, g *eventv1.Gradient, p *parcel) ([]byte, error) {
	bad := func(format string, args ...any) error {
		return &eventError{key, false, fmt.Sprintf(format, args...)}
	}
	chunks := (p.size + chunkSize - 1) / chunkSize
	lo := int(g.GetChunk()) * chunkSize
	switch {
	case g.GetStep() < key.Step || g.GetStep() == key.Step && g.GetAttempt() < key.Attempt:
		return nil, &eventError{key, true, fmt.Sprintf("it is of attempt %d at step %d", g.GetAttempt(), g.GetStep())}
	case g.GetStep() != key.Step || g.GetAttempt() != key.Attempt || g.GetPart() != key.Part ||
		g.GetSlotLo() != key.SlotLo || g.GetSlotHi() != key.SlotHi || g.GetChunk() != key.Chunk:
		return nil, bad("its fields differ from its key")
	case g.GetRun() != key.Run:
		return nil, bad("it belongs to run %q", g.GetRun())
	case g.GetWire() != p.wire:
		return nil, bad("its wire type is %q, want %q", g.GetWire(), p.wire)
	case int(g.GetChunks()) != chunks || int(g.GetChunk()) >= chunks ||
		len(g.GetData()) != min(p.size, lo+chunkSize)-lo:
		return nil, bad(
			"chunk %d of %d with %d bytes does not fit %d bytes", g.GetChunk(), g.GetChunks(), len(g.GetData()), p.size,
		)
	case wire.Checksum(g.GetData()) != g.GetChecksum():
		return nil, bad("its checksum is wrong")
	}
	if a.data == nil {
		a.data, a.sum = make([]byte, p.size), g.GetWholeChecksum()
	}
	copy(a.data[lo:], g.GetData())
	a.have[g.GetChunk()] = true
	if len(a.have) < chunks {
		return nil, nil
	}
	if wire.Checksum(a.data) != a.sum {
		return nil, bad("the whole gradient's checksum is wrong")
	}
	return a.data, nil
}
