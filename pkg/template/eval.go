package template

import (
	"unicode/utf8"
)

// function is a callable value.
type function struct {
	name string
	do   func(s *state, a args) (Value, error)
}

// args are the evaluated arguments of a call.
type args struct {
	pos   []Value
	names []string
	named []Value
}

// get returns the i-th argument, or the argument of that name, or the default.
func (a *args) get(i int, name string, other Value) Value {
	if i >= 0 && i < len(a.pos) {
		return a.pos[i]
	}
	for k, n := range a.names {
		if n == name {
			return a.named[k]
		}
	}
	return other
}

// take removes and returns a named argument.
func (a *args) take(name string) (Value, bool) {
	for k, n := range a.names {
		if n == name {
			v := a.named[k]
			a.names = append(a.names[:k:k], a.names[k+1:]...)
			a.named = append(a.named[:k:k], a.named[k+1:]...)
			return v, true
		}
	}
	return nil, false
}

func (s *state) arguments(c *callArgs) (a args, err error) {
	for _, e := range c.pos {
		v, err := e.eval(s)
		if err != nil {
			return a, err
		}
		a.pos = append(a.pos, v)
	}
	if c.spread != nil {
		v, err := c.spread.eval(s)
		if err != nil {
			return a, err
		}
		items, err := s.iterate(v)
		if err != nil {
			return a, err
		}
		a.pos = append(a.pos, items...)
	}
	for i, e := range c.named {
		v, err := e.eval(s)
		if err != nil {
			return a, err
		}
		a.names = append(a.names, c.names[i])
		a.named = append(a.named, v)
	}
	if c.merge != nil {
		v, err := c.merge.eval(s)
		if err != nil {
			return a, err
		}
		m, ok := v.(*Map)
		if !ok {
			return a, s.fail("cannot spread %s into named arguments", typeName(v))
		}
		for i, k := range m.keys {
			if name, ok := k.(str); ok {
				a.names = append(a.names, name.s)
				a.named = append(a.named, m.vals[i])
			}
		}
		return a, s.step(len(m.keys))
	}
	return a, nil
}

func (s *state) call(of Value, a args) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	switch f := of.(type) {
	case *function:
		return f.do(s, a)
	case *macro:
		return s.callMacro(f, a)
	case *loop:
		return s.callLoop(f, a)
	case *counter:
		return f.call(s)
	case undefined:
		return nil, s.fail("cannot call %q, which is undefined", f.name)
	}
	return nil, s.fail("cannot call %s", typeName(of))
}

// iterate lists the items that a loop iterates over.
func (s *state) iterate(v Value) ([]Value, error) {
	switch x := v.(type) {
	case undefined:
		return nil, nil
	case *list:
		items, err := x.take()
		if err != nil {
			return nil, err
		}
		return items, s.step(len(items) / 8)
	case *Map:
		return x.keys, s.step(len(x.keys) / 8)
	case str:
		n := utf8.RuneCountInString(x.s)
		if err := s.alloc(n * 64); err != nil {
			return nil, err
		}
		out := make([]Value, 0, n)
		for i := 0; i < len(x.s); {
			_, w := utf8.DecodeRuneInString(x.s[i:])
			out = append(out, x.char(i, i+w))
			i += w
		}
		return out, nil
	}
	return nil, s.fail("cannot iterate over %s", typeName(v))
}

// char returns one character as a string. It is data if any range contains it.
func (t str) char(from, to int) str {
	lo, hi := 0, len(t.data)
	for lo < hi {
		mid := (lo + hi) / 2
		if t.data[mid][1] <= from {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	c := str{s: t.s[from:to], safe: t.safe}
	if lo < len(t.data) && t.data[lo][0] < to {
		c.data = [][2]int{{0, to - from}}
	}
	return c
}

func (e *literal) eval(s *state) (Value, error)  { return e.v, s.step(1) }
func (e *nameExpr) eval(s *state) (Value, error) { return s.lookup(e.name), s.step(1) }

func (e *listExpr) eval(s *state) (Value, error) {
	l := &list{items: make([]Value, len(e.items))}
	if e.tuple {
		l.kind = isTuple
	}
	for i, item := range e.items {
		var err error
		if l.items[i], err = item.eval(s); err != nil {
			return nil, err
		}
	}
	return l, s.alloc(32 + 16*len(l.items))
}

func (e *mapExpr) eval(s *state) (Value, error) {
	m := NewMap()
	for i := range e.keys {
		k, err := e.keys[i].eval(s)
		if err != nil {
			return nil, err
		}
		v, err := e.vals[i].eval(s)
		if err != nil {
			return nil, err
		}
		if !m.put(k, v) {
			return nil, s.fail("%s cannot be a key", typeName(k))
		}
	}
	return m, s.alloc(64 + 64*len(m.keys))
}

func (e *callExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	a, err := s.arguments(&e.args)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	return s.call(of, a)
}

func (e *filterExpr) eval(s *state) (Value, error) {
	if e.of == nil {
		return nil, s.fail("filter %q has nothing to work on", e.name)
	}
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	return s.filterWith(e, of)
}

func (s *state) filterWith(e *filterExpr, of Value) (Value, error) {
	a, err := s.arguments(&e.args)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	return s.filter(e.name, of, a)
}

// filtered applies a chain of filters to the text of a block.
func (s *state) filtered(chain expr, text str) (Value, error) {
	e, ok := chain.(*filterExpr)
	if !ok {
		return nil, s.fail("no filter")
	}
	of := Value(text)
	if e.of != nil {
		var err error
		if of, err = s.filtered(e.of, text); err != nil {
			return nil, err
		}
	}
	return s.filterWith(e, of)
}

func (e *testExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	a, err := s.arguments(&e.args)
	if err != nil {
		return nil, err
	}
	s.line = e.line
	ok, err := s.test(e.name, of, a)
	return ok != e.not, err
}
