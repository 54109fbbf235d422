package shard

import (
	"context"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// chunkSize is the gradient bytes of one event.
const chunkSize = 256 << 10

// The parts of a tied embedding whose two ends are on different stages.
const (
	tiedEmbedding = "tied-embedding"
	tiedHead      = "tied-head"
)

// removeTimeout bounds the clean-up after a run.
const removeTimeout = 5 * time.Second

// meetTimeout is how long a stage waits for another replica's gradient.
const meetTimeout = 5 * time.Minute

// gradient is a stage's gradient: one flat slice in name order, and views of it.
type gradient struct {
	flat   []float32
	params *model.Params[float32]
}

// takeGradient returns a zeroed gradient, a spare one if there is one.
func (r *trainRun) takeGradient() *gradient {
	if n := len(r.grads); n > 0 {
		g := r.grads[n-1]
		r.grads = r.grads[:n-1]
		clear(g.flat)
		return g
	}
	total := 0
	offsets := map[string]int{}
	for _, p := range sorted(r.stage.Params().Tensors) {
		offsets[p.Name] = total
		total += len(p.Data)
	}
	g := &gradient{flat: make([]float32, total), params: &model.Params[float32]{}}
	for _, p := range r.stage.Params().Tensors {
		at := offsets[p.Name]
		p.Data = g.flat[at : at+len(p.Data) : at+len(p.Data)]
		g.params.Tensors = append(g.params.Tensors, p)
	}
	return g
}

// tensor is the gradient of one parameter.
func (g *gradient) tensor(name string) []float32 {
	p, ok := g.params.Get(name)
	if !ok {
		panic(fmt.Sprintf("gradient of %q: no such parameter", name))
	}
	return p.Data
}

// meeting folds slot gradients: this replica's, the others' from the bus, and the
// two ends of a tied embedding. A node of the tree has the same bits whoever
// computed it, so keys decide and repetition is harmless.
type meeting struct {
	run    *trainRun
	step   uint64
	folded *gradient // of step, until commit or discard

	own     map[schedule.Node]bool // the nodes that this replica computes
	readers map[string]gradbus.Subscription
	early   map[string]map[nodeKey][]float32 // events of nodes not yet asked for
}

type nodeKey struct {
	step uint64
	node schedule.Node
}

func newMeeting(r *trainRun) *meeting {
	m := &meeting{run: r, own: map[schedule.Node]bool{}, readers: map[string]gradbus.Subscription{}, early: map[string]map[nodeKey][]float32{}}
	lo, hi := schedule.Slots(int(r.open.GetSlots()), int(r.open.GetReplica()), int(r.open.GetReplicas()))
	for _, n := range schedule.Cover(int(r.open.GetSlots()), lo, hi) {
		m.own[n] = true
	}
	return m
}

func (m *meeting) close() {
	for _, s := range m.readers {
		s.Close()
	}
	o := m.run.open
	if o.GetReplica() != 0 || o.GetStage() != 0 || m.step == 0 || o.GetReplicas() == 1 && m.run.tied == "" {
		return
	}
	// The run is over on all stages or will be begun under another name.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.run.ctx), removeTimeout)
	defer cancel()
	if err := m.run.service.cfg.Bus.Remove(ctx, o.GetRun()); err != nil {
		m.run.service.log.Warn("remove gradient events", "run", o.GetRun(), "error", err)
	}
}

// discard drops the step's gradient.
func (m *meeting) discard() {
	if m.folded != nil {
		m.run.grads = append(m.run.grads, m.folded)
		m.folded = nil
	}
}

// commit forgets the step's gradient and, on one stage of the run, the events that
// nobody can ask for again: the step is applied here, so all have been published.
func (m *meeting) commit() {
	m.discard()
	for _, early := range m.early { // nothing of this step is asked for again
		for key := range early {
			if key.step <= m.step {
				delete(early, key)
			}
		}
	}
	o := m.run.open
	if o.GetReplica() != 0 || o.GetStage() != 0 || m.step < 2 || o.GetReplicas() == 1 && m.run.tied == "" {
		return
	}
	if err := m.run.service.cfg.Bus.Purge(m.run.ctx, o.GetRun(), m.step-1); err != nil {
		m.run.service.log.Warn("purge gradient events", "run", o.GetRun(), "step", m.step, "error", err)
	}
}

// fold adds the slots of all replicas over the tree and returns the norms of the
// stage's own tensors.
func (m *meeting) fold(step uint64, slots map[int]*gradient) ([]*shardv1.Norm, time.Duration, error) {
	r := m.run
	m.discard()
	m.step = step
	total := int(r.open.GetSlots())
	lo, hi := schedule.Slots(total, int(r.open.GetReplica()), int(r.open.GetReplicas()))
	part := r.stage.Range.String()
	nodes := map[schedule.Node]*gradient{}
	for _, n := range schedule.Cover(total, lo, hi) {
		nodes[n] = m.local(n, slots)
		if r.open.GetReplicas() > 1 {
			if err := m.publish(part, n, nodes[n].flat); err != nil {
				return nil, 0, err
			}
		}
	}
	begin := time.Now()
	for replica := range int(r.open.GetReplicas()) {
		if replica == int(r.open.GetReplica()) {
			continue
		}
		lo, hi := schedule.Slots(total, replica, int(r.open.GetReplicas()))
		for _, n := range schedule.Cover(total, lo, hi) {
			g := r.takeGradient()
			if err := m.await(part, n, g.flat); err != nil {
				return nil, 0, err
			}
			nodes[n] = g
		}
	}
	wait := time.Since(begin)
	m.folded = m.whole(schedule.Node{Lo: 0, Hi: total}, nodes)
	begin = time.Now()
	if err := m.foldTied(); err != nil {
		return nil, 0, err
	}
	wait += time.Since(begin)
	norms, err := m.norms()
	return norms, wait, err
}

// local folds a node whose slots are all this replica's.
func (m *meeting) local(n schedule.Node, slots map[int]*gradient) *gradient {
	if n.Leaf() {
		return slots[n.Lo]
	}
	left, right := n.Children()
	return m.add(m.local(left, slots), m.local(right, slots))
}

// whole folds a node out of those at hand.
func (m *meeting) whole(n schedule.Node, nodes map[schedule.Node]*gradient) *gradient {
	if g := nodes[n]; g != nil {
		return g
	}
	left, right := n.Children()
	return m.add(m.whole(left, nodes), m.whole(right, nodes))
}

// add sums b into a and keeps b as a spare.
func (m *meeting) add(a, b *gradient) *gradient {
	m.run.service.cfg.Kernels.Add(a.flat, b.flat)
	m.run.grads = append(m.run.grads, b)
	return a
}

// foldTied adds the head's half of a tied embedding's gradient to the embedding's,
// in that order, on both stages that hold the weight.
func (m *meeting) foldTied() error {
	r := m.run
	first, last := r.stage.First(), r.stage.Last()
	if !r.stage.Config.TiedHead || !first && !last {
		return nil
	}
	if first && last {
		for _, p := range m.folded.params.Tensors {
			if p.TiedTo != "" {
				r.service.cfg.Kernels.Add(m.folded.tensor(p.TiedTo), p.Data)
			}
		}
		return nil
	}
	own, mine, theirs := m.folded.tensor(r.tied), tiedEmbedding, tiedHead
	if last {
		mine, theirs = tiedHead, tiedEmbedding
	}
	all := schedule.Node{Lo: 0, Hi: int(r.open.GetSlots())}
	if r.open.GetReplica() == 0 {
		if err := m.publish(mine, all, own); err != nil {
			return err
		}
	}
	other := make([]float32, len(own))
	if err := m.await(theirs, all, other); err != nil {
		return err
	}
	if first {
		r.service.cfg.Kernels.Add(own, other)
	} else { // embedding + head, whichever end adds
		r.service.cfg.Kernels.Add(other, own)
		copy(own, other)
	}
	return nil
}

// norms sums squares of the tensors this stage answers for; one that is not finite
// must never reach the weights.
func (m *meeting) norms() ([]*shardv1.Norm, error) {
	var out []*shardv1.Norm
	for _, p := range m.run.state {
		if p.TiedTo != "" {
			continue
		}
		sum := optim.SumSquares(m.folded.tensor(p.Name))
		if math.IsNaN(sum) || math.IsInf(sum, 0) {
			return nil, fault.New(fault.DataLoss, "fold step %d: the gradient of %s is not finite", m.step, p.Name)
		}
		out = append(out, &shardv1.Norm{Name: p.Name, SumSquares: sum})
	}
	return out, nil
}

// publish sends a node's gradient as events.
func (m *meeting) publish(part string, n schedule.Node, flat []float32) error {
	data := wire.Bytes(flat)
	chunks := (len(data) + chunkSize - 1) / chunkSize
	whole := wire.Checksum(data)
	for i := range chunks {
		piece := data[i*chunkSize : min(len(data), (i+1)*chunkSize)]
		event := &eventv1.Gradient{
			Run: m.run.open.GetRun(), Step: m.step, Part: part, SlotLo: uint32(n.Lo), SlotHi: uint32(n.Hi), Chunk: uint32(i), Chunks: uint32(chunks),
			Checksum: wire.Checksum(piece), WholeChecksum: whole, Replica: m.run.open.GetReplica(), Data: piece,
		}
		raw, err := proto.Marshal(event)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "encode gradient event")
		}
		key := gradbus.Key{Run: m.busRun(), Part: part, Step: m.step, SlotLo: uint32(n.Lo), SlotHi: uint32(n.Hi), Chunk: uint32(i)}
		if err := m.run.service.cfg.Bus.Publish(m.run.ctx, gradbus.Event{Key: key, Data: raw}); err != nil {
			return err
		}
	}
	return nil
}

