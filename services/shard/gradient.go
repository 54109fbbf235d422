package shard

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/compress"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// These are the two parts of a tied embedding whose two uses are on different stages.
const (
	tiedEmbedding = "tied-embedding"
	tiedHead      = "tied-head"
)

// removeTimeout bounds the removal of a run's events.
const removeTimeout = 5 * time.Second

// gradient is the gradient of a span: one flat slice in name order, and views of it. It leaves out frozen
// parameters.
type gradient struct {
	flat   []float32
	params *model.Params[float32]
}

// takeGradient returns a gradient with unspecified values, from the pool if it has one.
func (s *trainSpan) takeGradient() *gradient {
	if n := len(s.grads); n > 0 {
		g := s.grads[n-1]
		s.grads = s.grads[:n-1]
		return g
	}
	total := 0
	offsets := map[string]int{}
	for _, p := range sorted(s.stage.Params().Tensors) {
		offsets[p.Name] = total
		if !s.frozen[p.Owner()] {
			total += len(p.Data)
		}
	}
	g := &gradient{flat: make([]float32, total), params: &model.Params[float32]{}}
	for _, p := range s.stage.Params().Tensors {
		if s.frozen[p.Owner()] {
			p.Data = nil
			g.params.Tensors = append(g.params.Tensors, p)
			continue
		}
		at := offsets[p.Name]
		p.Data = g.flat[at : at+len(p.Data) : at+len(p.Data)]
		g.params.Tensors = append(g.params.Tensors, p)
	}
	return g
}

// tensor returns the gradient of one parameter.
func (g *gradient) tensor(name string) []float32 {
	p, ok := g.params.Get(name)
	if !ok {
		panic(fmt.Sprintf("gradient of %q: no such parameter", name))
	}
	return p.Data
}

// reducer folds the gradients of a span in a step: this replica's slots, the other replicas' nodes from the
// bus, and the two parts of a tied embedding.
//
// A unit is a node of the tree that one replica computes as a whole: the largest such nodes or, with a lossy
// wire type, the nodes of the level that the run fixes. A unit is encoded and decoded again where it was
// computed, so it has the same bits on every replica, and a lone replica has these bits too.
type reducer struct {
	tree
	run    *trainRun
	span   *trainSpan
	mail   *mailbox
	step   uint64
	limit  float64   // the largest norm of a unit; 0 for none
	folded *gradient // the step's gradient, until it is applied or dropped

	attempt uint32 // at the step

	units   []schedule.Node                 // of this replica, in slot order
	own     map[schedule.Node]bool          // the same
	parents map[schedule.Node]schedule.Node // parents of the nodes below the units
	buckets []*bucket

	// The residuals of this replica's units: before the step, and after it if it is applied.
	residual, pending map[schedule.Node][]float32

	errorSquares, nodeSquares float64 // of the step's units
}

// tree says which nodes are summed, and how they are exchanged.
type tree struct {
	root     schedule.Node
	all      map[schedule.Node]int // the units of all replicas, and their replicas
	replicas int
	self     int // this replica
	codec    compress.Codec
	label    string // of the parts on the bus
	tied     string // the parameter whose other part is on another stage
	counted  bool   // what is sent is compared with float32
	near     *near  // nil unless replicas exchange gradients directly
}

// gradientTree returns the tree of a step's gradients.
func (s *trainSpan) gradientTree() tree {
	r := s.run
	t := tree{root: schedule.Node{Hi: int(r.open.GetSlots())}, all: map[schedule.Node]int{}, codec: codec(r.open),
		replicas: len(r.members.shares), self: r.members.own, tied: s.tied, counted: true}
	for replica, share := range r.members.shares {
		units := schedule.Cover(t.root.Hi, share.lo, share.hi)
		if !t.codec.Exact() {
			units = within(schedule.Level(t.root.Hi, int(r.open.GetGradients().GetNodes())), share.lo, share.hi)
		}
		for _, n := range units {
			t.all[n] = replica
		}
	}
	t.near = newNear(t, r.members)
	return t
}

