package automaton

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// Position is every way to parse the text so far. Positions are interned and remember where
// every byte leads, so that following known text is a table lookup. A position never changes
// except for values that are computed later.
type Position struct {
	Configs []Config // configurations that can read a byte
	Kernels []Config // configurations that were not reached by a call alone; masks start at them
	CanEnd  bool     // the text may end here
	Popped  bool     // some configuration returns below the unknown stack
	Next    []*Position
	Mask    any               // data that package mask attaches
	allow   *spelling.ByteSet // bytes that may follow
	hope    hope
}

// Config is a state with the stacks that may be below it.
type Config struct {
	At    *State
	Above *Stack
	Mem   *memory // of the uniqueItems array around it, or nil
}

// gathering is a position under construction.
type gathering struct {
	list    []gathered
	work    []int
	canEnd  bool
	popped  bool
	event   bool // a uniqueItems array began, or one of its items began or ended
	failure error
}

// gathered is a configuration; called means that only calls led to it.
type gathered struct {
	Config
	called bool
}

func (g *gathering) reset() {
	g.list, g.work = g.list[:0], g.work[:0]
	g.canEnd, g.popped, g.event, g.failure = false, false, false, nil
}

// put adds a configuration and queues it if it is new. Configurations with the same state
// are merged by uniting their stacks, which keeps their number small (as in GLR parsing).
func (m *Machine) put(s *State, above *Stack, mem *memory, called bool) {
	g := &m.gather
	m.Spent += 1 + len(g.list)/8
	for i := range g.list {
		if c := &g.list[i]; c.At == s && c.Mem == mem {
			c.called = c.called && called
			if u := m.Stacks.union(c.Above, above); u != c.Above {
				c.Above = u
				g.work = append(g.work, i)
			}
			return
		}
	}
	if len(g.list) >= maxConfigs {
		g.failure = &ast.LimitError{What: "parses in parallel", Limit: maxConfigs}
		return
	}
	g.list = append(g.list, gathered{Config{s, above, mem}, called})
	g.work = append(g.work, len(g.list)-1)
}

// expand adds what the queued configurations reach without reading a byte: the rules that
// they call, and the callers of rules that may end here.
func (m *Machine) expand() {
	g := &m.gather
	for len(g.work) > 0 && g.failure == nil {
		c := g.list[g.work[len(g.work)-1]]
		g.work = g.work[:len(g.work)-1]
		m.Spent++
		if m.Spent > m.Limit {
			g.failure = &ast.LimitError{What: "steps of work for this many tokens", Limit: m.Limit}
			return
		}
		for _, call := range m.CallsOf(c.At) {
			role := m.Prog.roles[call.Rule]
			if ret := call.Ret; ret.Done && len(ret.Items) == 1 && role == ast.NoRole {
				m.put(m.Start(call.Rule), c.Above, c.Mem, true) // a tail call: there is nothing to return to
				continue
			}
			if c.Above.depth >= maxDepth {
				g.failure = &ast.LimitError{What: "nested rule calls", Limit: maxDepth}
				return
			}
			mem := c.Mem
			switch role {
			case ast.UniqueArray:
				mem = m.opened()
			case ast.UniqueItem:
				if mem = m.begun(mem); mem == nil {
					g.popped = true // the earlier items are not known
					g.event = true
					continue
				}
			}
			g.event = g.event || role != ast.NoRole
			m.put(m.Start(call.Rule), m.Stacks.push(call.Ret, c.Above, role), mem, true)
		}
		if c.At.Done {
			m.pop(c.Config)
			g.canEnd = g.canEnd || c.Above.Ends&EndsText != 0
			g.popped = g.popped || c.Above.Ends&endsUnknown != 0
		}
	}
}

