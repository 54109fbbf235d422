package template

// loopSignal carries break and continue to the enclosing loop.
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

// assign assigns a value to a target.
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
			return s.fail("cannot set an attribute of %q, which is not a namespace", t.name)
		}
		m.put(str{s: t.attr}, v)
	default:
		s.set(t.name, v)
	}
	return s.step(1)
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

func (st *blockStmt) exec(s *state) error {
	if st.name != "" {
		return s.block(st.body)
	}
	from := s.out.len()
	err := s.scoped(st.body)
	if s.out == s.page && s.out.len() > from {
		s.generated = append(s.generated, [2]int{from, s.out.len()})
	}
	return err
}

// block runs the body of a block, which sees the top-level names of the template and sets
// none of them.
func (s *state) block(body []stmt) error {
	if s.depth >= maxCalls {
		return &BudgetError{"nesting", maxCalls}
	}
	s.depth++
	scope := s.scope
	s.scope = s.top
	err := s.scoped(body)
	s.scope = scope
	s.depth--
	return err
}

// scoped runs statements in a scope of their own.
func (s *state) scoped(body []stmt) error {
	s.push()
	err := s.run(body)
	s.pop()
	return err
}

func (breakStmt) exec(*state) error    { return loopSignal{stop: true} }
func (continueStmt) exec(*state) error { return loopSignal{} }
