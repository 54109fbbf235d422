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
}

// config is one state with the stacks that it may lie above.
type config struct {
	at    *state
	above *stack
}

// gathering is a position in the making.
type gathering struct {
	list    []gathered
	work    []int
	canEnd  bool
	popped  bool
	failure error
}

// gathered is a config; called says that only calls lead to it.
type gathered struct {
	config
	called bool
}

func (g *gathering) reset() {
	g.list, g.work = g.list[:0], g.work[:0]
	g.canEnd, g.popped, g.failure = false, false, nil
}

// put adds a config and queues it where that says something new.
func (m *machine) put(s *state, above *stack, called bool) {
	g := &m.gather
	m.spent += 1 + len(g.list)/8
	for i := range g.list {
		if c := &g.list[i]; c.at == s {
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
	g.list = append(g.list, gathered{config{s, above}, called})
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
		if m.spent > maxWork {
			g.failure = &LimitError{What: "steps for one token", Limit: maxWork}
			return
		}
		for _, call := range m.callsOf(c.at) {
			if ret := call.ret; ret.done && len(ret.items) == 1 {
				m.put(m.start(call.rule), c.above, true) // nothing to come back for
				continue
			}
			if c.above.depth >= maxDepth {
				g.failure = &LimitError{What: "open rules", Limit: maxDepth}
				return
			}
			m.put(m.start(call.rule), m.stacks.push(call.ret, c.above), true)
		}
		if c.at.done {
			for _, f := range c.above.frames {
				m.put(f.ret, f.below, false)
			}
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
		slices.SortFunc(g.list, func(a, b gathered) int { return cmp.Compare(a.at.id, b.at.id) })
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
		if c.called && !c.at.reads {
			continue
		}
		flags := byte(0)
		if c.called {
			flags = 1
		}
		key = binary.LittleEndian.AppendUint32(append(key, flags), c.at.id)
		key = binary.LittleEndian.AppendUint32(key, c.above.id)
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

// at is the position of being in s above a stack.
func (m *machine) at(s *state, above *stack) (*position, error) {
	m.gather.reset()
	m.put(s, above, false)
	m.expand()
	return m.take()
}

// below is the position after the rule on top of above has ended.
func (m *machine) below(above *stack) (*position, error) {
	if p := m.returns[above]; p != nil {
		return p, nil
	}
	m.gather.reset()
	for _, f := range above.frames {
		m.put(f.ret, f.below, false)
	}
	m.gather.canEnd = above.ends&endsText != 0
	m.gather.popped = above.ends&endsUnknown != 0
	m.expand()
	p, err := m.take()
	if err == nil {
		m.returns[above] = p
	}
	return p, err
}

// follow is the position after b, which may be dead.
func (m *machine) follow(from *position, b byte) (*position, error) {
	number := m.classOf[b]
	if from.next == nil {
		from.next = make([]*position, len(m.someOf))
		m.bytes += 8 * len(m.someOf)
	} else if p := from.next[number]; p != nil {
		return p, nil
	}
	m.gather.reset()
	for _, c := range from.configs {
		if n := m.step(c.at, b); n != m.dead {
			m.put(n, c.above, false)
		}
	}
	m.expand()
	p, err := m.take()
	if err == nil {
		from.next[number] = p
	}
	return p, err
}