// take returns the interned position of the collected configurations.
func (m *Machine) take() (*Position, error) {
	g := &m.gather
	if g.failure != nil {
		return nil, g.failure
	}
	if len(g.list) > 1 {
		slices.SortFunc(g.list, func(a, b gathered) int {
			return cmp.Or(cmp.Compare(a.At.id, b.At.id), cmp.Compare(memoryID(a.Mem), memoryID(b.Mem)))
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
		if !c.At.reads && (c.called || len(c.At.calls) == 0) {
			continue
		}
		flags := byte(0)
		if c.called {
			flags = 1
		}
		key = binary.LittleEndian.AppendUint32(append(key, flags), c.At.id)
		key = binary.LittleEndian.AppendUint32(key, c.Above.id)
		if m.Prog.Unique {
			key = binary.LittleEndian.AppendUint32(key, memoryID(c.Mem))
		}
	}
	m.key = key
	if p := m.positions[string(key)]; p != nil {
		return p, nil
	}
	if len(key) == 1 && flags == 0 {
		return m.Nowhere, nil
	}
	p := &Position{CanEnd: g.canEnd, Popped: g.popped}
	for _, c := range g.list {
		if c.At.reads {
			p.Configs = append(p.Configs, c.Config)
		}
		if !c.called && (c.At.reads || len(c.At.calls) > 0) {
			p.Kernels = append(p.Kernels, c.Config)
		}
	}
	m.positions[string(key)] = p
	m.Bytes += 200 + 2*len(key) + 40*len(g.list)
	return p, nil
}

func memoryID(m *memory) uint32 {
	if m == nil {
		return 0
	}
	return m.id
}

// pop adds the configurations after the end of c's rule.
func (m *Machine) pop(c Config) {
	for _, f := range c.Above.Frames {
		mem := c.Mem
		switch f.role {
		case ast.UniqueArray:
			mem = nil
		case ast.UniqueItem:
			m.gather.event = true
			if mem = m.ended(mem); mem == nil {
				continue // the item is a repetition
			}
		}
		m.put(f.Ret, f.Below, mem, false)
	}
}

// At returns the position of state s above a stack.
func (m *Machine) At(s *State, above *Stack, mem *memory) (*Position, error) {
	m.gather.reset()
	m.put(s, above, mem, false)
	m.expand()
	return m.take()
}

type returnKey struct {
	above *Stack
	mem   *memory
}

// Below returns the position after the end of the current rule, given the stack below it and
// assuming that no item was repeated.
func (m *Machine) Below(above *Stack, mem *memory) (*Position, error) {
	key := returnKey{above, m.strange(mem)}
	if p := m.returns[key]; p != nil {
		return p, nil
	}
	m.gather.reset()
	m.pop(Config{Above: above, Mem: key.mem})
	m.gather.canEnd = above.Ends&EndsText != 0
	m.gather.popped = above.Ends&endsUnknown != 0
	m.expand()
	p, err := m.take()
	if err == nil {
		m.returns[key] = p
	}
	return p, err
}

// Follow returns the position after byte b, or Nowhere. With uniqueItems, m.Text is the text
// before b.
func (m *Machine) Follow(from *Position, b byte) (*Position, error) {
	if from.Next != nil {
		if p := from.Next[m.ClassOf[b]]; p != nil {
			return p, nil
		}
	}
	p, err := m.raw(from, b)
	if err != nil || !m.Prog.Unique {
		return p, err
	}
	none, err := m.hopeless(p)
	if none {
		p = m.Nowhere
	}
	return p, err
}

// raw follows byte b like Follow, but does not check that a new item is still possible.
func (m *Machine) raw(from *Position, b byte) (*Position, error) {
	number := m.ClassOf[b]
	g := &m.gather
	g.reset()
	if m.Prog.Unique {
		m.Text = append(m.Text, b)
	}
	keep := true
	for _, c := range from.Configs {
		n := m.Step(c.At, b)
		if n == m.Dead {
			continue
		}
		mem, depends := m.read(c.Mem, b)
		keep = keep && !depends
		m.put(n, c.Above, mem, false)
	}
	m.expand()
	if m.Prog.Unique {
		m.Text = m.Text[:len(m.Text)-1]
	}
	keep = keep && !g.event
	p, err := m.take()
	if err != nil || !keep {
		return p, err
	}
	if from.Next == nil {
		from.Next = make([]*Position, len(m.SomeOf))
		m.Bytes += 8 * len(m.SomeOf)
	}
	from.Next[number] = p
	return p, nil
}

// Allowed returns the bytes that may follow p.
func (m *Machine) Allowed(p *Position) *spelling.ByteSet {
	if p.allow == nil {
		p.allow = new(spelling.ByteSet)
		for _, c := range p.Configs {
			for _, it := range c.At.Items {
				in := &m.Prog.Code[it.Pc]
				if in.Op != OpChar {
					continue
				}
				for _, e := range m.Prog.Classes[in.Class].States[it.Sub] {
					for b := int(e.Lo); b <= int(e.Hi); b++ {
						p.allow.Add(byte(b))
					}
				}
			}
		}
	}
	return p.allow
}

// OnlyByte returns the byte that must follow, if there is only one.
func (m *Machine) OnlyByte(at *Position) (byte, bool) {
	found, ok := byte(0), false
	for _, c := range at.Configs {
		for _, it := range c.At.Items {
			in := &m.Prog.Code[it.Pc]
			if in.Op != OpChar {
				continue
			}
			for _, e := range m.Prog.Classes[in.Class].States[it.Sub] {
				if e.Lo != e.Hi || ok && e.Lo != found {
					return 0, false
				}
				found, ok = e.Lo, true
			}
		}
	}
	return found, ok
}

// Alone returns the position of state s above the unknown stack.
func (m *Machine) Alone(s *State) (*Position, error) {
	if s.alone == nil {
		var err error
		if s.alone, err = m.At(s, m.Stacks.Unknown, nil); err != nil {
			return nil, err
		}
	}
	return s.alone, nil
}

// Place returns the position of state s above a stack, which may be unknown.
func (m *Machine) Place(s *State, above *Stack) (*Position, error) {
	if above == m.Stacks.Unknown {
		return m.Alone(s)
	}
	return m.At(s, above, nil)
}
