package template

import "slices"

// method returns a method of a value as a function.
func method(name string, do func(s *state, a args) (Value, error)) *function {
	return &function{name, do}
}

// mapMethod returns a method of a mapping, or nil.
func mapMethod(m *Map, name string) Value {
	switch name {
	case "get":
		return method(name, func(s *state, a args) (Value, error) {
			if v, ok := m.get(a.get(0, "key", nil)); ok {
				return v, nil
			}
			return a.get(1, "default", nil), nil
		})
	case "items":
		return method(name, func(s *state, _ args) (Value, error) {
			pairs, err := s.pairs(m)
			return pairs, err
		})
	case "keys":
		return method(name, func(s *state, _ args) (Value, error) {
			return &list{items: slices.Clone(m.keys), kind: isKeys}, s.alloc(16 * len(m.keys))
		})
	case "values":
		return method(name, func(s *state, _ args) (Value, error) {
			return &list{items: slices.Clone(m.vals), kind: isValues}, s.alloc(16 * len(m.vals))
		})
	case "copy":
		return method(name, func(s *state, _ args) (Value, error) {
			c := NewMap()
			for i, k := range m.keys {
				c.put(k, m.vals[i])
			}
			return c, s.alloc(64 * len(m.keys))
		})
	case "pop":
		return method(name, func(s *state, a args) (Value, error) {
			if err := s.step(len(m.keys)); err != nil {
				return nil, err
			}
			if v, ok := m.remove(a.get(0, "key", nil)); ok {
				return v, nil
			}
			if len(a.pos) > 1 {
				return a.pos[1], nil
			}
			return nil, s.fail("pop: no such key")
		})
	case "setdefault":
		return method(name, func(s *state, a args) (Value, error) {
			key := a.get(0, "key", nil)
			if v, ok := m.get(key); ok {
				return v, nil
			}
			v := a.get(1, "default", nil)
			if !m.put(key, v) {
				return nil, s.fail("%s cannot be a key", typeName(key))
			}
			return v, s.alloc(64)
		})
	case "popitem":
		return method(name, func(s *state, _ args) (Value, error) {
			if len(m.keys) == 0 {
				return nil, s.fail("popitem: the mapping is empty")
			}
			key := m.keys[len(m.keys)-1]
			v, _ := m.remove(key)
			return &list{items: []Value{key, v}, kind: isTuple}, s.step(1 + len(m.keys)/8)
		})
	case "clear":
		return method(name, func(*state, args) (Value, error) {
			*m = *NewMap()
			return nil, nil
		})
	case "update":
		return method(name, func(s *state, a args) (Value, error) {
			if from, ok := a.get(0, "", nil).(*Map); ok {
				for i, k := range from.keys {
					m.put(k, from.vals[i])
				}
			}
			for i, k := range a.names {
				m.put(str{s: k}, a.named[i])
			}
			return nil, s.alloc(64 + 64*len(m.keys))
		})
	}
	return nil
}

// pairs lists the keys of a mapping with their values.
func (s *state) pairs(m *Map) (*list, error) {
	out := &list{items: make([]Value, len(m.keys)), kind: isItems}
	for i, k := range m.keys {
		out.items[i] = &list{items: []Value{k, m.vals[i]}, kind: isTuple}
	}
	return out, s.alloc(96 * len(m.keys))
}

// listMethod returns a method of a list, or nil.
func listMethod(l *list, name string) Value {
	if l.kind > isRange || l.kind != isList && name != "index" && name != "count" {
		return nil
	}
	switch name {
	case "append":
		return method(name, func(s *state, a args) (Value, error) {
			l.items = append(l.items, a.get(0, "object", nil))
			return nil, s.alloc(32)
		})
	case "insert":
		return method(name, func(s *state, a args) (Value, error) {
			_, n, exact := number(a.get(0, "index", nil))
			if !exact || len(a.pos) < 2 {
				return nil, s.fail("insert needs an index and a value")
			}
			if n < 0 {
				n += int64(len(l.items))
			}
			at := int(max(0, min(n, int64(len(l.items)))))
			l.items = append(l.items, nil)
			copy(l.items[at+1:], l.items[at:])
			l.items[at] = a.pos[1]
			return nil, s.alloc(32 + len(l.items))
		})
	case "extend":
		return method(name, func(s *state, a args) (Value, error) {
			items, err := s.iterate(a.get(0, "iterable", nil))
			if err == nil {
				err = s.alloc(16 * len(items))
			}
			if err == nil {
				l.items = append(l.items, items...)
			}
			return nil, err
		})
	case "pop":
		return method(name, func(s *state, a args) (Value, error) {
			at, ok := index(a.get(0, "index", int64(-1)), len(l.items))
			if !ok {
				return nil, s.fail("pop: index outside a list of %d", len(l.items))
			}
			v := l.items[at]
			l.items = append(l.items[:at], l.items[at+1:]...)
			return v, s.step(1 + len(l.items)/8)
		})
	case "sort":
		return method(name, func(s *state, a args) (Value, error) {
			sorted, err := s.sorted(l.items, nil, true, truth(a.get(-1, "reverse", false)))
			if err != nil {
				return nil, err
			}
			l.items = sorted
			return nil, s.alloc(16 * len(sorted))
		})
	case "remove":
		return method(name, func(s *state, a args) (Value, error) {
			for i, item := range l.items {
				same, err := s.equal(item, a.get(0, "value", nil))
				if err != nil {
					return nil, err
				}
				if same {
					l.items = slices.Delete(l.items, i, i+1)
					return nil, s.step(1 + len(l.items)/8)
				}
			}
			return nil, s.fail("remove: no such value")
		})
	case "clear":
		return method(name, func(*state, args) (Value, error) {
			l.items = nil
			return nil, nil
		})
	case "copy":
		return method(name, func(s *state, _ args) (Value, error) {
			return &list{items: slices.Clone(l.items)}, s.alloc(16 * len(l.items))
		})
	case "reverse":
		return method(name, func(s *state, _ args) (Value, error) {
			for i, j := 0, len(l.items)-1; i < j; i, j = i+1, j-1 {
				l.items[i], l.items[j] = l.items[j], l.items[i]
			}
			return nil, s.step(1 + len(l.items)/8)
		})
	case "index", "count":
		return method(name, func(s *state, a args) (Value, error) {
			n := int64(0)
			for i, item := range l.items {
				same, err := s.equal(item, a.get(0, "value", nil))
				if err != nil {
					return nil, err
				}
				if same && name == "index" {
					return int64(i), nil
				}
				if same {
					n++
				}
			}
			if name == "index" {
				return nil, s.fail("index: no such value")
			}
			return n, nil
		})
	}
	return nil
}