func newReducer(s *trainSpan, t tree, params []model.Param[float32]) *reducer {
	m := &reducer{
		tree: t, run: s.run, span: s, own: map[schedule.Node]bool{}, parents: map[schedule.Node]schedule.Node{},
		residual: map[schedule.Node][]float32{}, pending: map[schedule.Node][]float32{},
	}
	m.mail = &mailbox{run: s.run, readers: map[string]*reader{}}
	for n, replica := range t.all {
		if replica == t.self {
			m.units, m.own[n] = append(m.units, n), true
			m.descend(n)
		}
	}
	slices.SortFunc(m.units, func(a, b schedule.Node) int { return cmp.Compare(a.Lo, b.Lo) })
	m.buckets = m.makeBuckets(params)
	if m.codec.Feedback() {
		for _, n := range m.units {
			m.residual[n], m.pending[n] = make([]float32, m.size()), make([]float32, m.size())
		}
	}
	return m
}

// codec returns the wire type of a run's gradients.
func codec(o *shardv1.TrainOpen) compress.Codec {
	c := compress.Codec{Wire: o.GetGradients().GetWire(), Density: o.GetGradients().GetDensity()}
	if c.Exact() {
		c.Wire = ""
	}
	return c
}

// within lists the nodes that lie within the slots [lo, hi).
func within(nodes []schedule.Node, lo, hi int) []schedule.Node {
	var out []schedule.Node
	for _, n := range nodes {
		if n.Lo >= lo && n.Hi <= hi {
			out = append(out, n)
		}
	}
	return out
}

// trained lists the parameters that have gradients, in name order.
func (s *trainSpan) trained() []model.Param[float32] {
	var out []model.Param[float32]
	for _, p := range sorted(s.stage.Params().Tensors) {
		if !s.frozen[p.Owner()] {
			out = append(out, p)
		}
	}
	return out
}

// size returns the number of values of a gradient.
func (m *reducer) size() int {
	if len(m.buckets) == 0 {
		return 0
	}
	return m.buckets[len(m.buckets)-1].hi
}

// descend records the parents of all nodes below n.
func (m *reducer) descend(n schedule.Node) {
	if n.Leaf() {
		return
	}
	left, right := n.Children()
	m.parents[left], m.parents[right] = n, n
	m.descend(left)
	m.descend(right)
}

func (m *reducer) close() { m.mail.close() }

// removeEvents removes the run's events from the bus. The run has ended on all stages, or it will restart with
// another name on the bus.
func (r *trainRun) removeEvents() {
	if !r.cleans() || !r.stepped {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), removeTimeout)
	defer cancel()
	if err := r.service.cfg.Bus.Remove(ctx, r.open.GetRun()); err != nil {
		r.service.log.Warn("remove gradient events", "run", r.open.GetRun(), "error", err)
	}
}

// purgeEvents forgets this stage's events of steps up to the given one and, on one stage of the run, removes
// the events of earlier steps from the bus. Every replica has read them.
func (r *trainRun) purgeEvents(step uint64) {
	r.outbox.Commit(step)
	if !r.cleans() || step < 2 {
		return
	}
	if err := r.service.cfg.Bus.Purge(r.ctx, r.open.GetRun(), step-1); err != nil {
		r.service.log.Warn("purge gradient events", "run", r.open.GetRun(), "step", step, "error", err)
	}
}

// cleans reports whether this stage removes the run's events from the bus. That is the first stage of the
// first replica, if there are any events.
func (r *trainRun) cleans() bool {
	tied := slices.ContainsFunc(r.spans, func(s *trainSpan) bool { return s.tied != "" })
	return r.members.first() && r.open.GetStage() == 0 && (r.open.GetReplicas() > 1 || tied)
}

// discard drops the step's gradient.
func (m *reducer) discard() {
	if m.folded != nil {
		m.span.grads = append(m.span.grads, m.folded)
		m.folded = nil
	}
}

// commit drops the step's gradient, which is applied, and takes over the residuals.
func (m *reducer) commit() {
	m.discard()
	m.takeResiduals()
}

func (m *reducer) takeResiduals() {
	for _, t := range m.tensors() {
		m.run.changes(t.data)
	}
	for n, residual := range m.residual {
		copy(residual, m.pending[n])
	}
}

// begin prepares for an attempt at a step.
func (m *reducer) begin(ctx context.Context, a attempt, limit float64) {
	m.discard()
	m.step, m.attempt, m.limit = a.step, a.n, limit
	if own := m.run.open.GetGradients().GetMaxNorm(); own > 0 && (limit == 0 || own < limit) {
		m.limit = own
	}
	m.mail.begin(ctx, a)
	m.errorSquares, m.nodeSquares = 0, 0
}

