package template

// loopSignal carries break and continue to their loop.
type loopSignal struct{ stop bool }

func (loopSignal) Error() string { return "break or continue outside a loop" }

func (st *textStmt) exec(s *state) error { return s.emit(str{s: st.text}) }

func (st *printStmt) exec(s *state) error {
	s.line = st.line
	v, err := st.of.eval(s)
	if err != nil {
		return err
	}
	text, err := s.text(v)
	if err != nil {
		return err
	}
	return s.emit(text)
}

func (st *ifStmt) exec(s *state) error {
	for i, cond := range st.conds {
		v, err := cond.eval(s)
		if err != nil {
			return err
		}
		if truth(v) {
			return s.run(st.bodies[i])
		}
	}
	return s.run(st.other)
}

func (st *forStmt) exec(s *state) error {
	s.line = st.line
	in, err := st.in.eval(s)
	if err != nil {
		return err
	}
	items, err := s.iterate(in)
	if err != nil {
		return err
	}
	if st.cond != nil {
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
				return err
			}
			if truth(v) {
				kept = append(kept, item)
			}
		}
		items = kept
	}
	if len(items) == 0 {
		return s.run(st.other)
	}
	l := &loop{items: items}
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
		if signal, ok := err.(loopSignal); ok {
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

func (st *setStmt) exec(s *state) error {
	s.line = st.line
	if st.to != nil {
		v, err := st.to.eval(s)
		if err != nil {
			return err
		}
		return s.assign(&st.target, v)
	}
	s.push()
	text, err := s.capture(st.body)
	s.pop()
	if err != nil {
		return err
	}
	v := Value(text)
	if st.filter != nil {
		if v, err = s.filtered(st.filter, text); err != nil {
			return err
		}
	}
	return s.assign(&st.target, v)
}

// assign gives a target a value.
func (s *state) assign(t *target, v Value) error {
	switch {
	case t.items != nil:
		items, err := s.iterate(v)
		if err != nil {
			return err
		}
		if len(items) != len(t.items) {
			return s.fail("cannot unpack %d values into %d names", len(items), len(t.items))
		}
		for i := range items {
			if err := s.assign(&t.items[i], items[i]); err != nil {
				return err
			}
		}
	case t.attr != "":
		m, ok := s.lookup(t.name).(*Map)
		if !ok || !m.namespace {
			return s.fail("cannot set an attribute of %q, which is no namespace", t.name)
		}
		m.put(str{s: t.attr}, v)
	default:
		s.set(t.name, v)
	}
	return s.step(1)
}

func (st *macroStmt) exec(s *state) error {
	s.set(st.name, &macro{st.name, st.params, st.defaults, st.body, s.scope})
	return nil
}

func (st *callStmt) exec(s *state) error {
	s.line = st.line
	caller := &macro{"caller", st.params, st.defaults, st.body, s.scope}
	of, err := st.call.of.eval(s)
	if err != nil {
		return err
	}
	args, err := s.arguments(&st.call.args)
	if err != nil {
		return err
	}
	args.names = append(args.names, "caller")
	args.named = append(args.named, caller)
	v, err := s.call(of, args)
	if err != nil {
		return err
	}
	text, err := s.text(v)
	if err != nil {
		return err
	}
	return s.emit(text)
}

func (st *filterStmt) exec(s *state) error {
	s.line = st.line
	s.push()
	text, err := s.capture(st.body)
	s.pop()
	if err != nil {
		return err
	}
	v, err := s.filtered(st.filter, text)
	if err != nil {
		return err
	}
	if text, err = s.text(v); err != nil {
		return err
	}
	return s.emit(text)
}

func (st *withStmt) exec(s *state) error {
	values := make([]Value, len(st.values))
	for i, e := range st.values {
		var err error
		if values[i], err = e.eval(s); err != nil {
			return err
		}
	}
	s.push()
	defer s.pop()
	for i, name := range st.names {
		s.set(name, values[i])
	}
	return s.run(st.body)
}

func (st *blockStmt) exec(s *state) error { return s.run(st.body) }
func (breakStmt) exec(*state) error       { return loopSignal{stop: true} }
func (continueStmt) exec(*state) error    { return loopSignal{} }

// macro is a function that the template defines; what it puts out is its
// result.
type macro struct {
	name     string
	params   []string
	defaults []expr
	body     []stmt
	scope    *scope
}

const maxCalls = 100 // of macros within macros

func (s *state) callMacro(m *macro, a args) (Value, error) {
	if s.depth >= maxCalls {
		return nil, &BudgetError{"nesting", maxCalls}
	}
	s.depth++
	scope := s.scope
	defer func() { s.depth--; s.scope = scope }()
	s.scope = m.scope
	s.push()
	for i, name := range m.params {
		v, ok := Value(nil), i < len(a.pos)
		if ok {
			v = a.pos[i]
		} else if v, ok = a.take(name); !ok {
			v = undefined{name}
			if m.defaults[i] != nil {
				var err error
				if v, err = m.defaults[i].eval(s); err != nil {
					return nil, err
				}
			}
		}
		s.set(name, v)
	}
	if caller, ok := a.take("caller"); ok {
		s.set("caller", caller)
	}
	if n := len(m.params); len(a.pos) > n {
		s.set("varargs", &list{items: a.pos[n:], kind: isTuple})
	} else {
		s.set("varargs", &list{kind: isTuple})
	}
	rest := NewMap()
	for i, name := range a.names {
		rest.put(str{s: name}, a.named[i])
	}
	s.set("kwargs", rest)
	text, err := s.capture(m.body)
	return text, err
}

// loop is the loop variable.
type loop struct {
	items   []Value
	at      int
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
		return int64(1)
	case "depth0":
		return int64(0)
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
	return undefined{"loop." + name}
}
