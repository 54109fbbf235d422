package grammar

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// costs is how many bytes are needed, at least, from every instruction of a program
// to the end of what is around it: the turn of its innermost loop that counts, or
// its rule.
type costs struct {
	code  []int64
	rules []int64
	class [][]int64 // of each class's states, to the end of the character
}

const noCost = int64(1) << 40

func newCosts(p *program) *costs {
	c := &costs{code: make([]int64, len(p.code)), rules: make([]int64, len(p.starts)), class: make([][]int64, len(p.classes))}
	for i, class := range p.classes {
		c.class[i] = classCosts(class)
	}
	for i := range c.code {
		c.code[i] = noCost
	}
	for i := range c.rules {
		c.rules[i] = noCost
	}
	for changed := true; changed; {
		changed = false
		for pc := range p.code {
			if n := c.instruction(p, int32(pc)); n < c.code[pc] {
				c.code[pc], changed = n, true
			}
		}
		for id, start := range p.starts {
			if start >= 0 && c.code[start] < c.rules[id] {
				c.rules[id], changed = c.code[start], true
			}
		}
	}
	return c
}

func classCosts(class *class) []int64 {
	out := make([]int64, len(class.states))
	for i := range out {
		out[i] = noCost
	}
	for changed := true; changed; {
		changed = false
		for i, edges := range class.states {
			for _, e := range edges {
				n := int64(1)
				if e.to != classEnd {
					n += out[e.to]
				}
				if n < out[i] {
					out[i], changed = n, true
				}
			}
		}
	}
	return out
}

// to is the cost from pc on, in the turn of a loop.
func (c *costs) to(pc, loop int32) int64 {
	if pc == loop {
		return 0
	}
	return c.code[pc]
}

func (c *costs) instruction(p *program, pc int32) int64 {
	in := &p.code[pc]
	n := noCost
	switch in.op {
	case doDone:
		return 0
	case doChar:
		n = c.class[in.class][0] + c.to(in.x, in.loop)
	case doCall:
		n = c.rules[in.rule] + c.to(in.x, in.loop)
	case doSplit:
		n = min(c.to(in.x, in.loop), c.to(in.y, in.loop))
	case doEnter:
		loop := &p.code[in.x]
		n = c.to(loop.y, in.loop)
		if loop.least > 0 {
			n += int64(loop.least) * c.to(loop.x, in.x)
		}
	}
	return min(n, noCost)
}

// item is the cost from a place on to the end of its rule.
func (c *costs) item(m *machine, it item) int64 {
	in := &m.prog.code[it.pc]
	n := c.code[it.pc]
	if in.op == doChar && it.sub != 0 {
		n = c.class[in.class][it.sub] + c.to(in.x, in.loop)
	}
	for loop, count := in.loop, it.count; count != 0; {
		l := &m.prog.code[loop]
		list := m.counts.lists[count]
		if left := int64(l.least) - int64(list.n); left > 0 { // n counts this turn
			n += left * c.to(l.x, loop)
		}
		n += c.to(l.y, l.loop)
		loop, count = l.loop, list.below
	}
	return min(n, noCost)
}

// cost is the bytes that are needed, at least, from a state to the end of its rule.
func (m *machine) cost(s *state) int64 {
	if s.cost == 0 {
		n := noCost
		for _, it := range s.items {
			n = min(n, m.costs.item(m, it))
		}
		s.cost = n + 1
	}
	return s.cost - 1
}

// depthCost is the bytes that are needed, at least, to end all that is open.
func (m *machine) depthCost(s *stack) int64 {
	if s.ends&endsText != 0 {
		return 0
	}
	if n, ok := m.depths[s]; ok {
		return n
	}
	n := noCost
	for _, f := range s.frames {
		n = min(n, m.cost(f.ret)+m.depthCost(f.below))
	}
	m.depths[s] = n
	return n
}

// ending is the bytes that are needed, at least, to end a text at p.
func (m *machine) ending(p *position) int64 {
	if m.costs == nil {
		m.costs = newCosts(m.prog)
	}
	if m.depths == nil {
		m.depths = map[*stack]int64{}
	}
	if p.canEnd {
		return 0
	}
	n := noCost
	for _, k := range p.kernels {
		n = min(n, m.cost(k.at)+m.depthCost(k.above))
	}
	return n
}

// Shortest is how many bytes, and so how many tokens at the most, the shortest end
// of the text needs: 0 where it may end now. Where items of an array must differ it
// may need more.
func (m *Matcher) Shortest() int {
	if m.now().ended {
		return 0
	}
	mach := m.c.m
	mach.mu.Lock()
	defer mach.mu.Unlock()
	mach.refresh()
	return int(mach.ending(m.now().position))
}

// Bounds on looking for a completion.
const (
	maxCompletion = 1 << 20 // bytes
	maxNearer     = 20_000  // positions looked at for the next step
)

// Completion returns a short text that ends the text so far, the shortest unless
// items of an array must differ; nothing where it may end now. The matcher does not
// move. A sampler that has only so many tokens left forces it in time, so that what
// it emits is whole.
func (m *Matcher) Completion() ([]byte, error) {
	if m.now().ended {
		return nil, nil
	}
	mach := m.c.m
	mach.mu.Lock()
	defer mach.mu.Unlock()
	mach.refresh()
	mach.attend(m.text)
	at := m.now().position
	var out []byte
	for !at.canEnd {
		more, next, err := mach.nearer(at)
		if err != nil {
			return nil, err
		}
		if out = append(out, more...); len(out) > maxCompletion {
			return nil, &LimitError{What: "bytes to end a text", Limit: maxCompletion}
		}
		for _, b := range more {
			mach.heard(b)
		}
		at = next
	}
	return out, nil
}

// nearer is the fewest bytes that bring the end of a text nearer.
func (m *machine) nearer(p *position) ([]byte, *position, error) {
	type way struct {
		to   *position
		text []byte
	}
	from := m.ending(p)
	looked := map[*position]bool{p: true}
	base := len(m.text)
	for work := []way{{to: p}}; len(work) > 0; work = work[1:] {
		w := work[0]
		if m.prog.unique {
			m.text = append(m.text[:base], w.text...)
		}
		tried := [256]bool{}
		for b := range m.allowed(w.to).all() {
			if number := m.classOf[b]; tried[number] && !m.prog.unique {
				continue
			} else {
				tried[number] = true
			}
			next, err := m.follow(w.to, b)
			if err != nil {
				return nil, nil, err
			}
			if next == m.nowhere || looked[next] {
				continue
			}
			looked[next] = true
			text := append(slices.Clip(w.text), b)
			if m.ending(next) < from {
				m.text = m.text[:base]
				return text, next, nil
			}
			if len(looked) > maxNearer {
				return nil, nil, &LimitError{What: "steps to end a text", Limit: maxNearer}
			}
			work = append(work, way{next, text})
		}
	}
	return nil, nil, fault.New(fault.Internal, "end a text: nothing ends it")
}