// keep stores a slot's gradient and folds sibling nodes as soon as both exist. So a step holds at
// most one gradient per level of the tree, and not one per slot. A unit that is complete is
// published at once, while the next slots are computed.
func (m *reducer) keep(nodes map[schedule.Node]*gradient, slot int, g *gradient) error {
	n := schedule.Node{Lo: slot, Hi: slot + 1}
	nodes[n] = g
	for !m.own[n] {
		parent := m.parents[n]
		left, right := parent.Children()
		if nodes[left] == nil || nodes[right] == nil {
			return nil
		}
		nodes[parent] = m.add(nodes[left], nodes[right])
		delete(nodes, left)
		delete(nodes, right)
		n = parent
	}
	return m.finish(n, nodes[n].flat)
}

// finish encodes a unit, leaves in it what its readers decode, and publishes it.
func (m *reducer) finish(n schedule.Node, flat []float32) error {
	if m.codec.Exact() && m.replicas == 1 && m.tied == "" && m.limit == 0 {
		return nil
	}
	if err := m.checkNorm(flat, 1); err != nil {
		return m.rejectUnit(n, flat, err)
	}
	for _, b := range m.buckets {
		if err := m.publish(n, flat, b); err != nil {
			return err
		}
	}
	m.sumSquares()
	return nil
}

// count counts the bytes that a bucket has in float32.
func (m *reducer) count(b *bucket) {
	if m.counted {
		m.run.full += uint64(4 * (b.hi - b.lo))
	}
}

// checkNorm returns an error for values that must never reach the weights. They are the sum of a number of units,
// each of which has a norm up to the limit.
func (m *reducer) checkNorm(x []float32, units int) error {
	sum, limit := m.run.service.cfg.Kernels.SumSquares(x), m.limit*float64(units)
	switch {
	case math.IsNaN(sum) || math.IsInf(sum, 0):
		return errNotFinite
	case limit > 0 && sum > limit*limit:
		return &hugeError{math.Sqrt(sum), limit}
	}
	return nil
}

// finite reports whether all values are finite, and their norm.
func (m *reducer) finite(x []float32) bool {
	sum := m.run.service.cfg.Kernels.SumSquares(x)
	return !math.IsNaN(sum) && !math.IsInf(sum, 0)
}

// gather waits for the other replicas' units and sums the slots of all replicas over the tree. It
// returns the time spent waiting.
func (m *reducer) gather(nodes map[schedule.Node]*gradient) (time.Duration, error) {
	begin := time.Now()
	if m.replicas == 1 {
		m.folded = m.whole(m.root, nodes)
		clear(nodes)
		return 0, nil
	}
	m.folded = m.span.takeGradient()
	units := map[schedule.Node][]float32{}
	for n, g := range nodes {
		units[n] = g.flat
	}
	if err := m.fold(units); err != nil {
		return 0, err
	}
	for _, g := range nodes {
		m.span.grads = append(m.span.grads, g)
	}
	clear(nodes)
	return time.Since(begin), nil
}

