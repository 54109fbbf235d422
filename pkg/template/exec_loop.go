package template

func (st *forStmt) exec(s *state) error {
	s.line = st.line
	in, err := st.in.eval(s)
	if err != nil {
		return err
	}
	return st.over(s, in, 1)
}

// over runs the loop over the items at a depth of recursion.
func (st *forStmt) over(s *state, in Value, depth int) error {
	items, err := s.iterate(in)
	if err != nil {
		return err
	}
	if st.cond != nil {
		if items, err = st.kept(s, items); err != nil {
			return err
		}
	}
	if len(items) == 0 {
		return s.scoped(st.other)
	}
	l := &loop{items: items, depth: depth}
	if st.recursive {
		l.of, l.scope = st, s.scope
	}
	for l.at = range items {
		if err := s.step(1); err != nil {
			return err
		}
		s.push()
		s.set("loop", l)
		err := s.assign(&st.target, items[l.at])
		if err == nil {
			err = s.run(st.body)
		}
		s.pop()
		if signal, ok := err.(loopSignal); ok { //nolint:errorlint // nothing wraps it
			if signal.stop {
				return nil
			}
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// kept returns the items that satisfy the loop's condition.
func (st *forStmt) kept(s *state, items []Value) ([]Value, error) {
	var kept []Value
	for _, item := range items {
		s.push()
		err := s.assign(&st.target, item)
		var v Value
		if err == nil {
			v, err = st.cond.eval(s)
		}
		s.pop()
		if err != nil {
			return nil, err
		}
		if truth(v) {
			kept = append(kept, item)
		}
	}
	return kept, nil
}

// callLoop runs a recursive loop over another iterable and returns its text.
func (s *state) callLoop(l *loop, a args) (Value, error) {
	if l.of == nil || len(a.pos) != 1 {
		return nil, s.fail("cannot call a loop that is not recursive, or without an iterable")
	}
	if s.depth >= maxCalls {
		return nil, &BudgetError{"nesting", maxCalls}
	}
	s.depth++
	out, scope := s.out, s.scope
	s.out, s.scope = &marked{}, l.scope
	err := l.of.over(s, a.pos[0], l.depth+1)
	text := s.out.str()
	s.out, s.scope = out, scope
	s.depth--
	return text, err
}

// loop is the variable loop of a template.
type loop struct {
	items   []Value
	at      int
	depth   int
	of      *forStmt // nil unless recursive
	scope   *scope   // scope around a recursive loop
	changed Value
	asked   bool
}

func (l *loop) attr(name string) Value {
	n := len(l.items)
	switch name {
	case "index":
		return int64(l.at + 1)
	case "index0":
		return int64(l.at)
	case "revindex":
		return int64(n - l.at)
	case "revindex0":
		return int64(n - l.at - 1)
	case "first":
		return l.at == 0
	case "last":
		return l.at == n-1
	case "length":
		return int64(n)
	case "depth":
		return int64(l.depth)
	case "depth0":
		return int64(l.depth - 1)
	case "previtem":
		if l.at > 0 {
			return l.items[l.at-1]
		}
	case "nextitem":
		if l.at+1 < n {
			return l.items[l.at+1]
		}
	case "cycle":
		return &function{"cycle", func(s *state, a args) (Value, error) {
			if len(a.pos) == 0 {
				return nil, s.fail("cycle needs a value")
			}
			return a.pos[l.at%len(a.pos)], nil
		}}
	case "changed":
		return &function{"changed", func(s *state, a args) (Value, error) {
			now := &list{items: a.pos, kind: isTuple}
			same := false
			if l.asked {
				var err error
				if same, err = s.equal(l.changed, now); err != nil {
					return nil, err
				}
			}
			l.changed, l.asked = now, true
			return !same, nil
		}}
	}
	return undefined{name}
}
