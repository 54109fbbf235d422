package template

// scope holds the variables of a scope; lookups continue in the parent. Few variables are
// kept in a list, many in a map.
type scope struct {
	parent *scope
	few    []binding
	many   map[string]Value
}

type binding struct {
	name string
	v    Value
}

func (sc *scope) find(name string) (Value, bool) {
	if sc.many != nil {
		v, ok := sc.many[name]
		return v, ok
	}
	for i := range sc.few {
		if sc.few[i].name == name {
			return sc.few[i].v, true
		}
	}
	return nil, false
}

func (sc *scope) set(name string, v Value) {
	if sc.many != nil {
		sc.many[name] = v
		return
	}
	for i := range sc.few {
		if sc.few[i].name == name {
			sc.few[i].v = v
			return
		}
	}
	if len(sc.few) < 8 {
		sc.few = append(sc.few, binding{name, v})
		return
	}
	sc.many = map[string]Value{name: v}
	for _, b := range sc.few {
		sc.many[b.name] = b.v
	}
}

func (s *state) push() { s.scope = &scope{parent: s.scope} }
func (s *state) pop()  { s.scope = s.scope.parent }

func (s *state) set(name string, v Value) { s.scope.set(name, v) }

func (s *state) lookup(name string) Value {
	for sc := s.scope; sc != nil; sc = sc.parent {
		if v, ok := sc.find(name); ok {
			return v
		}
	}
	return undefined{name}
}

// nest counts nested values, which may contain themselves; unnest undoes it.
func (s *state) nest() error {
	if s.nested >= 2*maxDepth {
		return &BudgetError{"nesting", 2 * maxDepth}
	}
	s.nested++
	return s.step(1)
}

func (s *state) unnest() { s.nested-- }
