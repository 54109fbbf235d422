package automaton

import (
	"cmp"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
)

// uniqueItems is not context-free: whether an item is allowed depends on the items before
// it. The rule of such an array and the rules of its items have a role, and every
// configuration inside the array carries a memory: the trie of the items so far, and the
// node of that trie that the current item has reached. While that node exists the item may
// still turn out to be a repetition; once it is nil the item is new, whatever follows. Items
// have one spelling each, so that equal values are equal texts.

// memory is the state of one uniqueItems array. It is immutable and interned.
type memory struct {
	id     uint32
	seen   *Seen // complete items, or nil
	Inside bool  // inside an item
	start  int32 // offset of the item in the text; -1 before its first byte
	Like   *Seen // node of seen that the item has reached, or nil
	// blind means that an earlier item is unknown. Whether this item is new is then unknown
	// too, and it must not end.
	blind bool
}

// Seen is an immutable trie of texts.
type Seen struct {
	id    uint32
	Final bool
	next  []seenNext // by byte
}

type seenNext struct {
	b  byte
	to *Seen
}

// Child returns what was seen after s and the byte b, or nil.
func (s *Seen) Child(b byte) *Seen {
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

// addedKey is a set and a text that is added to it.
type addedKey struct {
	to   uint32
	text string
}

// memories interns memories.
type memories struct {
	known map[memoryKey]*memory
	added map[addedKey]*Seen
	ids   uint32
	nodes uint32
	bytes int
}

func idOf(s *Seen) uint32 {
	if s == nil {
		return 0
	}
	return s.id
}

func (m *memories) keep(want memory) *memory {
	key := memoryKey{idOf(want.seen), idOf(want.Like), want.start, want.Inside, want.blind}
	if known := m.known[key]; known != nil {
		return known
	}
	m.ids++
	want.id = m.ids
	m.known[key] = &want
	m.bytes += 120
	return &want
}

// add returns s with one more text, interned.
func (m *memories) add(s *Seen, text []byte) *Seen {
	key := addedKey{idOf(s), string(text)}
	out := m.added[key]
	if out == nil {
		out = m.with(s, text)
		m.added[key] = out
		m.bytes += 80 + len(text)
	}
	return out
}

func (m *memories) with(s *Seen, text []byte) *Seen {
	m.nodes++
	out := &Seen{id: m.nodes}
	if s != nil {
		out.Final, out.next = s.Final, s.next
	}
	m.bytes += 48 + 16*len(out.next)
	if len(text) == 0 {
		out.Final = true
		return out
	}
	below := m.with(s.Child(text[0]), text[1:])
	out.next = slices.Clone(out.next)
	i, found := slices.BinarySearchFunc(out.next, text[0], func(n seenNext, b byte) int { return cmp.Compare(n.b, b) })
	if found {
		out.next[i].to = below
	} else {
		out.next = slices.Insert(out.next, i, seenNext{text[0], below})
	}
	return out
}

// opened returns the memory at the start of an array.
func (m *Machine) opened() *memory { return m.memories.keep(memory{}) }

// begun returns the memory at the start of an item, or nil outside arrays.
func (m *Machine) begun(of *memory) *memory {
	if of == nil || of.Inside {
		return nil
	}
	return m.memories.keep(memory{seen: of.seen, Inside: true, start: -1, Like: of.seen, blind: of.blind})
}

// ended returns the memory after the item, or nil if the item repeats an earlier one.
func (m *Machine) ended(of *memory) *memory {
	switch {
	case of == nil || of.blind || of.Like != nil && of.Like.Final:
		return nil
	case !m.Exact:
		return m.memories.keep(memory{seen: of.seen, blind: true})
	}
	return m.memories.keep(memory{seen: m.memories.add(of.seen, m.Text[of.start:])})
}

// read returns the memory after b, the last byte of the text, and whether that depends on
// more than b's equivalence class.
func (m *Machine) read(of *memory, b byte) (*memory, bool) {
	if of == nil || !of.Inside || of.Like == nil && of.start >= 0 {
		return of, false
	}
	next := *of
	next.Like = of.Like.Child(b)
	if next.start < 0 {
		next.start = int32(len(m.Text)) - 1
	}
	return m.memories.keep(next), true
}

// strange returns the memory for an item that differs from all earlier ones.
func (m *Machine) strange(of *memory) *memory {
	if of == nil || of.Like == nil {
		return of
	}
	next := *of
	next.Like = nil
	return m.memories.keep(next)
}

// hope records whether the current item can still differ from the earlier ones.
type hope uint8

const (
	unknownHope hope = iota
	someHope
	noHope
)

const maxHope = 5000 // positions visited to find an unused item

// hopeless reports whether every continuation of p repeats an earlier item. It searches
// depth first for a position at which the item is certainly new.
func (m *Machine) hopeless(p *Position) (bool, error) {
	if p.hope != unknownHope {
		return p.hope == noHope, nil
	}
	var looked []*Position
	var search func(p *Position) (bool, error)
	search = func(p *Position) (bool, error) {
		switch {
		case p.hope != unknownHope:
			return p.hope == someHope, nil
		case m.hopeful(p):
			p.hope = someHope
			return true, nil
		case len(looked) >= maxHope:
			return false, &ast.LimitError{What: "steps to find an unused item", Limit: maxHope}
		}
		p.hope = noHope // unless the search finds otherwise
		looked = append(looked, p)
		for b := range m.Allowed(p).All() {
			next, err := m.raw(p, b)
			if err != nil {
				return false, err
			}
			if next == m.Nowhere {
				continue
			}
			m.PushByte(b)
			some, err := search(next)
			m.PopByte()
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

// hopeful reports whether p itself shows that the item can be new, or that no item has to
// follow.
func (m *Machine) hopeful(p *Position) bool {
	if p.CanEnd || p.Popped {
		return true
	}
	for _, c := range p.Configs {
		switch {
		case c.Mem == nil, c.Mem.Inside && c.Mem.Like == nil && (!c.Mem.blind || m.several(c.At)):
			return true
		case !c.Mem.Inside:
			for _, it := range c.At.Items {
				if m.Prog.leaves[it.Pc] {
					return true
				}
			}
		}
	}
	return false
}

// several reports whether s has at least two continuations, so that one unknown earlier item
// cannot exclude all of them.
func (m *Machine) several(s *State) bool {
	n := 0
	if s.Done {
		n = 1
	}
	first := -1
	for _, it := range s.Items {
		in := &m.Prog.Code[it.Pc]
		if in.Op != OpChar {
			continue
		}
		for _, e := range m.Prog.Classes[in.Class].States[it.Sub] {
			if e.Lo != e.Hi || first >= 0 && int(e.Lo) != first {
				return true
			}
			first = int(e.Lo)
		}
	}
	if first >= 0 {
		n++
	}
	return n > 1
}

// MaxDifferent is the maximum number of distinct texts that Different counts.
const MaxDifferent = 1000

// Different counts the texts of a rule up to want, and reports whether the count is
// complete. It is a beam search, so that it may miss some.
func (m *Machine) Different(rule int32, want int) (n int, all bool, err error) {
	p, err := m.At(m.Start(rule), m.Stacks.Bottom, nil)
	if err != nil {
		return 0, false, err
	}
	all = true
	beam := []*Position{p}
	for depth := 0; len(beam) > 0 && n < want; depth++ {
		if depth > 10*MaxDifferent {
			return n, false, nil
		}
		var next []*Position
		for _, p := range beam {
			if p.CanEnd {
				n++
			}
			for b := range m.Allowed(p).All() {
				if len(next) > 4*want {
					all = false
					break
				}
				q, err := m.raw(p, b)
				if err != nil {
					return n, false, err
				}
				if q != m.Nowhere {
					next = append(next, q)
				}
			}
		}
		beam = next
	}
	return n, all, nil
}
