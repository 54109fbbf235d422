package shard

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// early folds the last slot of a unit while its backward pass still runs, bucket by bucket as soon as the
// gradients of a bucket are final, and publishes each. Slots are summed value by value, so a bucket has the bits
// that it would have after the pass.
type early struct {
	reducer  *reducer
	nodes    map[schedule.Node]*gradient
	unit     schedule.Node
	slot     *gradient
	siblings []sibling       // of the nodes from the slot up to the unit
	parts    map[*bucket]int // of the model, that are not final yet
	squares  float64         // of what is published
	err      error
}

// sibling is a node that has been folded and waits for the other half of its parent.
type sibling struct {
	node schedule.Node
	left bool
	*gradient
}

// early prepares for the backward pass of a slot. It returns nil if nothing is published, or if more slots of the
// unit follow.
func (m *reducer) early(nodes map[schedule.Node]*gradient, slot int, g *gradient) *early {
	if !m.publishes() {
		return nil
	}
	e := &early{reducer: m, nodes: nodes, slot: g, parts: map[*bucket]int{}}
	n := schedule.Node{Lo: slot, Hi: slot + 1}
	for !m.own[n] {
		parent := m.parents[n]
		left, right := parent.Children()
		s := sibling{node: right}
		if n == right {
			s = sibling{node: left, left: true}
		}
		if s.gradient = nodes[s.node]; s.gradient == nil {
			return nil
		}
		e.siblings = append(e.siblings, s)
		n = parent
	}
	e.unit = n
	for _, b := range m.buckets {
		e.parts[b] = len(b.parts)
	}
	return e
}

// final is called with each part of the model whose gradients are final.
func (e *early) final(part int) {
	if e == nil {
		return
	}
	for _, b := range e.reducer.buckets {
		if !b.parts[part] || e.parts[b] == 0 {
			continue
		}
		if e.parts[b]--; e.parts[b] == 0 {
			e.fold(b)
		}
	}
}

// fold sums the slots of a bucket and publishes it.
func (e *early) fold(b *bucket) {
	if e.err != nil {
		return
	}
	add := e.reducer.run.set().Add
	sum := e.slot
	for _, s := range e.siblings {
		if s.left {
			add(s.flat[b.lo:b.hi], sum.flat[b.lo:b.hi])
			sum = s.gradient
		} else {
			add(sum.flat[b.lo:b.hi], s.flat[b.lo:b.hi])
		}
	}
	e.squares += e.reducer.run.set().SumSquares(sum.flat[b.lo:b.hi])
	e.err = e.reducer.publish(e.unit, sum, b)
}

// finish folds what is left and takes the unit over.
func (e *early) finish() error {
	m := e.reducer
	for _, b := range m.buckets {
		if e.parts[b] > 0 {
			e.fold(b)
		}
	}
	sum := e.slot
	for _, s := range e.siblings {
		delete(e.nodes, s.node)
		free := s.gradient
		if s.left {
			sum, free = s.gradient, sum
		}
		m.span.grads = append(m.span.grads, free)
	}
	e.nodes[e.unit] = sum
	m.sumSquares()
	// What has been published of a gradient that is too large is never used: every stage of this replica has to
	// report that it has folded the step, and this one rejects it.
	if limit := m.limit; e.err == nil && limit > 0 && e.squares > limit*limit {
		return m.rejectUnit(e.unit, sum.flat, &hugeError{math.Sqrt(e.squares), limit})
	}
	return e.err
}

// rejectUnit rejects a gradient of this replica.
func (m *reducer) rejectUnit(n schedule.Node, values kernel.Buffer[float32], err error) error {
	part := parcel{part: m.span.stage.Range.String() + m.label, publishers: m.all}
	return m.mail.reject(&part, n, reasonOf(err), m.run.head(values), 4*len(values), err)
}

// publishes reports whether units are encoded at all.
func (m *reducer) publishes() bool { return !m.codec.Exact() || m.replicas > 1 || m.tied != "" }

// leaves reports whether a bucket of a unit is encoded, or sent to anybody.
func (m *reducer) leaves(b *bucket) bool { return b.tied || m.replicas > 1 || !m.codec.Exact() }

// publish encodes a bucket of a unit, leaves in the host's memory what its readers decode, and sends it to those that
// fold it.
func (m *reducer) publish(n schedule.Node, g *gradient, b *bucket) error {
	on := g.flat[b.lo:b.hi]
	if err := m.checkNorm(m.run.set().SumSquares(on), 1); err != nil {
		return m.rejectUnit(n, on, err)
	}
	if !m.leaves(b) {
		return nil
	}
	values, left := g.fetch(b), m.pending[n]
	if m.codec.Feedback() {
		m.run.service.host.Add(values, m.residual[n][b.lo:b.hi])
	}
	data := b.encode(m, g.values(), left)
	if m.near != nil && !b.tied {
		if !m.leads(b) {
			if err := m.run.direct.send(m.mail, b.leader, b.local.part, n, b.local.wire, data); err != nil {
				return err
			}
		}
		// The leader folds exact units before they go out. Lossy ones go out as they are.
		if m.codec.Exact() {
			return nil
		}
	}
	if b.tied || m.places() > 1 && (!b.scatter || b.owner != m.place()) {
		if err := m.mail.send(b.nodes.part, n, b.nodes.wire, data); err != nil {
			return err
		}
		m.count(b)
	}
	return nil
}

// sumSquares adds up what encode has measured of a unit, in the order of the parameters.
func (m *reducer) sumSquares() {
	for _, b := range m.buckets {
		for i := range b.squares {
			m.nodeSquares += b.squares[i]
			m.errorSquares += b.errors[i]
		}
		b.squares, b.errors = b.squares[:0], b.errors[:0]
	}
}
