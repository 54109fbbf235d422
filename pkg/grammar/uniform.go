package grammar

import (
	"encoding/binary"
	"slices"
)

// uniform is a class of characters that all do the same in a state, and what.
type uniform struct {
	known bool
	set   runeSet // nil where there is none worth while
	key   string
	next  *state // or the machine's dead state
}

// relation is how a class of the program lies to a set of characters.
type relation uint8

const (
	unrelated relation = iota // not looked at yet
	disjoint
	covers
	cuts // it holds a part of the set
)

// relationsTo is how every class lies to a set, as far as it has been looked at.
func (m *machine) relationsTo(key string) []relation {
	r := m.relations[key]
	if r == nil {
		r = make([]relation, len(m.prog.classes))
		m.relations[key] = r
		m.bytes += len(r)
	}
	return r
}

func relate(of, to runeSet) relation {
	switch common := of.intersect(to); {
	case len(common) == 0:
		return disjoint
	case slices.Equal(common, to):
		return covers
	}
	return cuts
}

// worth is how much of a vocabulary begins with a character of set, about.
func (v *Vocabulary) worth(set runeSet) int {
	n := 0
	for _, p := range set {
		for c := p.lo; c <= min(p.hi, 0x7F); c++ {
			n += v.weights[c]
		}
		if p.hi >= 0x4E00 && p.lo <= 0x9FFF { // a set as wide as that has most of the rest
			for b := 0xC2; b < 0xF5; b++ {
				n += v.weights[b]
			}
		}
	}
	return n
}

const (
	worthwhile = 4000 // nodes of a vocabulary under a class that is worth a look
	maxUniform = 64   // items of a state that is looked at
)

// uniformOf finds the class of s.
func (m *machine) uniformOf(s *state) *uniform {
	if s.run.known {
		return &s.run
	}
	s.run.known = true
	if len(s.items) > maxUniform {
		return &s.run
	}
	var sets []runeSet
	for _, it := range s.items {
		switch in := &m.prog.code[it.pc]; in.op {
		case doCall:
			return &s.run
		case doChar:
			if it.sub != 0 {
				return &s.run
			}
			sets = append(sets, m.prog.classes[in.class].plain)
		}
	}
	var best runeSet
	worth := worthwhile
	for _, set := range sets {
		if w := m.vocab.worth(set); w > worth {
			best, worth = set, w
		}
	}
	if best == nil {
		return &s.run
	}
	for _, set := range sets {
		in := best.intersect(set)
		if len(in) == 0 || in.key() == best.key() {
			continue
		}
		if out := best.intersect(set.negate()); m.vocab.worth(out) > m.vocab.worth(in) {
			in = out
		}
		best = in
	}
	if m.vocab.worth(best) <= worthwhile {
		return &s.run
	}
	key := best.key()
	if next := m.throughout(s, best, key); next != nil {
		s.run.set, s.run.key, s.run.next = best, key, next
	}
	return &s.run
}

// throughout is the state after any one character of a set, or nil where that
// depends on which.
func (m *machine) throughout(s *state, set runeSet, key string) *state {
	if !s.run.known {
		m.uniformOf(s)
	}
	if s.run.next != nil && s.run.key == key {
		return s.run.next
	}
	relations := m.relationsTo(key)
	m.begin()
	for _, it := range s.items {
		switch in := &m.prog.code[it.pc]; in.op {
		case doCall:
			return nil
		case doChar:
			if it.sub != 0 {
				return nil
			}
			if relations[in.class] == unrelated {
				relations[in.class] = relate(m.prog.classes[in.class].plain, set)
			}
			switch relations[in.class] {
			case covers:
				m.reach(in.x, it.count)
			case cuts:
				return nil
			}
		}
	}
	return m.finish()
}

// allowed is the bytes that may come at p.
func (m *machine) allowed(p *position) *byteSet {
	if p.allow == nil {
		p.allow = new(byteSet)
		for _, c := range p.configs {
			for _, it := range c.at.items {
				in := &m.prog.code[it.pc]
				if in.op != doChar {
					continue
				}
				for _, e := range m.prog.classes[in.class].states[it.sub] {
					for b := int(e.lo); b <= int(e.hi); b++ {
						p.allow.add(byte(b))
					}
				}
			}
		}
	}
	return p.allow
}

// farKey is a text that states share whose masks cannot differ: counts are left out
// that no token brings to a bound.
func (m *machine) farKey(s *state) (string, bool) {
	far := int32(m.vocab.longest + 1)
	var key []byte
	some := false
	for _, it := range s.items {
		key = binary.LittleEndian.AppendUint32(key, uint32(it.pc))
		key = binary.LittleEndian.AppendUint16(key, uint16(it.sub))
		if it.count == 0 {
			continue
		}
		key = append(key, 1)
		loop := m.prog.code[it.pc].loop
		for at := it.count; at != 0; at = m.counts.lists[at].below {
			n := m.counts.lists[at].n
			in := &m.prog.code[loop]
			loop = in.loop
			switch {
			case n >= in.least && (in.most < 0 || in.most-n > far):
				n, some = -1, true
			case n < in.least-far && (in.most < 0 || in.most-n > far):
				n, some = -2, true
			}
			key = binary.LittleEndian.AppendUint32(key, uint32(n))
		}
	}
	return string(key), some
}
