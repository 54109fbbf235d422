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
	seen   *seen // items before the last one, or nil
	start  int32 // where the last one began, in the text so far
	end    int32 // where it ended; -1 while it is read, unknown where it was not followed
	inside bool  // an item is being read
	like   *seen // what follows it among those seen, or nil
	// blind says that an item before the one being read is not known. Then whether
	// this one is new is not known either, and it does not end.
	blind bool
}

const unknownEnd = -2

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
	start, end    int32
	inside, blind bool
}

// memories keeps each memory once.
type memories struct {
	known map[memoryKey]*memory
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
	key := memoryKey{idOf(want.seen), idOf(want.like), want.start, want.end, want.inside, want.blind}
	if known := m.known[key]; known != nil {
		return known
	}
	m.ids++
	want.id = m.ids
	m.known[key] = &want
	m.bytes += 120
	return &want
}

// with is s and one more text.
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
func (m *machine) opened() *memory { return m.memories.keep(memory{end: -1}) }

// begun is the memory once another item begins.
func (m *machine) begun(of *memory) *memory {
	if of == nil || of.inside {
		return nil // not one of its arrays' places
	}
	items, blind := of.seen, of.blind
	switch {
	case of.end == unknownEnd:
		blind = true
	case of.end >= 0:
		items = m.memories.with(of.seen, m.text[of.start:of.end])
	}
	return m.memories.keep(memory{seen: items, start: int32(len(m.text)), end: -1, inside: true, like: items, blind: blind})
}

// ended is the memory once the item ends, or nil where it is like one before.
func (m *machine) ended(of *memory) *memory {
	if of == nil || of.blind || of.like != nil && of.like.final {
		return nil
	}
	end := int32(len(m.text))
	if !m.exact {
		end = unknownEnd
	}
	return m.memories.keep(memory{seen: of.seen, start: of.start, end: end})
}

// read is the memory after b.
func (m *machine) read(of *memory, b byte) *memory {
	if of == nil || of.like == nil {
		return of
	}
	next := *of
	next.like = of.like.child(b)
	return m.memories.keep(next)
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

// hopeless says that all ways from p lead to an item that was there before.
func (m *machine) hopeless(p *position) (bool, error) {
	if p.hope != unknownHope {
		return p.hope == noHope, nil
	}
	p.hope = someHope
	for _, c := range p.configs {
		if c.mem == nil || !c.mem.inside || c.mem.like == nil {
			return false, nil
		}
	}
	if p.canEnd || p.popped || len(p.configs) == 0 {
		return false, nil
	}
	for b := range m.allowed(p).all() {
		next, err := m.raw(p, b)
		if err != nil {
			p.hope = unknownHope
			return false, err
		}
		if next == m.nowhere {
			continue
		}
		none, err := m.hopeless(next)
		if err != nil || !none {
			return false, err
		}
	}
	p.hope = noHope
	return true, nil
}

// hope is whether an item can still come out unlike those before.
type hope uint8

const (
	unknownHope hope = iota
	someHope
	noHope
)

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
