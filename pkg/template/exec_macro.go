package template

import "slices"

func (st *macroStmt) exec(s *state) error {
	s.set(st.name, &macro{st.name, st.params, st.defaults, st.body, s.scope, st.takes})
	return nil
}

func (st *callStmt) exec(s *state) error {
	s.line = st.line
	caller := &macro{"caller", st.params, st.defaults, st.body, s.scope, st.takes}
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

// macro is a function defined by the template; its output is its result.
type macro struct {
	name     string
	params   []string
	defaults []expr
	body     []stmt
	scope    *scope
	takes    uses
}

const maxCalls = 100 // depth of nested macro calls

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
	if m.takes.caller {
		caller, ok := a.take("caller")
		if !ok {
			caller = undefined{"caller"}
		}
		if !slices.Contains(m.params, "caller") {
			s.set("caller", caller)
		}
	}
	if err := s.spare(m, &a); err != nil {
		return nil, err
	}
	text, err := s.capture(m.body)
	return text, err
}

// spare assigns the arguments without a parameter to varargs and kwargs, or refuses them.
func (s *state) spare(m *macro, a *args) error {
	var more []Value
	if n := len(m.params); len(a.pos) > n {
		more = a.pos[n:]
	}
	switch {
	case len(more) > 0 && !m.takes.varargs:
		return s.fail("macro %q takes at most %d arguments", m.name, len(m.params))
	case len(a.names) > 0 && !m.takes.kwargs:
		return s.fail("macro %q takes no argument named %q", m.name, a.names[0])
	}
	if m.takes.varargs {
		s.set("varargs", &list{items: more, kind: isTuple})
	}
	if m.takes.kwargs {
		rest := NewMap()
		for i, name := range a.names {
			rest.put(str{s: name}, a.named[i])
		}
		s.set("kwargs", rest)
	}
	return nil
}

// attr returns an attribute of a macro.
func (m *macro) attr(name string) Value {
	switch name {
	case "name":
		return str{s: m.name}
	case "arguments":
		names := &list{kind: isTuple}
		for _, p := range m.params {
			names.items = append(names.items, str{s: p})
		}
		return names
	case "catch_varargs":
		return m.takes.varargs
	case "catch_kwargs":
		return m.takes.kwargs
	case "caller":
		return m.takes.caller
	}
	return undefined{name}
}