// busRun is the run's name on the bus.
func (m *meeting) busRun() string { return m.run.open.GetRun() }

// await fills flat with a node's gradient from the bus.
func (m *meeting) await(part string, n schedule.Node, flat []float32) error {
	want := nodeKey{m.step, n}
	if early, ok := m.early[part][want]; ok {
		copy(flat, early)
		delete(m.early[part], want)
		return nil
	}
	ctx, cancel := context.WithTimeout(m.run.ctx, meetTimeout)
	defer cancel()
	reader := m.readers[part]
	if reader == nil {
		var err error
		if reader, err = m.run.service.cfg.Bus.Subscribe(ctx, m.busRun(), part, m.step); err != nil {
			return err
		}
		m.readers[part] = reader
	}
	partial := map[nodeKey]*assembly{}
	for {
		e, err := reader.Next(ctx)
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "wait for %s slots %d-%d of step %d", part, n.Lo, n.Hi, m.step)
		}
		got := nodeKey{e.Key.Step, schedule.Node{Lo: int(e.Key.SlotLo), Hi: int(e.Key.SlotHi)}}
		if e.Key.Step < m.step || m.own[got.node] && part == m.run.stage.Range.String() {
			continue // of a step that is committed here, or published by this replica
		}
		if partial[got] == nil {
			partial[got] = &assembly{have: map[uint32]bool{}}
		}
		values, err := partial[got].add(e, len(flat))
		if err != nil {
			return err
		}
		switch {
		case values == nil:
		case got == want:
			copy(flat, values)
			return nil
		default:
			if m.early[part] == nil {
				m.early[part] = map[nodeKey][]float32{}
			}
			m.early[part][got] = values
		}
	}
}

// assembly gathers the chunks of one node.
type assembly struct {
	data []byte
	have map[uint32]bool
	sum  uint64
}

// add takes an event and returns the node's values when all chunks are there. What
// is misshapen, damaged or not finite is an error.
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
	case g.GetStep() != e.Key.Step || g.GetPart() != e.Key.Part || g.GetSlotLo() != e.Key.SlotLo || g.GetSlotHi() != e.Key.SlotHi || g.GetChunk() != e.Key.Chunk:
		return nil, bad("it does not say what its key says")
	case int(g.GetChunks()) != chunks || int(g.GetChunk()) >= chunks || len(g.GetData()) != min(4*want, lo+chunkSize)-lo:
		return nil, bad("chunk %d of %d with %d bytes does not fit %d values", g.GetChunk(), g.GetChunks(), len(g.GetData()), want)
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
