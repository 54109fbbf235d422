package grammar

// position is every way to have read the text so far. It never changes.
type position struct {
	configs []config
	canEnd  bool // the text may end here
	popped  bool // a way leads below a stack of which nothing is known
}

// config is one state with the stacks that it may lie above.
type config struct {
	at    *state
	above *stack
}

// positions gathers the configs of a position.
type positions struct {
	list    []config
	work    []int
	canEnd  bool
	popped  bool
	failure error
}

func (p *positions) reset() {
	p.list, p.work = p.list[:0], p.work[:0]
	p.canEnd, p.popped = false, false
}

// put adds a config and queues it where that says something new.
func (m *machine) put(p *positions, s *state, above *stack) {
	m.spent += 1 + len(p.list)/8
	for i := range p.list {
		if c := &p.list[i]; c.at == s {
			if u := m.stacks.union(c.above, above); u != c.above {
				c.above = u
				p.work = append(p.work, i)
			}
			return
		}
	}
	if len(p.list) >= maxConfigs {
		p.failure = &LimitError{What: "ways to read a text at once", Limit: maxConfigs}
		return
	}
	p.list = append(p.list, config{s, above})
	p.work = append(p.work, len(p.list)-1)
}

// expand adds what the queued configs lead to without a byte: called rules, and
// what lies below rules that may end.
func (m *machine) expand(p *positions) {
	for len(p.work) > 0 && p.failure == nil {
		c := p.list[p.work[len(p.work)-1]]
		p.work = p.work[:len(p.work)-1]
		m.spent++
		for _, call := range m.callsOf(c.at) {
			if ret := call.ret; ret.done && len(ret.items) == 1 {
				m.put(p, m.start(call.rule), c.above) // nothing to come back for
				continue
			}
			if c.above.depth >= maxDepth {
				p.failure = &LimitError{What: "open rules", Limit: maxDepth}
				return
			}
			m.put(p, m.start(call.rule), m.stacks.push(call.ret, c.above))
		}
		if c.at.done {
			for _, f := range c.above.frames {
				m.put(p, f.ret, f.below)
			}
			p.canEnd = p.canEnd || c.above.ends&endsText != 0
			p.popped = p.popped || c.above.ends&endsUnknown != 0
		}
	}
}

// take returns the position gathered, without configs that read nothing.
func (p *positions) take() position {
	n := 0
	for _, c := range p.list {
		if c.at.reads {
			n++
		}
	}
	out := position{configs: make([]config, 0, n), canEnd: p.canEnd, popped: p.popped}
	for _, c := range p.list {
		if c.at.reads {
			out.configs = append(out.configs, c)
		}
	}
	return out
}

// first is the position before any text.
func (m *machine) first(rule int32, above *stack) (position, error) {
	var p positions
	m.put(&p, m.start(rule), above)
	m.expand(&p)
	return p.take(), p.failure
}

// advance gathers into p what b leads to from from.
func (m *machine) advance(p *positions, from []config, b byte) {
	p.reset()
	for _, c := range from {
		if n := m.step(c.at, b); n != m.dead {
			m.put(p, n, c.above)
		}
	}
	m.expand(p)
}