// fold sets folded to the sum of the units of all replicas. It changes this replica's own ones.
func (m *reducer) fold(units map[schedule.Node][]float32) error {
	// First the sums of this machine that others wait for, then the buckets that this replica folds for the others,
	// and last those that others fold. Units are sent before anybody waits, and every replica takes buckets in the
	// same order, so replicas never wait for one another in a circle.
	values := map[*bucket]map[schedule.Node][]float32{}
	for _, b := range m.buckets {
		if !m.leads(b) {
			continue
		}
		values[b] = map[schedule.Node][]float32{}
		for n, flat := range units {
			values[b][n] = flat[b.lo:b.hi]
		}
		if m.near != nil && !b.tied {
			if err := m.foldNear(b, values[b]); err != nil {
				return err
			}
		}
	}
	for _, mine := range []bool{true, false} {
		for _, b := range m.buckets {
			if !m.leads(b) || (!b.scatter || b.owner == m.place()) != mine {
				continue
			}
			var err error
			if mine {
				err = m.foldBucket(b, values[b])
			} else {
				err = m.readFold(b)
			}
			if err == nil && m.near != nil && !b.tied {
				err = m.passOn(b)
			}
			if err != nil {
				return err
			}
		}
	}
	for _, b := range m.buckets {
		if !m.leads(b) {
			if err := m.readSum(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// foldBucket sums a bucket over all replicas, and publishes the sum if the bucket is scattered.
func (m *reducer) foldBucket(b *bucket, values map[schedule.Node][]float32) error {
	if err := m.read(b, values); err != nil {
		return err
	}
	sum := m.folded.flat[b.lo:b.hi]
	copy(sum, m.sum(m.root, values))
	if b.scatter {
		m.count(b)
		return m.mail.send(b.fold.part, m.root, b.fold.wire, wire.Bytes(sum))
	}
	return nil
}

// read adds the units of a bucket that are not in values yet.
func (m *reducer) read(b *bucket, values map[schedule.Node][]float32) error {
	for n := range m.published(b) {
		if values[n] != nil || b.nodes.ignored[n] { // what is ignored is there, perhaps in parts
			continue
		}
		data, err := m.mail.await(&b.nodes, n)
		if err != nil {
			return err
		}
		if values[n], err = m.decode(b, &b.nodes, n, data); err != nil {
			return err
		}
	}
	return nil
}

// decode decodes and checks a node of a bucket that has arrived in a parcel.
func (m *reducer) decode(b *bucket, p *parcel, n schedule.Node, data []byte) ([]float32, error) {
	values := make([]float32, b.hi-b.lo)
	err := b.decode(values, data)
	if err == nil {
		err = m.checkNorm(values, m.parts(n))
	}
	if err != nil {
		return nil, m.mail.reject(p, n, reasonOf(err), data, len(data), err)
	}
	return values, nil
}

// readFold reads the sum of a bucket that another replica has folded.
func (m *reducer) readFold(b *bucket) error {
	data, err := m.mail.await(&b.fold, m.root)
	if err != nil {
		return err
	}
	return m.takeSum(b, &b.fold, data)
}

// sum returns the sum over a node of the tree, given the values of the units. It changes these values.
func (m *reducer) sum(n schedule.Node, values map[schedule.Node][]float32) []float32 {
	if v, ok := values[n]; ok {
		return v
	}
	left, right := n.Children()
	sum := m.sum(left, values)
	m.run.service.cfg.Kernels.Add(sum, m.sum(right, values))
	return sum
}

// whole returns a node's gradient, folded from the available nodes.
func (m *reducer) whole(n schedule.Node, nodes map[schedule.Node]*gradient) *gradient {
	if g := nodes[n]; g != nil {
		return g
	}
	left, right := n.Children()
	return m.add(m.whole(left, nodes), m.whole(right, nodes))
}

// add adds b to a and returns b to the pool.
func (m *reducer) add(a, b *gradient) *gradient {
	m.run.service.cfg.Kernels.Add(a.flat, b.flat)
	m.span.grads = append(m.span.grads, b)
	return a
}

// foldTied adds the head's part of a tied embedding's gradient to the embedding's part, in that
// order, on both stages that hold the weight. The other part is summed from the units that its stages
// have published for one another.
func (m *reducer) foldTied() error {
	if m.span.tied == "" {
		m.folded.params.FoldTied(m.run.service.cfg.Kernels.Add) // if both parts are on this stage
		return nil
	}
	theirs := *m.buckets[slices.IndexFunc(m.buckets, func(b *bucket) bool { return b.tied })]
	theirs.nodes = parcel{part: tiedHead + m.label, wire: theirs.nodes.wire, size: theirs.nodes.size, publishers: m.all}
	if m.span.stage.Last() {
		theirs.nodes.part = tiedEmbedding + m.label
	}
	values := map[schedule.Node][]float32{}
	if err := m.read(&theirs, values); err != nil {
		return err
	}
	other := m.sum(m.root, values)
	mine := m.folded.tensor(m.span.tied)
	if m.span.stage.First() {
		m.run.service.cfg.Kernels.Add(mine, other)
	} else { // embedding + head, on either stage
		m.run.service.cfg.Kernels.Add(other, mine)
		copy(mine, other)
	}
	return nil
}

// norms returns the sum of squares of each gradient tensor that this span owns. A gradient that is
// not finite is an error, since it must never reach the weights.
func (m *reducer) norms() ([]*shardv1.Norm, error) {
	var out []*shardv1.Norm
	for _, p := range m.span.state {
		if p.Tied() || !p.group.Trainable {
			continue
		}
		sum := m.run.service.cfg.Kernels.SumSquares(m.folded.tensor(p.Name))
		if math.IsNaN(sum) || math.IsInf(sum, 0) {
			part := parcel{part: p.Name, publishers: map[schedule.Node]int{m.root: m.self}}
			x := m.folded.tensor(p.Name)
			return nil, m.mail.reject(&part, m.root, reasonOf(errNotFinite), head(x), 4*len(x), errNotFinite)
		}
		out = append(out, &shardv1.Norm{Name: p.Name, SumSquares: sum})
	}
	return out, nil
}
