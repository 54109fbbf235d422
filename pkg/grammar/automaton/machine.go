package automaton

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// Machine runs a program. It creates states when they are first reached. All matchers of a
// grammar share it, one at a time.
type Machine struct {
	Mu      sync.Mutex
	Prog    *Program
	ClassOf [256]uint8 // equivalence class of each byte
	SomeOf  []byte     // one byte of each equivalence class
	bytesOf [][]byte   // all bytes of each equivalence class
	Stacks  *stacks
	States  map[string]*State
	nextID  uint32
	Dead    *State
	Nowhere *Position // the dead position
	starts  []*State  // start state of each rule, or nil
	Counts  counters
	Bytes   int // approximate memory of states and masks
	Spent   int // work of the current operation
	Limit   int // maximum of Spent
	Credit  int // work left for later operations

	closing   closure
	gather    gathering
	positions map[string]*Position
	returns   map[returnKey]*Position // results of Below
	memories  memories
	Text      []byte // text so far, if the grammar has uniqueItems
	Exact     bool   // Text starts at the beginning, not where a mask's walk does
	key       []byte
}

// State is a set of items of one rule, closed under the steps that read no byte.
type State struct {
	id     uint32
	Items  []Item
	next   []*State // by equivalence class; nil is not computed yet
	calls  []callEdge
	called bool      // calls is computed
	Done   bool      // the rule may end here
	reads  bool      // some item is at an OpChar
	alone  *Position // this state above the unknown stack
	Notes  any       // data that package mask attaches
}

// Item is a place in the program: an OpChar, after some bytes of its character, an OpCall or
// OpDone. count identifies the counters of the loops around it.
type Item struct {
	Pc    int32
	Count int32
	Sub   int16
}

func compareItems(a, b Item) int {
	switch {
	case a.Pc != b.Pc:
		return int(a.Pc) - int(b.Pc)
	case a.Count != b.Count:
		return int(a.Count) - int(b.Count)
	}
	return int(a.Sub) - int(b.Sub)
}

// callEdge is a call: the rule and the state in which to continue after it.
type callEdge struct {
	Rule int32
	Ret  *State
}

// counters interns lists of loop counts; 0 is the empty list.
type counters struct {
	Lists []countList
	known map[countList]int32
}

type countList struct{ N, Below int32 }

func (c *counters) push(n, below int32) int32 {
	l := countList{n, below}
	id, ok := c.known[l]
	if !ok {
		id = int32(len(c.Lists))
		c.Lists = append(c.Lists, l)
		c.known[l] = id
	}
	return id
}

// New returns a machine that runs a program. Its states are made when a text first reaches them.
func New(p *Program) *Machine {
	m := &Machine{Prog: p, Stacks: newStacks(), States: map[string]*State{}, Dead: &State{}, Nowhere: &Position{},
		nextID: 1, starts: make([]*State, len(p.Starts)), positions: map[string]*Position{},
		returns:  map[returnKey]*Position{},
		memories: memories{known: map[memoryKey]*memory{}, added: map[addedKey]*Seen{}}}
	m.Credit = firstWork
	m.Renew()
	m.Counts = counters{Lists: make([]countList, 1), known: map[countList]int32{}}
	m.closing.mark = make([]uint32, len(p.Code))
	m.closing.counted = map[uint64]bool{}
	var cuts [257]bool
	for _, c := range p.Classes {
		for _, edges := range c.States {
			for _, e := range edges {
				cuts[e.Lo], cuts[int(e.Hi)+1] = true, true
			}
		}
	}
	for b := range 256 {
		if b == 0 || cuts[b] {
			m.SomeOf = append(m.SomeOf, byte(b))
			m.bytesOf = append(m.bytesOf, nil)
		}
		number := len(m.SomeOf) - 1
		m.ClassOf[b] = uint8(number)
		m.bytesOf[number] = append(m.bytesOf[number], byte(b))
	}
	return m
}

// closure collects the items that are reached without reading a byte.
type closure struct {
	items   []Item
	work    []Item
	mark    []uint32 // by pc, for items outside counted loops
	stamp   uint32
	counted map[uint64]bool
}

// Begin starts a new set of items, which Reach fills.
func (m *Machine) Begin() {
	c := &m.closing
	c.items = c.items[:0]
	c.stamp++
	if len(c.counted) > 0 {
		clear(c.counted)
	}
}

// Reach adds the items that are reached from pc without reading a byte.
func (m *Machine) Reach(pc, count int32) {
	c := &m.closing
	c.work = append(c.work[:0], Item{Pc: pc, Count: count})
	for len(c.work) > 0 {
		at := c.work[len(c.work)-1]
		c.work = c.work[:len(c.work)-1]
		if at.Count == 0 {
			if c.mark[at.Pc] == c.stamp {
				continue
			}
			c.mark[at.Pc] = c.stamp
		} else {
			key := uint64(uint32(at.Pc))<<32 | uint64(uint32(at.Count))
			if c.counted[key] {
				continue
			}
			c.counted[key] = true
		}
		m.Spent++
		switch in := &m.Prog.Code[at.Pc]; in.Op {
		case OpChar, OpCall, OpDone:
			c.items = append(c.items, at)
		case OpSplit:
			c.work = append(c.work, Item{Pc: in.Y, Count: at.Count}, Item{Pc: in.X, Count: at.Count})
		case OpEnter:
			c.work = append(c.work, Item{Pc: in.X, Count: m.Counts.push(0, at.Count)})
		case OpLoop:
			l := m.Counts.Lists[at.Count]
			if l.N >= in.Least {
				c.work = append(c.work, Item{Pc: in.Y, Count: l.Below})
			}
			switch {
			case in.Most < 0:
				c.work = append(c.work, Item{Pc: in.X, Count: m.Counts.push(min(l.N+1, in.Least), l.Below)})
			case l.N < in.Most:
				c.work = append(c.work, Item{Pc: in.X, Count: m.Counts.push(l.N+1, l.Below)})
			}
		}
	}
}

