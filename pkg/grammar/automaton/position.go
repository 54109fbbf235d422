package automaton

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// Position is every way to have read the text so far. Positions are kept once
// each, with where every byte leads, so that walking known ground is a look into
// a table. A position never changes but for what is filled in later.
type Position struct {
	Configs []Config // the ways that read on
	Kernels []Config // the ways that are not there by a call alone: masks begin at them
	CanEnd  bool     // the text may end here
	Popped  bool     // a way leads below a stack of which nothing is known
	Next    []*Position
	Mask    any               // what package mask keeps of the position
	allow   *spelling.ByteSet // bytes that may come
	hope    hope
}

// Config is one state with the stacks that it may lie above.
type Config struct {
	At    *State
	Above *Stack
	Mem   *memory // of the array around it whose items must differ, or nil
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
	Config
	called bool
}

func (g *gathering) reset() {
	g.list, g.work = g.list[:0], g.work[:0]
	g.canEnd, g.popped, g.event, g.failure = false, false, false, nil
}

// put adds a config and queues it where that says something new.
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

// expand adds what the queued configs lead to without a byte: called rules, and
// what lies below rules that may end.
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
				m.put(m.Start(call.Rule), c.Above, c.Mem, true) // nothing to come back for
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
					g.popped = true // what came before is not known
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

// take returns the position gathered.
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

// pop adds what follows the rule of a config that may end.
func (m *Machine) pop(c Config) {
	for _, f := range c.Above.Frames {
		mem := c.Mem
		switch f.role {
		case ast.UniqueArray:
			mem = nil
		case ast.UniqueItem:
			m.gather.event = true
			if mem = m.ended(mem); mem == nil {
				continue // it was there before
			}
		}
		m.put(f.Ret, f.Below, mem, false)
	}
}

// At is the position of being in s above a stack.
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

// Below is the position after the rule on top of above has ended, if no item was
// repeated.
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

// Follow is the position after b, or nowhere. Where items must differ, m.text is
// the text up to b.
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

// raw is follow whether or not there is hope for an item.
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

// Allowed is the bytes that may come at p.
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

// OnlyByte is the one byte that can follow, if it is one.
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

// Alone is the position of being in s above a stack of which nothing is known.
func (m *Machine) Alone(s *State) (*Position, error) {
	if s.alone == nil {
		var err error
		if s.alone, err = m.At(s, m.Stacks.Unknown, nil); err != nil {
			return nil, err
		}
	}
	return s.alone, nil
}

// Place is the position of being in s above a stack.
func (m *Machine) Place(s *State, above *Stack) (*Position, error) {
	if above == m.Stacks.Unknown {
		return m.Alone(s)
	}
	return m.At(s, above, nil)
}
