package grammar

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// position is every way to have read the text so far. Positions are kept once
// each, with where every byte leads, so that walking known ground is a look into
// a table. A position never changes but for what is filled in later.
type position struct {
	configs []config // the ways that read on
	kernels []config // the ways that are not there by a call alone: masks begin at them
	canEnd  bool     // the text may end here
	popped  bool     // a way leads below a stack of which nothing is known
	next    []*position
	mask    *positionMask
	allow   *byteSet // bytes that may come
	hope    hope
}

// config is one state with the stacks that it may lie above.
type config struct {
	at    *state
	above *stack
	mem   *memory // of the array around it whose items must differ, or nil
}

// gathering is a position in the making.
type gathering struct {
	list    []gathered
	work    []int
	canEnd  bool
	popped  bool
	event   bool // an array whose items differ began, or an item began or ended
	failure error
}

// gathered is a config; called says that only calls lead to it.
type gathered struct {
	config
	called bool
}

func (g *gathering) reset() {
	g.list, g.work = g.list[:0], g.work[:0]
	g.canEnd, g.popped, g.event, g.failure = false, false, false, nil
}

// put adds a config and queues it where that says something new.
func (m *machine) put(s *state, above *stack, mem *memory, called bool) {
	g := &m.gather
	m.spent += 1 + len(g.list)/8
	for i := range g.list {
		if c := &g.list[i]; c.at == s && c.mem == mem {
			c.called = c.called && called
			if u := m.stacks.union(c.above, above); u != c.above {
				c.above = u
				g.work = append(g.work, i)
			}
			return
		}
	}
	if len(g.list) >= maxConfigs {
		g.failure = &LimitError{What: "ways to read a text at once", Limit: maxConfigs}
		return
	}
	g.list = append(g.list, gathered{config{s, above, mem}, called})
	g.work = append(g.work, len(g.list)-1)
}

// expand adds what the queued configs lead to without a byte: called rules, and
// what lies below rules that may end.
func (m *machine) expand() {
	g := &m.gather
	for len(g.work) > 0 && g.failure == nil {
		c := g.list[g.work[len(g.work)-1]]
		g.work = g.work[:len(g.work)-1]
		m.spent++
		if m.spent > m.limit {
			g.failure = &LimitError{What: "steps for so many tokens", Limit: m.limit}
			return
		}
		for _, call := range m.callsOf(c.at) {
			role := m.prog.roles[call.rule]
			if ret := call.ret; ret.done && len(ret.items) == 1 && role == noRole {
				m.put(m.start(call.rule), c.above, c.mem, true) // nothing to come back for
				continue
			}
			if c.above.depth >= maxDepth {
				g.failure = &LimitError{What: "open rules", Limit: maxDepth}
				return
			}
			mem := c.mem
			switch role {
			case uniqueArray:
				mem = m.opened()
			case uniqueItem:
				if mem = m.begun(mem); mem == nil {
					g.popped = true // what came before is not known
					g.event = true
					continue
				}
			}
			g.event = g.event || role != noRole
			m.put(m.start(call.rule), m.stacks.push(call.ret, c.above, role), mem, true)
		}
		if c.at.done {
			m.pop(c.config)
			g.canEnd = g.canEnd || c.above.ends&endsText != 0
			g.popped = g.popped || c.above.ends&endsUnknown != 0
		}
	}
}

