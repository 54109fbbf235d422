package template

// globals defines what every template can call.
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
		text, err := strftime(o.Now(), format.s)
		if err != nil {
			return nil, s.fail("%v", err)
		}
		return format.like(text), s.alloc(len(text) + 1000)
	})
}

// mapping builds a mapping from another one or pairs, and named arguments.
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
					return nil, s.fail("a mapping is made of pairs")
				}
			}
		}
	}
	for i, k := range a.names {
		m.put(str{s: k}, a.named[i])
	}
	return m, s.alloc(64 + 64*len(m.keys))
}

// numbers is Python's range.
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
