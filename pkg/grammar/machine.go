package grammar

import (
	"encoding/binary"
	"slices"
	"sync"
)

// machine runs a program. Its states are made when they are first reached and are
// shared by all matchers of a grammar, one at a time.
type machine struct {
	mu      sync.Mutex
	prog    *program
	classOf [256]uint8 // bytes that no class tells apart share a number
	someOf  []byte     // a byte of each number
	bytesOf [][]byte   // all of them
	stacks  *stacks
	states  map[string]*state
	nextID  uint32
	dead    *state
	nowhere *position // what no text leads to
	starts  []*state  // of each rule, or nil
	counts  counters
	bytes   int // what the states and masks kept take, about
	spent   int // work of the operation under way
	limit   int // of that
	credit  int // work that the operations to come may do

	closing   closure
	gather    gathering
	positions map[string]*position
	returns   map[returnKey]*position // see below
	memories  memories
	text      []byte // read so far, where items must differ
	exact     bool   // text is all of it, not only what a mask looks at
	key       []byte

	costs  *costs
	depths map[*stack]int64

	vocab     *Vocabulary
	ids       []int32               // of the mask in the making
	alike     map[string]*stateMask // of states that differ in far-off counts alone
	asked     map[string]int        // states that asked for the runs of a set
	seldom    int                   // of those, how many go without
	relations map[string][]relation // by the key of a set and the class
}

// state is a set of places in one rule's program, closed under what needs no byte.
type state struct {
	id     uint32
	items  []item
	next   []*state // by the byte's number; nil is not known yet
	calls  []callEdge
	called bool // calls are filled in
	done   bool // the rule may end here
	reads  bool // some item reads a byte
	mask   *stateMask
	alone  *position // s above a stack of which nothing is known
	run    uniform
	cost   int64 // see completion.go; one more than it is, or 0 while it is not known
}

// item is a place: at a doChar after some bytes of a character, at a doCall, or
// at doDone; count is what the loops around it have counted.
type item struct {
	pc    int32
	count int32
	sub   int16
}

func compareItems(a, b item) int {
	switch {
	case a.pc != b.pc:
		return int(a.pc) - int(b.pc)
	case a.count != b.count:
		return int(a.count) - int(b.count)
	}
	return int(a.sub) - int(b.sub)
}

// callEdge is a rule that is called and where to go on after it.
type callEdge struct {
	rule int32
	ret  *state
}

// counters keeps every list of counts once; 0 is the empty list.
type counters struct {
	lists []countList
	known map[countList]int32
}

type countList struct{ n, below int32 }

func (c *counters) push(n, below int32) int32 {
	l := countList{n, below}
	id, ok := c.known[l]
	if !ok {
		id = int32(len(c.lists))
		c.lists = append(c.lists, l)
		c.known[l] = id
	}
	return id
}

func newMachine(p *program) *machine {
	m := &machine{prog: p, stacks: newStacks(), states: map[string]*state{}, dead: &state{}, nowhere: &position{}, nextID: 1,
		starts: make([]*state, len(p.starts)), positions: map[string]*position{}, returns: map[returnKey]*position{}, memories: memories{known: map[memoryKey]*memory{}, added: map[addedKey]*seen{}},
		alike: map[string]*stateMask{}, relations: map[string][]relation{}, asked: map[string]int{}}
	m.credit = firstWork
	m.refresh()
	m.counts = counters{lists: make([]countList, 1), known: map[countList]int32{}}
	m.closing.mark = make([]uint32, len(p.code))
	m.closing.counted = map[uint64]bool{}
	var cuts [257]bool
	for _, c := range p.classes {
		for _, edges := range c.states {
			for _, e := range edges {
				cuts[e.lo], cuts[int(e.hi)+1] = true, true
			}
		}
	}
	for b := range 256 {
		if b == 0 || cuts[b] {
			m.someOf = append(m.someOf, byte(b))
			m.bytesOf = append(m.bytesOf, nil)
		}
		number := len(m.someOf) - 1
		m.classOf[b] = uint8(number)
		m.bytesOf[number] = append(m.bytesOf[number], byte(b))
	}
	return m
}

// closure gathers the items that are reached without a byte.
type closure struct {
	items   []item
	work    []item
	mark    []uint32 // by pc, for places outside loops that count
	stamp   uint32
	counted map[uint64]bool
}

func (m *machine) begin() {
	c := &m.closing
	c.items = c.items[:0]
	c.stamp++
	if len(c.counted) > 0 {
		clear(c.counted)
	}
}

