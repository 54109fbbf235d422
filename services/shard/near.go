package shard

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/compress"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// near says which members share a machine. They exchange the gradients of a bucket over Reduce: all but one, the
// leader, send their units to it. The leader folds them into the largest nodes that the machine has, and exchanges
// these with the leaders of other machines over the bus, as replicas without near do. Then it passes the sum on.
// Both ways follow the one tree over slots, so the sums have the same bits.
type near struct {
	machines [][]int               // the members of each machine
	machine  int                   // this one
	units    map[schedule.Node]int // what machines publish, and which
}

// newNear returns how members exchange the gradients of a tree; nil if all go over the bus.
func newNear(t tree, of members) *near {
	if !of.placed() {
		return nil
	}
	out := &near{units: map[schedule.Node]int{}}
	index := map[uint32]int{}
	for i, s := range of.shares {
		at, ok := index[s.host]
		if !ok {
			at = len(out.machines)
			index[s.host] = at
			out.machines = append(out.machines, nil)
		}
		out.machines[at] = append(out.machines[at], i)
		if i == of.own {
			out.machine = at
		}
	}
	for i, here := range out.machines {
		has := map[schedule.Node]bool{}
		for n, member := range t.all {
			if slices.Contains(here, member) {
				has[n] = true
			}
		}
		if t.codec.Exact() {
			for _, n := range schedule.Join(t.root, has) {
				out.units[n] = i
			}
			continue
		}
		for n := range has { // they are encoded, and their sums would lose more
			out.units[n] = i
		}
	}
	return out
}

// places returns the number of those that exchange gradients over the bus: machines, or members.
func (m *reducer) places() int {
	if m.near != nil {
		return len(m.near.machines)
	}
	return m.replicas
}

// place returns which of them this replica belongs to.
func (m *reducer) place() int {
	if m.near != nil {
		return m.near.machine
	}
	return m.self
}

// published lists the nodes of a bucket that are exchanged over the bus, and the place of each. The two parts of a
// tied weight are on different stages, so they never go over Reduce.
func (m *reducer) published(b *bucket) map[schedule.Node]int {
	if m.near != nil && !b.tied {
		return m.near.units
	}
	return m.all
}

// sender returns the member that publishes a node of bucket i, given its place.
func (m *reducer) sender(b *bucket, i int, n schedule.Node, place int) int {
	switch {
	case m.near == nil || b.tied:
		return place
	case !m.codec.Exact():
		return m.all[n]
	}
	return m.leader(i, place)
}

// leader returns the member that sums bucket i for a machine. Leaders take turns.
func (m *reducer) leader(i, machine int) int {
	here := m.near.machines[machine]
	return here[i%len(here)]
}

// parts counts the replicas' units below a node, which may be a sum of a machine.
func (m *reducer) parts(n schedule.Node) int {
	if _, ok := m.all[n]; ok || n.Leaf() {
		return 1
	}
	left, right := n.Children()
	return m.parts(left) + m.parts(right)
}

// leads reports whether this replica sums a bucket for its machine.
func (m *reducer) leads(b *bucket) bool { return m.near == nil || b.tied || b.leader == m.self }

// setLeader chooses the leader of bucket i, and says what this replica receives from others of its machine.
func (m *reducer) setLeader(b *bucket, i int) {
	b.leader = m.leader(i, m.near.machine)
	b.local = parcel{part: b.nodes.part, wire: b.nodes.wire, size: b.nodes.size, publishers: map[schedule.Node]int{}}
	for n, member := range m.all {
		if member != m.self && slices.Contains(m.near.machines[m.near.machine], member) {
			b.local.publishers[n] = member
		}
	}
	b.sum = parcel{part: b.nodes.part + ".sum", size: 4 * (b.hi - b.lo),
		publishers: map[schedule.Node]int{m.root: b.leader}}
}

// arrivals lists what this replica receives over Reduce in an attempt.
func (m *reducer) arrivals() []*parcel {
	var out []*parcel
	for _, b := range m.buckets {
		switch {
		case m.near == nil || b.tied:
		case m.leads(b):
			out = append(out, &b.local)
		default:
			out = append(out, &b.sum)
		}
	}
	return out
}

// foldNear adds the units of the other replicas of this machine to values. If there are other machines, it
// folds them and publishes the result for their leaders.
func (m *reducer) foldNear(b *bucket, values map[schedule.Node][]float32) error {
	for n := range b.local.publishers {
		data, err := m.run.direct.await(m.mail, &b.local, n)
		if err != nil {
			return err
		}
		if values[n], err = m.decode(b, &b.local, n, data); err != nil {
			return err
		}
	}
	if len(m.near.machines) == 1 || !m.codec.Exact() {
		return nil
	}
	sums := map[schedule.Node][]float32{}
	for n, machine := range m.near.units {
		if machine != m.near.machine {
			continue
		}
		sums[n] = m.sum(n, values)
		if b.scatter && b.owner == machine { // nobody else needs it
			continue
		}
		if err := m.mail.send(b.nodes.part, n, b.nodes.wire, wire.Bytes(sums[n])); err != nil {
			return err
		}
		m.count(b)
	}
	clear(values)
	for n, sum := range sums {
		values[n] = sum
	}
	return nil
}

// passOn sends the sum of a bucket to the other replicas of this machine.
func (m *reducer) passOn(b *bucket) error {
	data := wire.Bytes(m.folded.values()[b.lo:b.hi])
	for _, member := range m.near.machines[m.near.machine] {
		if member == m.self {
			continue
		}
		if err := m.run.direct.send(m.mail, member, b.sum.part, m.root, "", data); err != nil {
			return err
		}
	}
	return nil
}

// readSum reads the sum of a bucket from its leader.
func (m *reducer) readSum(b *bucket) error {
	data, err := m.run.direct.await(m.mail, &b.sum, m.root)
	if err != nil {
		return err
	}
	return m.takeSum(b, &b.sum, data)
}

// takeSum takes over the sum of a bucket that another replica has folded.
func (m *reducer) takeSum(b *bucket, p *parcel, data []byte) error {
	sum := m.folded.values()[b.lo:b.hi]
	err := (compress.Codec{}).Decode(sum, data)
	if err == nil && !m.finite(sum) {
		err = errNotFinite
	}
	if err != nil {
		return m.mail.reject(p, m.root, reasonOf(err), data, len(data), err)
	}
	return nil
}