// take returns the position gathered.
func (m *machine) take() (*position, error) {
	g := &m.gather
	if g.failure != nil {
		return nil, g.failure
	}
	if len(g.list) > 1 {
		slices.SortFunc(g.list, func(a, b gathered) int {
			return cmp.Or(cmp.Compare(a.at.id, b.at.id), cmp.Compare(memoryID(a.mem), memoryID(b.mem)))
		})
	}
	flags := byte(0)
	if g.canEnd {
		flags |= 1
	}
	if g.popped {
		flags |= 2
	}
	key := append(m.key[:0], flags)
	for _, c := range g.list {
		if !c.at.reads && (c.called || len(c.at.calls) == 0) {
			continue
		}
		flags := byte(0)
		if c.called {
			flags = 1
		}
		key = binary.LittleEndian.AppendUint32(append(key, flags), c.at.id)
		key = binary.LittleEndian.AppendUint32(key, c.above.id)
		if m.prog.unique {
			key = binary.LittleEndian.AppendUint32(key, memoryID(c.mem))
		}
	}
	m.key = key
	if p := m.positions[string(key)]; p != nil {
		return p, nil
	}
	if len(key) == 1 && flags == 0 {
		return m.nowhere, nil
	}
	p := &position{canEnd: g.canEnd, popped: g.popped}
	for _, c := range g.list {
		if c.at.reads {
			p.configs = append(p.configs, c.config)
		}
		if !c.called && (c.at.reads || len(c.at.calls) > 0) {
			p.kernels = append(p.kernels, c.config)
		}
	}
	m.positions[string(key)] = p
	m.bytes += 200 + 2*len(key) + 40*len(g.list)
	return p, nil
}

func memoryID(m *memory) uint32 {
	if m == nil {
		return 0
	}
	return m.id
}

// pop adds what follows the rule of a config that may end.
func (m *machine) pop(c config) {
	for _, f := range c.above.frames {
		mem := c.mem
		switch f.role {
		case uniqueArray:
			mem = nil
		case uniqueItem:
			m.gather.event = true
			if mem = m.ended(mem); mem == nil {
				continue // it was there before
			}
		}
		m.put(f.ret, f.below, mem, false)
	}
}

// at is the position of being in s above a stack.
func (m *machine) at(s *state, above *stack, mem *memory) (*position, error) {
	m.gather.reset()
	m.put(s, above, mem, false)
	m.expand()
	return m.take()
}

type returnKey struct {
	above *stack
	mem   *memory
}

// below is the position after the rule on top of above has ended, if no item was
// repeated.
func (m *machine) below(above *stack, mem *memory) (*position, error) {
	key := returnKey{above, m.strange(mem)}
	if p := m.returns[key]; p != nil {
		return p, nil
	}
	m.gather.reset()
	m.pop(config{above: above, mem: key.mem})
	m.gather.canEnd = above.ends&endsText != 0
	m.gather.popped = above.ends&endsUnknown != 0
	m.expand()
	p, err := m.take()
	if err == nil {
		m.returns[key] = p
	}
	return p, err
}

// follow is the position after b, or nowhere. Where items must differ, m.text is
// the text up to b.
func (m *machine) follow(from *position, b byte) (*position, error) {
	if from.next != nil {
		if p := from.next[m.classOf[b]]; p != nil {
			return p, nil
		}
	}
	p, err := m.raw(from, b)
	if err != nil || !m.prog.unique {
		return p, err
	}
	none, err := m.hopeless(p)
	if none {
		p = m.nowhere
	}
	return p, err
}

// raw is follow whether or not there is hope for an item.
func (m *machine) raw(from *position, b byte) (*position, error) {
	number := m.classOf[b]
	g := &m.gather
	g.reset()
	if m.prog.unique {
		m.text = append(m.text, b)
	}
	keep := true
	for _, c := range from.configs {
		n := m.step(c.at, b)
		if n == m.dead {
			continue
		}
		mem, depends := m.read(c.mem, b)
		keep = keep && !depends
		m.put(n, c.above, mem, false)
	}
	m.expand()
	if m.prog.unique {
		m.text = m.text[:len(m.text)-1]
	}
	keep = keep && !g.event
	p, err := m.take()
	if err != nil || !keep {
		return p, err
	}
	if from.next == nil {
		from.next = make([]*position, len(m.someOf))
		m.bytes += 8 * len(m.someOf)
	}
	from.next[number] = p
	return p, nil
}
