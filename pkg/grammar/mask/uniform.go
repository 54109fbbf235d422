package mask

import (
	"encoding/binary"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/automaton"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// uniform is a class of characters that a state treats alike: all lead to next.
type uniform struct {
	known bool
	set   charset.Set // nil if no class is large enough
	key   string
	next  *automaton.State // or the machine's dead state
}

// relation is the relation of a class of the program to a set of characters.
type relation uint8

const (
	unrelated relation = iota // not computed yet
	disjoint
	covers
	cuts // contains a part of the set
)

// relationsTo returns the relations of all classes to a set, as far as they are computed.
func (m *engine) relationsTo(key string) []relation {
	r := m.relations[key]
	if r == nil {
		r = make([]relation, len(m.Prog.Classes))
		m.relations[key] = r
		m.Bytes += len(r)
	}
	return r
}

func relate(of, to charset.Set) relation {
	switch common := of.Intersect(to); {
	case len(common) == 0:
		return disjoint
	case slices.Equal(common, to):
		return covers
	}
	return cuts
}

// worth estimates how many trie nodes begin with a character of set.
func (v *Vocabulary) worth(set charset.Set) int {
	n := 0
	for _, p := range set {
		for c := p.Lo; c <= min(p.Hi, 0x7F); c++ {
			n += v.weights[c]
		}
		if p.Hi >= 0x4E00 && p.Lo <= 0x9FFF { // such a set contains most other characters, too
			for b := 0xC2; b < 0xF5; b++ {
				n += v.weights[b]
			}
		}
	}
	return n
}

const (
	worthwhile = 4000 // trie nodes from which a class is worth indexing
	maxUniform = 64   // items of a state that is examined
)

// uniformOf finds the largest class of characters that s treats alike.
func (m *engine) uniformOf(s *automaton.State) *uniform {
	run := &notes(s).run
	if run.known {
		return run
	}
	run.known = true
	if len(s.Items) > maxUniform {
		return run
	}
	var sets []charset.Set
	for _, it := range s.Items {
		switch in := &m.Prog.Code[it.Pc]; in.Op {
		case automaton.OpCall:
			return run
		case automaton.OpChar:
			if it.Sub != 0 {
				return run
			}
			sets = append(sets, m.Prog.Classes[in.Class].Plain)
		}
	}
	var best charset.Set
	worth := worthwhile
	for _, set := range sets {
		if w := m.vocab.worth(set); w > worth {
			best, worth = set, w
		}
	}
	if best == nil {
		return run
	}
	for _, set := range sets {
		in := best.Intersect(set)
		if len(in) == 0 || in.Key() == best.Key() {
			continue
		}
		if out := best.Intersect(set.Negate()); m.vocab.worth(out) > m.vocab.worth(in) {
			in = out
		}
		best = in
	}
	if m.vocab.worth(best) <= worthwhile {
		return run
	}
	key := best.Key()
	if next := m.throughout(s, best, key); next != nil {
		run.set, run.key, run.next = best, key, next
	}
	return run
}

// throughout returns the state after any character of a set, or nil if it depends on which.
func (m *engine) throughout(s *automaton.State, set charset.Set, key string) *automaton.State {
	run := &notes(s).run
	if !run.known {
		m.uniformOf(s)
	}
	if run.next != nil && run.key == key {
		return run.next
	}
	relations := m.relationsTo(key)
	m.Begin()
	for _, it := range s.Items {
		switch in := &m.Prog.Code[it.Pc]; in.Op {
		case automaton.OpCall:
			return nil
		case automaton.OpChar:
			if it.Sub != 0 {
				return nil
			}
			if relations[in.Class] == unrelated {
				relations[in.Class] = relate(m.Prog.Classes[in.Class].Plain, set)
			}
			switch relations[in.Class] {
			case covers:
				m.Reach(in.X, it.Count)
			case cuts:
				return nil
			}
		}
	}
	return m.Finish()
}

// farKey returns a key that states share if their masks cannot differ: it leaves out counts
// that are so far from their bounds that no token reaches one.
func (m *engine) farKey(s *automaton.State) (string, bool) {
	far := int32(m.vocab.longest + 1)
	var key []byte
	some := false
	for _, it := range s.Items {
		key = binary.LittleEndian.AppendUint32(key, uint32(it.Pc))
		key = binary.LittleEndian.AppendUint16(key, uint16(it.Sub))
		if it.Count == 0 {
			continue
		}
		key = append(key, 1)
		loop := m.Prog.Code[it.Pc].Loop
		for at := it.Count; at != 0; at = m.Counts.Lists[at].Below {
			n := m.Counts.Lists[at].N
			in := &m.Prog.Code[loop]
			loop = in.Loop
			switch {
			case n >= in.Least && (in.Most < 0 || in.Most-n > far):
				n, some = -1, true
			case n < in.Least-far && (in.Most < 0 || in.Most-n > far):
				n, some = -2, true
			}
			key = binary.LittleEndian.AppendUint32(key, uint32(n))
		}
	}
	return string(key), some
}