// reach adds what is reached from pc.
func (m *machine) reach(pc, count int32) {
	c := &m.closing
	c.work = append(c.work[:0], item{pc: pc, count: count})
	for len(c.work) > 0 {
		at := c.work[len(c.work)-1]
		c.work = c.work[:len(c.work)-1]
		if at.count == 0 {
			if c.mark[at.pc] == c.stamp {
				continue
			}
			c.mark[at.pc] = c.stamp
		} else {
			key := uint64(uint32(at.pc))<<32 | uint64(uint32(at.count))
			if c.counted[key] {
				continue
			}
			c.counted[key] = true
		}
		m.spent++
		switch in := &m.prog.code[at.pc]; in.op {
		case doChar, doCall, doDone:
			c.items = append(c.items, at)
		case doSplit:
			c.work = append(c.work, item{pc: in.y, count: at.count}, item{pc: in.x, count: at.count})
		case doEnter:
			c.work = append(c.work, item{pc: in.x, count: m.counts.push(0, at.count)})
		case doLoop:
			l := m.counts.lists[at.count]
			if l.n >= in.least {
				c.work = append(c.work, item{pc: in.y, count: l.below})
			}
			switch {
			case in.most < 0:
				c.work = append(c.work, item{pc: in.x, count: m.counts.push(min(l.n+1, in.least), l.below)})
			case l.n < in.most:
				c.work = append(c.work, item{pc: in.x, count: m.counts.push(l.n+1, l.below)})
			}
		}
	}
}

// finish returns the state of the gathered items.
func (m *machine) finish() *state {
	items := m.closing.items
	if len(items) == 0 {
		return m.dead
	}
	if len(items) > 1 {
		m.spent += len(items) / 2
		if len(items) > maxItems {
			m.gather.failure = &LimitError{What: "places in a grammar at once", Limit: maxItems}
		}
		slices.SortFunc(items, compareItems)
		items = slices.Compact(items)
	}
	m.key = m.key[:0]
	for _, it := range items {
		m.key = binary.LittleEndian.AppendUint32(m.key, uint32(it.pc))
		m.key = binary.LittleEndian.AppendUint32(m.key, uint32(it.count))
		m.key = binary.LittleEndian.AppendUint16(m.key, uint16(it.sub))
	}
	if s := m.states[string(m.key)]; s != nil {
		return s
	}
	s := &state{id: m.nextID, items: slices.Clone(items)}
	m.nextID++
	for _, it := range items {
		switch m.prog.code[it.pc].op {
		case doChar:
			s.reads = true
		case doDone:
			s.done = true
		}
	}
	m.states[string(m.key)] = s
	m.bytes += 160 + 26*len(items) + 8*len(m.someOf)
	m.spent += 20 + len(items)
	return s
}

// start is the first state of a rule.
func (m *machine) start(rule int32) *state {
	if m.starts[rule] == nil {
		m.begin()
		m.reach(m.prog.starts[rule], 0)
		m.starts[rule] = m.finish()
	}
	return m.starts[rule]
}

// step is the state after b from s, or m.dead.
func (m *machine) step(s *state, b byte) *state {
	number := m.classOf[b]
	if s.next == nil {
		s.next = make([]*state, len(m.someOf))
	}
	if n := s.next[number]; n != nil {
		return n
	}
	m.begin()
	for _, it := range s.items {
		in := &m.prog.code[it.pc]
		if in.op != doChar {
			continue
		}
		m.spent++
		switch to, ok := m.prog.classes[in.class].next(it.sub, b); {
		case !ok:
		case to == classEnd:
			m.reach(in.x, it.count)
		default:
			m.closing.items = append(m.closing.items, item{it.pc, it.count, to})
		}
	}
	n := m.finish()
	s.next[number] = n
	return n
}

// callsOf lists the rules that s calls, each once.
func (m *machine) callsOf(s *state) []callEdge {
	if s.called {
		return s.calls
	}
	s.called = true
	var rules []int32
	for _, it := range s.items {
		if in := &m.prog.code[it.pc]; in.op == doCall && !slices.Contains(rules, in.rule) {
			rules = append(rules, in.rule)
		}
	}
	for _, r := range rules {
		m.begin()
		for _, it := range s.items {
			if in := &m.prog.code[it.pc]; in.op == doCall && in.rule == r {
				m.reach(in.x, it.count)
			}
		}
		s.calls = append(s.calls, callEdge{r, m.finish()})
	}
	return s.calls
}

// forget drops everything made so far but what s alone says, so that a grammar
// keeps to its memory however long it runs.
func (m *machine) forget() {
	for _, s := range m.states {
		s.next, s.calls, s.called, s.mask, s.alone, s.run = nil, nil, false, nil, nil, uniform{}
	}
	clear(m.states)
	for _, p := range m.positions {
		p.next, p.mask = nil, nil
	}
	clear(m.positions)
	clear(m.returns)
	clear(m.depths)
	clear(m.alike)
	clear(m.relations)
	clear(m.starts)
	m.stacks.forget()
	clear(m.memories.known)
	clear(m.memories.added)
	m.memories.bytes = 0
	m.bytes = 0
}