// Finish returns the state of the collected items.
func (m *Machine) Finish() *State {
	items := m.closing.items
	if len(items) == 0 {
		return m.Dead
	}
	if len(items) > 1 {
		m.Spent += len(items) / 2
		if len(items) > maxItems {
			m.gather.failure = &ast.LimitError{What: "items of one state", Limit: maxItems}
		}
		slices.SortFunc(items, compareItems)
		items = slices.Compact(items)
	}
	m.key = m.key[:0]
	for _, it := range items {
		m.key = binary.LittleEndian.AppendUint32(m.key, uint32(it.Pc))
		m.key = binary.LittleEndian.AppendUint32(m.key, uint32(it.Count))
		m.key = binary.LittleEndian.AppendUint16(m.key, uint16(it.Sub))
	}
	if s := m.States[string(m.key)]; s != nil {
		return s
	}
	s := &State{id: m.nextID, Items: slices.Clone(items)}
	m.nextID++
	for _, it := range items {
		switch m.Prog.Code[it.Pc].Op {
		case OpChar:
			s.reads = true
		case OpDone:
			s.Done = true
		}
	}
	m.States[string(m.key)] = s
	m.Bytes += 160 + 26*len(items) + 8*len(m.SomeOf)
	m.Spent += 20 + len(items)
	return s
}

// Start returns the first state of a rule.
func (m *Machine) Start(rule int32) *State {
	if m.starts[rule] == nil {
		m.Begin()
		m.Reach(m.Prog.Starts[rule], 0)
		m.starts[rule] = m.Finish()
	}
	return m.starts[rule]
}

// Step returns the state after byte b in s, or the dead state.
func (m *Machine) Step(s *State, b byte) *State {
	number := m.ClassOf[b]
	if s.next == nil {
		s.next = make([]*State, len(m.SomeOf))
	}
	if n := s.next[number]; n != nil {
		return n
	}
	m.Begin()
	for _, it := range s.Items {
		in := &m.Prog.Code[it.Pc]
		if in.Op != OpChar {
			continue
		}
		m.Spent++
		switch to, ok := m.Prog.Classes[in.Class].Next(it.Sub, b); {
		case !ok:
		case to == spelling.End:
			m.Reach(in.X, it.Count)
		default:
			m.closing.items = append(m.closing.items, Item{it.Pc, it.Count, to})
		}
	}
	n := m.Finish()
	s.next[number] = n
	return n
}

// CallsOf lists the rules that s calls, each once.
func (m *Machine) CallsOf(s *State) []callEdge {
	if s.called {
		return s.calls
	}
	s.called = true
	var rules []int32
	for _, it := range s.Items {
		if in := &m.Prog.Code[it.Pc]; in.Op == OpCall && !slices.Contains(rules, in.Rule) {
			rules = append(rules, in.Rule)
		}
	}
	for _, r := range rules {
		m.Begin()
		for _, it := range s.Items {
			if in := &m.Prog.Code[it.Pc]; in.Op == OpCall && in.Rule == r {
				m.Reach(in.X, it.Count)
			}
		}
		s.calls = append(s.calls, callEdge{r, m.Finish()})
	}
	return s.calls
}

// Forget drops all caches, so that a grammar stays within its memory however long it runs.
// Positions that matchers hold stay valid.
func (m *Machine) Forget() {
	for _, s := range m.States {
		s.next, s.calls, s.called, s.alone = nil, nil, false, nil
	}
	clear(m.States)
	for _, p := range m.positions {
		p.Next, p.Mask = nil, nil
	}
	clear(m.positions)
	clear(m.returns)
	clear(m.starts)
	m.Stacks.forget()
	clear(m.memories.known)
	clear(m.memories.added)
	m.memories.bytes = 0
	m.Bytes = 0
}

// Renew starts an operation, which may spend the machine's remaining credit.
func (m *Machine) Renew() {
	m.Credit = min(m.Credit-m.Spent, maxWork)
	m.Spent, m.Limit = 0, m.Credit
}

// Full reports whether the caches exceed their bounds.
func (m *Machine) Full() bool {
	return m.Bytes+m.memories.bytes > MaxKept || m.Stacks.size() > maxStacks
}

// LoadText loads the text of a matcher, if the grammar has uniqueItems.
func (m *Machine) LoadText(text []byte) {
	if m.Prog.Unique {
		m.Text, m.Exact = append(m.Text[:0], text...), true
	}
}

// PushByte appends a byte to the text.
func (m *Machine) PushByte(b byte) {
	if m.Prog.Unique {
		m.Text = append(m.Text, b)
	}
}

// PopByte removes the last byte of the text.
func (m *Machine) PopByte() {
	if m.Prog.Unique {
		m.Text = m.Text[:len(m.Text)-1]
	}
}
