package template

// globals defines the functions that every template can call.
func (s *state) globals(o Options) {
	define := func(name string, do func(s *state, a args) (Value, error)) {
		s.set(name, &function{name, do})
	}
	define("range", func(s *state, a args) (Value, error) { return s.numbers(a.pos) })
	define("namespace", func(s *state, a args) (Value, error) {
		m, err := s.mapping(a)
		if m != nil {
			m.namespace = true
		}
		return m, err
	})
	define("cycler", func(s *state, a args) (Value, error) {
		if len(a.pos) == 0 {
			return nil, s.fail("cycler needs a value")
		}
		return &counter{items: a.pos}, s.alloc(16 * len(a.pos))
	})
	define("joiner", func(s *state, a args) (Value, error) {
		sep, err := s.text(a.get(0, "sep", str{s: ", "}))
		return &counter{items: []Value{sep}, joins: true}, err
	})
	define("dict", func(s *state, a args) (Value, error) { return s.mapping(a) })
	define("raise_exception", func(s *state, a args) (Value, error) {
		text, err := s.text(a.get(0, "message", str{}))
		if err != nil {
			return nil, err
		}
		return nil, &RaisedError{text.s}
	})
	if o.Now == nil {
		return
	}
	define("strftime_now", func(s *state, a args) (Value, error) {
		format, ok := a.get(0, "format", nil).(str)
		if !ok || len(format.s) > 1000 {
			return nil, s.fail("strftime_now needs a short string")
		}
		text := strftime(o.Now(), format.s)
		return format.like(text), s.alloc(len(text) + 1000)
	})
}

// mapping builds a mapping from another one or from pairs, and named arguments.
func (s *state) mapping(a args) (*Map, error) {
	m := NewMap()
	if len(a.pos) > 0 {
		if from, ok := a.pos[0].(*Map); ok {
			for i, k := range from.keys {
				m.put(k, from.vals[i])
			}
		} else {
			pairs, err := s.iterate(a.pos[0])
			if err != nil {
				return nil, err
			}
			for _, p := range pairs {
				kv, err := s.iterate(p)
				if err != nil {
					return nil, err
				}
				if len(kv) != 2 || !m.put(kv[0], kv[1]) {
					return nil, s.fail("dict needs pairs")
				}
			}
		}
	}
	for i, k := range a.names {
		m.put(str{s: k}, a.named[i])
	}
	return m, s.alloc(64 + 64*len(m.keys))
}

// numbers implements Python's range.
func (s *state) numbers(bounds []Value) (Value, error) {
	n := make([]int64, len(bounds))
	for i, b := range bounds {
		_, v, exact := number(b)
		if !exact || !isNumber(b) {
			return nil, s.fail("range needs integers, not %s", typeName(b))
		}
		n[i] = v
	}
	from, to, step := int64(0), int64(0), int64(1)
	switch len(n) {
	case 1:
		to = n[0]
	case 2:
		from, to = n[0], n[1]
	case 3:
		from, to, step = n[0], n[1], n[2]
	default:
		return nil, s.fail("range needs one to three integers")
	}
	if step == 0 {
		return nil, s.fail("range cannot step by zero")
	}
	out := &list{kind: isRange, from: from, to: to, by: step}
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		if err := s.alloc(64); err != nil {
			return nil, err
		}
		out.items = append(out.items, i)
		if step > 0 && i > to-step || step < 0 && i < to-step {
			break // the next would be past the end, or past 64 bits
		}
	}
	return out, nil
}

// counter is a cycler, which returns its items in turn, or a joiner, which returns its
// separator from the second call on.
type counter struct {
	items []Value
	at    int
	joins bool
}

func (c *counter) call(s *state) (Value, error) {
	if !c.joins {
		return nil, s.fail("cannot call a cycler")
	}
	c.at++
	if c.at == 1 {
		return str{}, nil
	}
	return c.items[0], nil
}

func (c *counter) attr(name string) Value {
	switch {
	case c.joins:
	case name == "current":
		return c.items[c.at]
	case name == "next":
		return &function{name, func(*state, args) (Value, error) {
			v := c.items[c.at]
			c.at = (c.at + 1) % len(c.items)
			return v, nil
		}}
	case name == "reset":
		return &function{name, func(*state, args) (Value, error) {
			c.at = 0
			return nil, nil
		}}
	}
	return undefined{name}
}

// self sets the variable self, an object whose methods render the template's blocks.
func (s *state) self(blocks map[string][]stmt) {
	if len(blocks) == 0 {
		return
	}
	m := NewMap()
	m.namespace = true
	for name, body := range blocks {
		m.put(str{s: name}, &function{name, func(s *state, _ args) (Value, error) {
			out := s.out
			s.out = &marked{}
			err := s.block(body)
			text := s.out.str()
			s.out = out
			return text, err
		}})
	}
	s.set("self", m)
}
