package grammar

import (
	"cmp"
	"slices"
)

// An array whose items must differ needs to know what came before. Its rule and
// those of its items have a role, and what is open carries a memory: the items
// seen, and how far the item being read is like one of them. Items are spelled in
// one way alone, so that equal values are equal texts.

// role is what a rule is to an array whose items must differ.
type role uint8

const (
	noRole role = iota
	uniqueArray
	uniqueItem
)

// memory is what such an array knows. It never changes, and equal ones are one
// object.
type memory struct {
	id     uint32
	seen   *seen // items that have ended, or nil
	inside bool  // an item is being read
	start  int32 // where it began, in the text so far; -1 before its first byte
	like   *seen // what follows it among those seen, or nil
	// blind says that an item before the one being read is not known. Then whether
	// this one is new is not known either, and it does not end.
	blind bool
}

// seen is a set of texts as a tree of bytes. It is never changed.
type seen struct {
	id    uint32
	final bool
	next  []seenNext // by byte
}

type seenNext struct {
	b  byte
	to *seen
}

func (s *seen) child(b byte) *seen {
	if s == nil {
		return nil
	}
	i, found := slices.BinarySearchFunc(s.next, b, func(n seenNext, b byte) int { return cmp.Compare(n.b, b) })
	if !found {
		return nil
	}
	return s.next[i].to
}

type memoryKey struct {
	seen, like    uint32
	start         int32
	inside, blind bool
}

// addedKey is a set and a text that joins it.
type addedKey struct {
	to   uint32
	text string
}

// memories keeps each memory once.
type memories struct {
	known map[memoryKey]*memory
	added map[addedKey]*seen
	ids   uint32
	nodes uint32
	bytes int
}

func idOf(s *seen) uint32 {
	if s == nil {
		return 0
	}
	return s.id
}

func (m *memories) keep(want memory) *memory {
	key := memoryKey{idOf(want.seen), idOf(want.like), want.start, want.inside, want.blind}
	if known := m.known[key]; known != nil {
		return known
	}
	m.ids++
	want.id = m.ids
	m.known[key] = &want
	m.bytes += 120
	return &want
}

// add is s and one more text, kept once.
func (m *memories) add(s *seen, text []byte) *seen {
	key := addedKey{idOf(s), string(text)}
	out := m.added[key]
	if out == nil {
		out = m.with(s, text)
		m.added[key] = out
		m.bytes += 80 + len(text)
	}
	return out
}

func (m *memories) with(s *seen, text []byte) *seen {
	m.nodes++
	out := &seen{id: m.nodes}
	if s != nil {
		out.final, out.next = s.final, s.next
	}
	m.bytes += 48 + 16*len(out.next)
	if len(text) == 0 {
		out.final = true
		return out
	}
	below := m.with(s.child(text[0]), text[1:])
	out.next = slices.Clone(out.next)
	i, found := slices.BinarySearchFunc(out.next, text[0], func(n seenNext, b byte) int { return cmp.Compare(n.b, b) })
	if found {
		out.next[i].to = below
	} else {
		out.next = slices.Insert(out.next, i, seenNext{text[0], below})
	}
	return out
}

// opened is the memory of an array that begins.
func (m *machine) opened() *memory { return m.memories.keep(memory{}) }

// begun is the memory once another item begins, or nil outside the arrays.
func (m *machine) begun(of *memory) *memory {
	if of == nil || of.inside {
		return nil
	}
	return m.memories.keep(memory{seen: of.seen, inside: true, start: -1, like: of.seen, blind: of.blind})
}

// ended is the memory once the item ends, or nil where it is like one before.
func (m *machine) ended(of *memory) *memory {
	switch {
	case of == nil || of.blind || of.like != nil && of.like.final:
		return nil
	case !m.exact:
		return m.memories.keep(memory{seen: of.seen, blind: true})
	}
	return m.memories.keep(memory{seen: m.memories.add(of.seen, m.text[of.start:])})
}

