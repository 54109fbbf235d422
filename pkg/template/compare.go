package template

import "strings"

// equal behaves as Python's ==.
func (s *state) equal(a, b Value) (bool, error) {
	if err := s.nest(); err != nil {
		return false, err
	}
	defer s.unnest()
	switch x := a.(type) {
	case nil, bigInt:
		return a == b, nil
	case undefined:
		_, ok := b.(undefined)
		return ok, nil
	case bool, int64, float64:
		if !isNumber(b) {
			return false, nil
		}
		f, i, exact := number(a)
		g, j, exact2 := number(b)
		if exact && exact2 {
			return i == j, nil
		}
		return f == g, nil
	case str:
		y, ok := b.(str)
		return ok && x.s == y.s, nil
	case *list:
		y, ok := b.(*list)
		if !ok || x.kind != y.kind || x.kind == isGenerator && x != y || len(x.items) != len(y.items) {
			return false, nil
		}
		for i := range x.items {
			if same, err := s.equal(x.items[i], y.items[i]); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	case *Map:
		y, ok := b.(*Map)
		if !ok || len(x.keys) != len(y.keys) {
			return false, nil
		}
		if x == y {
			return true, nil
		}
		for i, k := range x.keys {
			v, ok := y.get(k)
			if !ok {
				return false, nil
			}
			if same, err := s.equal(x.vals[i], v); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	}
	return false, nil
}

// compare orders two values of one type, as Python's < does.
func (s *state) compare(a, b Value) (int, error) {
	if err := s.nest(); err != nil {
		return 0, err
	}
	defer s.unnest()
	switch x := a.(type) {
	case bool, int64, float64:
		if isNumber(b) {
			f, i, exact := number(a)
			g, j, exact2 := number(b)
			switch {
			case exact && exact2 && i != j:
				if i < j {
					return -1, nil
				}
				return 1, nil
			case exact && exact2 || f == g:
				return 0, nil
			case f < g:
				return -1, nil
			}
			return 1, nil
		}
	case str:
		if y, ok := b.(str); ok {
			return strings.Compare(x.s, y.s), nil
		}
	case *list:
		if y, ok := b.(*list); ok {
			for i := range min(len(x.items), len(y.items)) {
				if same, err := s.equal(x.items[i], y.items[i]); err != nil {
					return 0, err
				} else if !same {
					return s.compare(x.items[i], y.items[i])
				}
			}
			return len(x.items) - len(y.items), nil
		}
	}
	return 0, s.fail("cannot order %s and %s", typeName(a), typeName(b))
}

// contains behaves as Python's "in".
func (s *state) contains(in, v Value) (bool, error) {
	switch x := in.(type) {
	case undefined:
		return false, nil
	case str:
		y, ok := v.(str)
		if !ok {
			return false, s.fail("cannot search for %s in a string", typeName(v))
		}
		return strings.Contains(x.s, y.s), s.step(1 + len(x.s)/64)
	case *list:
		items, err := x.take()
		if err != nil {
			return false, err
		}
		for _, item := range items {
			if same, err := s.equal(item, v); err != nil || same {
				return same, err
			}
		}
		return false, nil
	case *Map:
		_, ok := x.get(v)
		return ok, nil
	}
	return false, s.fail("cannot search in %s", typeName(in))
}
