package shard

import (
	"math"
	"slices"
	"time"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// gather waits for the other replicas' units and sums the slots of all replicas over the tree. It
// returns the time spent waiting.
func (m *reducer) gather(nodes map[schedule.Node]*gradient) (time.Duration, error) {
	begin := time.Now()
	if m.replicas == 1 {
		if !m.codec.Exact() {
			for _, g := range nodes {
				g.store()
			}
		}
		m.folded = m.whole(m.root, nodes)
		clear(nodes)
		return 0, nil
	}
	m.folded = m.span.takeGradient()
	units := map[schedule.Node][]float32{}
	for n, g := range nodes {
		units[n] = g.values()
	}
	if err := m.fold(units); err != nil {
		return 0, err
	}
	m.folded.store()
	for _, g := range nodes {
		m.span.grads = append(m.span.grads, g)
	}
	clear(nodes)
	return time.Since(begin), nil
}

// fold sets the values of folded in the host's memory to the sum of the units of all replicas. It changes this
// replica's own ones.
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
	sum := m.folded.values()[b.lo:b.hi]
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
		err = m.checkNorm(m.run.service.host.SumSquares(values), m.parts(n))
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
	m.run.service.host.Add(sum, m.sum(right, values))
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
	m.run.set().Add(a.flat, b.flat)
	m.span.grads = append(m.span.grads, b)
	return a
}

// foldTied adds the head's part of a tied embedding's gradient to the embedding's part, in that
// order, on both stages that hold the weight. The other part is summed from the units that its stages
// have published for one another.
func (m *reducer) foldTied() error {
	if m.span.tied == "" {
		m.folded.params.FoldTied(m.run.set().Add) // if both parts are on this stage
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
	own := m.run.set().Host(mine)
	sum, more := own, other
	if !m.span.stage.First() { // embedding + head, on either stage
		sum, more = other, own
	}
	m.run.service.host.Add(sum, more)
	m.run.set().Upload(mine, sum)
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
		sum := m.run.set().SumSquares(m.folded.tensor(p.Name))
		if math.IsNaN(sum) || math.IsInf(sum, 0) {
			part := parcel{part: p.Name, publishers: map[schedule.Node]int{m.root: m.self}}
			x := m.folded.tensor(p.Name)
			return nil, m.mail.reject(&part, m.root, reasonOf(errNotFinite), m.run.head(x), 4*len(x), errNotFinite)
		}
		out = append(out, &shardv1.Norm{Name: p.Name, SumSquares: sum})
	}
	return out, nil
}