// read is the memory after b, the last byte of m.text, and whether it depends on
// where that is or which of its class it is.
func (m *machine) read(of *memory, b byte) (*memory, bool) {
	if of == nil || !of.inside || of.like == nil && of.start >= 0 {
		return of, false
	}
	next := *of
	next.like = of.like.child(b)
	if next.start < 0 {
		next.start = int32(len(m.text)) - 1
	}
	return m.memories.keep(next), true
}

// strange is the memory of an item that is unlike all before.
func (m *machine) strange(of *memory) *memory {
	if of == nil || of.like == nil {
		return of
	}
	next := *of
	next.like = nil
	return m.memories.keep(next)
}

// hope is whether an item can still come out unlike those before.
type hope uint8

const (
	unknownHope hope = iota
	someHope
	noHope
)

const maxHope = 5000 // positions looked at for an item that is new

// hopeless says that all ways from p lead to an item that was there before.
func (m *machine) hopeless(p *position) (bool, error) {
	if p.hope != unknownHope {
		return p.hope == noHope, nil
	}
	var looked []*position
	var search func(p *position) (bool, error)
	search = func(p *position) (bool, error) {
		switch {
		case p.hope != unknownHope:
			return p.hope == someHope, nil
		case m.hopeful(p):
			p.hope = someHope
			return true, nil
		case len(looked) >= maxHope:
			return false, &LimitError{What: "steps to find a new item", Limit: maxHope}
		}
		p.hope = noHope // until something else is found
		looked = append(looked, p)
		for b := range m.allowed(p).all() {
			next, err := m.raw(p, b)
			if err != nil {
				return false, err
			}
			if next == m.nowhere {
				continue
			}
			m.heard(b)
			some, err := search(next)
			m.unheard()
			if some || err != nil {
				return some, err
			}
		}
		return false, nil
	}
	some, err := search(p)
	if some || err != nil {
		for _, q := range looked {
			q.hope = unknownHope
		}
	}
	if some {
		p.hope = someHope
	}
	return !some && err == nil, err
}

// hopeful says that p itself shows that an item may come out new, or that none has
// to come.
func (m *machine) hopeful(p *position) bool {
	if p.canEnd || p.popped {
		return true
	}
	for _, c := range p.configs {
		switch {
		case c.mem == nil, c.mem.inside && c.mem.like == nil && (!c.mem.blind || m.several(c.at)):
			return true
		case !c.mem.inside:
			for _, it := range c.at.items {
				if m.prog.leaves[it.pc] {
					return true
				}
			}
		}
	}
	return false
}

// several says that the text goes on in two ways at least from s, so that one that
// is not known cannot be all that is left.
func (m *machine) several(s *state) bool {
	n := 0
	if s.done {
		n = 1
	}
	first := -1
	for _, it := range s.items {
		in := &m.prog.code[it.pc]
		if in.op != doChar {
			continue
		}
		for _, e := range m.prog.classes[in.class].states[it.sub] {
			if e.lo != e.hi || first >= 0 && int(e.lo) != first {
				return true
			}
			first = int(e.lo)
		}
	}
	if first >= 0 {
		n++
	}
	return n > 1
}

// repeats lists the tokens that would repeat an item, or lead to nothing else, from
// a config whose item is like one before so far.
func (m *machine) repeats(c config) ([]int32, error) {
	p, err := m.at(c.at, c.above, c.mem)
	if err != nil {
		return nil, err
	}
	var out []int32
	t := m.vocab.all
	// After a text that was there before, what goes on as if it had ended is wrong,
	// too, and every byte is looked at.
	var walk func(from, to int32, p *position, like *seen, every bool) error
	walk = func(from, to int32, p *position, like *seen, every bool) error {
		for i := from; i < to; i = t.skip[i] {
			next := like.child(t.b[i])
			if next == nil && !every {
				continue
			}
			q, err := m.follow(p, t.b[i])
			if err != nil {
				return err
			}
			if q == m.nowhere {
				out = append(out, t.ids[t.first[i]:t.first[t.skip[i]]]...)
				continue
			}
			m.heard(t.b[i])
			err = walk(i+1, t.skip[i], q, next, every || next.final)
			m.unheard()
			if err != nil {
				return err
			}
		}
		return nil
	}
	err = walk(0, t.size(), p, c.mem.like, c.mem.like.final)
	return out, err
}
