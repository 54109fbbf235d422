package shard

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// members are the replicas that make an attempt at a step, in the order of their slots. Wherever a reducer
// numbers replicas, it means their places in this list.
type members struct {
	shares []share
	own    int // place of this replica
}

// share is the range of slots that a replica computes, and where the stage of that replica is.
type share struct {
	replica int // as in TrainOpen
	lo, hi  int
	place
}

// place says where a stage is; the zero value if all gradients go over the bus.
type place struct {
	chain, address string
	host           uint32 // a number of the machine
}

// equal reports whether the same replicas have the same slots.
func (m members) equal(other members) bool { return slices.Equal(m.shares, other.shares) }

// first reports whether this replica does what one replica has to do for all.
func (m members) first() bool { return m.own == 0 }

// slots returns the range of slots of this replica.
func (m members) slots() (lo, hi int) { return m.shares[m.own].lo, m.shares[m.own].hi }

// allMembers returns the replicas of an opening with equal shares.
func allMembers(o *shardv1.TrainOpen) members {
	m := members{own: int(o.GetReplica())}
	slots, replicas, nodes := int(o.GetSlots()), int(o.GetReplicas()), shareNodes(o)
	for i := range replicas {
		lo, hi := schedule.Slots(slots, i, replicas)
		if nodes > 0 {
			lo, hi = schedule.LevelSlots(slots, nodes, i, replicas)
		}
		m.shares = append(m.shares, share{replica: i, lo: lo, hi: hi})
	}
	return m
}

// shareNodes returns the number of nodes of the tree that are not divided among replicas; 0 if any range of slots
// can be a share.
func shareNodes(o *shardv1.TrainOpen) int {
	switch {
	case o.GetDiloco() != nil:
		return int(o.GetDiloco().GetWorkers())
	case !codec(o).Exact():
		return int(o.GetGradients().GetNodes())
	}
	return 0
}

// membersOf returns the members of a step.
func (r *trainRun) membersOf(step *shardv1.Step) (members, error) {
	if len(step.GetMembers()) == 0 {
		return allMembers(r.open), nil
	}
	m := members{own: -1}
	at, seen := 0, map[uint32]bool{}
	for i, member := range step.GetMembers() {
		lo, hi := int(member.GetLo()), int(member.GetHi())
		if lo != at || hi <= lo || seen[member.GetReplica()] {
			return m, fault.Field("step.members", "replica %d with slots %d to %d follows slot %d", member.GetReplica(),
				lo, hi-1, at-1)
		}
		if member.GetReplica() == r.open.GetReplica() {
			m.own = i
		}
		at, seen[member.GetReplica()] = hi, true
		where, err := r.placeOf(member)
		if err != nil {
			return m, err
		}
		m.shares = append(m.shares, share{int(member.GetReplica()), lo, hi, where})
	}
	if at != int(r.open.GetSlots()) || m.own < 0 {
		return m, fault.Field("step.members", "%d of %d slots; replica %d is in place %d", at, r.open.GetSlots(),
			r.open.GetReplica(), m.own)
	}
	if err := m.checkPlaces(r.open.GetChain()); err != nil {
		return m, err
	}
	if n := shareNodes(r.open); n > 0 {
		starts := map[int]bool{}
		for _, node := range schedule.Level(at, n) {
			starts[node.Lo] = true
		}
		for _, s := range m.shares {
			if !starts[s.lo] {
				return m, fault.Field("step.members", "slot %d is in the middle of one of %d nodes", s.lo, n)
			}
		}
	}
	return m, nil
}

// placeOf returns where the same stage of a member is.
func (r *trainRun) placeOf(member *shardv1.Member) (place, error) {
	if len(member.GetPlaces()) == 0 {
		return place{}, nil
	}
	at := int(r.open.GetStage())
	if len(member.GetPlaces()) != int(r.open.GetStages()) || len(member.GetChain()) != idLen ||
		member.GetPlaces()[at].GetAddress() == "" {
		return place{}, fault.Field("step.members", "replica %d has %d places of %d stages and a chain of %d bytes",
			member.GetReplica(), len(member.GetPlaces()), r.open.GetStages(), len(member.GetChain()))
	}
	p := member.GetPlaces()[at]
	return place{string(member.GetChain()), p.GetAddress(), p.GetHost()}, nil
}

// checkPlaces checks that either all members have places or none, and that those of this chain are its own.
func (m members) checkPlaces(chain []byte) error {
	chains := map[string]bool{}
	for _, s := range m.shares {
		if s.chain == "" {
			continue
		}
		if chains[s.chain] || (s.chain == string(chain)) != (s.replica == m.shares[m.own].replica) {
			return fault.Field("step.members", "replica %d has the chain of another one", s.replica)
		}
		chains[s.chain] = true
	}
	if len(chains) > 0 && len(chains) != len(m.shares) {
		return fault.Field("step.members", "%d of %d members have places", len(chains), len(m.shares))
	}
	return nil
}

// placed reports whether it is known which replicas share a machine.
func (m members) placed() bool { return m.shares[m.own].chain != "" }

// has reports whether a chain is a member.
func (m members) has(chain string) bool { return m.at(chain) >= 0 }

// at returns the place of a chain among the members, or -1.
func (m members) at(chain string) int {
	return slices.IndexFunc(m.shares, func(s share) bool { return s.chain == chain })
}

// sameSlots reports whether the same replicas have the same slots, wherever they are.
func (m members) sameSlots(other members) bool {
	return slices.EqualFunc(m.shares, other.shares, func(a, b share) bool {
		return a.replica == b.replica && a.lo == b.lo && a.hi == b.hi
	})
}

// regroup makes the members those of a step.
func (r *trainRun) regroup(step *shardv1.Step) error {
	m, err := r.membersOf(step)
	if err != nil || m.equal(r.members) {
		return err
	}
	if r.diloco != nil || codec(r.open).Feedback() && !m.sameSlots(r.members) {
		return fault.Field("step.members", "the shares have changed, and their state is on other replicas")
	}
	if err := r.reserve(m); err != nil {
		return err
	}
	r.members = m
	for _, s := range r.spans {
		before := s.reducer
		before.discard()
		before.close()
		s.reducer = newReducer(s, s.gradientTree(), s.trained())
		if s.reducer.codec.Feedback() { // the units are the same
			s.reducer.residual, s.reducer.pending = before.residual, before.pending
		}
	}
	return nil
}
