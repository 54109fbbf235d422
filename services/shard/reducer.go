package shard

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/compress"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

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
		for _, n := range r.unitsOf(share.lo, share.hi) {
			t.all[n] = replica
		}
	}
	t.near = newNear(t, r.members)
	return t
}

// unitsOf lists the units of a replica with the slots [lo, hi).
func (r *trainRun) unitsOf(lo, hi int) []schedule.Node {
	slots := int(r.open.GetSlots())
	if codec(r.open).Exact() {
		return schedule.Cover(slots, lo, hi)
	}
	return within(schedule.Level(slots, int(r.open.GetGradients().GetNodes())), lo, hi)
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
	return m.finish(n, nodes[n])
}

// finish encodes a unit, leaves in it what its readers decode, and publishes it.
func (m *reducer) finish(n schedule.Node, g *gradient) error {
	if m.codec.Exact() && m.replicas == 1 && m.tied == "" && m.limit == 0 {
		return nil
	}
	if err := m.checkNorm(m.run.set().SumSquares(g.flat), 1); err != nil {
		return m.rejectUnit(n, g.flat, err)
	}
	for _, b := range m.buckets {
		if err := m.publish(n, g, b); err != nil {
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

// checkNorm returns an error for values that must never reach the weights, given the sum of their squares. They are the
// sum of a number of units, each of which has a norm up to the limit.
func (m *reducer) checkNorm(sum float64, units int) error {
	limit := m.limit * float64(units)
	switch {
	case math.IsNaN(sum) || math.IsInf(sum, 0):
		return errNotFinite
	case limit > 0 && sum > limit*limit:
		return &hugeError{math.Sqrt(sum), limit}
	}
	return nil
}

// finite reports whether all values, which are in the host's memory, are finite, and their norm.
func (m *reducer) finite(x []float32) bool {
	sum := m.run.service.host.SumSquares(x)
	return !math.IsNaN(sum) && !math.IsInf(sum, 0)
}
