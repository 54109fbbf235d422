package mask

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/automaton"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// costs is the minimum number of bytes from every instruction to the end of the iteration of
// the innermost counted loop around it, or of its rule. It is a shortest-path problem over
// rules that call each other; newCosts iterates to the fixed point.
type costs struct {
	code  []int64
	rules []int64
	class [][]int64 // of each state of each class, to the end of the character
}

const noCost = int64(1) << 40

func newCosts(p *automaton.Program) *costs {
	c := &costs{code: make([]int64, len(p.Code)), rules: make([]int64, len(p.Starts)),
		class: make([][]int64, len(p.Classes))}
	for i, class := range p.Classes {
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
		for pc := range p.Code {
			if n := c.instruction(p, int32(pc)); n < c.code[pc] {
				c.code[pc], changed = n, true
			}
		}
		for id, start := range p.Starts {
			if start >= 0 && c.code[start] < c.rules[id] {
				c.rules[id], changed = c.code[start], true
			}
		}
	}
	return c
}

func classCosts(class *spelling.Class) []int64 {
	out := make([]int64, len(class.States))
	for i := range out {
		out[i] = noCost
	}
	for changed := true; changed; {
		changed = false
		for i, edges := range class.States {
			for _, e := range edges {
				n := int64(1)
				if e.To != spelling.End {
					n += out[e.To]
				}
				if n < out[i] {
					out[i], changed = n, true
				}
			}
		}
	}
	return out
}

// to returns the cost from pc within an iteration of a loop.
func (c *costs) to(pc, loop int32) int64 {
	if pc == loop {
		return 0
	}
	return c.code[pc]
}

func (c *costs) instruction(p *automaton.Program, pc int32) int64 {
	in := &p.Code[pc]
	n := noCost
	switch in.Op {
	case automaton.OpDone:
		return 0
	case automaton.OpChar:
		n = c.class[in.Class][0] + c.to(in.X, in.Loop)
	case automaton.OpCall:
		n = c.rules[in.Rule] + c.to(in.X, in.Loop)
	case automaton.OpSplit:
		n = min(c.to(in.X, in.Loop), c.to(in.Y, in.Loop))
	case automaton.OpEnter:
		loop := &p.Code[in.X]
		n = c.to(loop.Y, in.Loop)
		if loop.Least > 0 {
			n += int64(loop.Least) * c.to(loop.X, in.X)
		}
	}
	return min(n, noCost)
}

// item returns the cost from an item to the end of its rule, including the iterations that its
// loops still need.
func (c *costs) item(m *engine, it automaton.Item) int64 {
	in := &m.Prog.Code[it.Pc]
	n := c.code[it.Pc]
	if in.Op == automaton.OpChar && it.Sub != 0 {
		n = c.class[in.Class][it.Sub] + c.to(in.X, in.Loop)
	}
	for loop, count := in.Loop, it.Count; count != 0; {
		l := &m.Prog.Code[loop]
		list := m.Counts.Lists[count]
		if left := int64(l.Least) - int64(list.N); left > 0 { // N includes this iteration
			n += left * c.to(l.X, loop)
		}
		n += c.to(l.Y, l.Loop)
		loop, count = l.Loop, list.Below
	}
	return min(n, noCost)
}

// cost returns the minimum number of bytes from a state to the end of its rule.
func (m *engine) cost(s *automaton.State) int64 {
	known := notes(s)
	if known.cost == 0 {
		n := noCost
		for _, it := range s.Items {
			n = min(n, m.costs.item(m, it))
		}
		known.cost = n + 1
	}
	return known.cost - 1
}

// depthCost returns the minimum number of bytes that end all open rules.
func (m *engine) depthCost(s *automaton.Stack) int64 {
	if s.Ends&automaton.EndsText != 0 {
		return 0
	}
	if n, ok := m.depths[s]; ok {
		return n
	}
	n := noCost
	for _, f := range s.Frames {
		n = min(n, m.cost(f.Ret)+m.depthCost(f.Below))
	}
	m.depths[s] = n
	return n
}

// ending returns the minimum number of bytes that end a text at p.
func (m *engine) ending(p *automaton.Position) int64 {
	if m.costs == nil {
		m.costs = newCosts(m.Prog)
	}
	if m.depths == nil {
		m.depths = map[*automaton.Stack]int64{}
	}
	if p.CanEnd {
		return 0
	}
	n := noCost
	for _, k := range p.Kernels {
		n = min(n, m.cost(k.At)+m.depthCost(k.Above))
	}
	return n
}

// Shortest returns the length in bytes, and so the maximum in tokens, of the shortest
// completion; 0 if the text may end now. With uniqueItems it is a lower bound.
func (m *Matcher) Shortest() int {
	if m.now().ended {
		return 0
	}
	mach := m.c.m
	mach.Mu.Lock()
	defer mach.Mu.Unlock()
	mach.refresh()
	return int(mach.ending(m.now().Position))
}

// Bounds on the search for a completion.
const (
	maxCompletion = 1 << 20 // bytes
	maxNearer     = 20_000  // positions visited for one step
)

// Completion returns a short text that completes the text so far (with uniqueItems not
// always the shortest), or nothing if the text may end now. The matcher does not move. A
// sampler that runs out of tokens emits it, so that its output is complete.
func (m *Matcher) Completion() ([]byte, error) {
	if m.now().ended {
		return nil, nil
	}
	mach := m.c.m
	mach.Mu.Lock()
	defer mach.Mu.Unlock()
	mach.refresh()
	mach.LoadText(m.text)
	at := m.now().Position
	var out []byte
	for !at.CanEnd {
		more, next, err := mach.nearer(at)
		if err != nil {
			return nil, err
		}
		if out = append(out, more...); len(out) > maxCompletion {
			return nil, &ast.LimitError{What: "bytes of a completion", Limit: maxCompletion}
		}
		for _, b := range more {
			mach.PushByte(b)
		}
		at = next
	}
	return out, nil
}

// nearer returns the fewest bytes that bring the end of the text nearer, by breadth-first
// search. Following costs downhill would do, if uniqueItems did not forbid some ways.
func (m *engine) nearer(p *automaton.Position) ([]byte, *automaton.Position, error) {
	type way struct {
		to   *automaton.Position
		text []byte
	}
	from := m.ending(p)
	looked := map[*automaton.Position]bool{p: true}
	base := len(m.Text)
	for work := []way{{to: p}}; len(work) > 0; work = work[1:] {
		w := work[0]
		if m.Prog.Unique {
			m.Text = append(m.Text[:base], w.text...)
		}
		tried := [256]bool{}
		for b := range m.Allowed(w.to).All() {
			if number := m.ClassOf[b]; tried[number] && !m.Prog.Unique {
				continue
			} else {
				tried[number] = true
			}
			next, err := m.Follow(w.to, b)
			if err != nil {
				return nil, nil, err
			}
			if next == m.Nowhere || looked[next] {
				continue
			}
			looked[next] = true
			text := append(slices.Clip(w.text), b)
			if m.ending(next) < from {
				m.Text = m.Text[:base]
				return text, next, nil
			}
			if len(looked) > maxNearer {
				return nil, nil, &ast.LimitError{What: "steps to find a completion", Limit: maxNearer}
			}
			work = append(work, way{next, text})
		}
	}
	return nil, nil, fault.New(fault.Internal, "complete a text: no completion exists")
}
