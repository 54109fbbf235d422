package template

import (
	"strings"
	"unicode/utf8"
)

func (e *attrExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	return s.attr(of, e.name)
}

// attr looks up of.name: a method first, then a key.
func (s *state) attr(of Value, name string) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	switch x := of.(type) {
	case undefined:
		return nil, s.fail("cannot read %q of %q, which is undefined", name, x.name)
	case *loop:
		return x.attr(name), nil
	case *Map:
		if !x.namespace {
			if m := mapMethod(x, name); m != nil {
				return m, nil
			}
		}
		if v, ok := x.Get(name); ok {
			return v, nil
		}
	case str:
		if m := strMethod(x, name); m != nil {
			return m, nil
		}
	case *list:
		if m := listMethod(x, name); m != nil {
			return m, nil
		}
		if x.group && (name == "grouper" || name == "list") {
			return x.items[strings.Index("gl", name[:1])], nil
		}
	case *macro:
		return x.attr(name), nil
	case *counter:
		return x.attr(name), nil
	}
	return undefined{name}, nil
}

func (e *itemExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	key, err := e.key.eval(s)
	if err != nil {
		return nil, err
	}
	return s.item(of, key)
}

// item looks up of[key]: an element or a key first, then an attribute.
func (s *state) item(of, key Value) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	name, isName := key.(str)
	switch x := of.(type) {
	case undefined:
		return nil, s.fail("cannot read an element of %q, which is undefined", x.name)
	case *Map:
		if v, ok := x.get(key); ok {
			return v, nil
		}
	case *list:
		if i, ok := index(key, len(x.items)); ok && x.kind <= isRange {
			return x.items[i], nil
		}
	case str:
		if _, i, exact := number(key); exact && isNumber(key) {
			n := utf8.RuneCountInString(x.s)
			if err := s.step(n / 64); err != nil {
				return nil, err
			}
			if i < 0 {
				i += int64(n)
			}
			if i < 0 || i >= int64(n) {
				return undefined{"index"}, nil
			}
			at := offset(x.s, int(i))
			_, w := utf8.DecodeRuneInString(x.s[at:])
			return x.char(at, at+w), nil
		}
	}
	if isName {
		return s.attr(of, name.s)
	}
	return undefined{"element"}, nil
}

// index reads a list index; negative ones count from the end.
func index(key Value, n int) (int, bool) {
	_, i, exact := number(key)
	if !exact || !isNumber(key) {
		return 0, false
	}
	if i < 0 {
		i += int64(n)
	}
	return int(i), i >= 0 && i < int64(n)
}

// offset returns the byte offset of the i-th character.
func offset(s string, i int) int {
	at := 0
	for ; i > 0 && at < len(s); i-- {
		_, w := utf8.DecodeRuneInString(s[at:])
		at += w
	}
	return at
}

func (e *sliceExpr) eval(s *state) (Value, error) {
	of, err := e.of.eval(s)
	if err != nil {
		return nil, err
	}
	var bounds [3]*int64
	for i, b := range []expr{e.from, e.to, e.step} {
		if b == nil {
			continue
		}
		v, err := b.eval(s)
		if err != nil {
			return nil, err
		}
		if v == nil {
			continue
		}
		_, n, exact := number(v)
		if !exact || !isNumber(v) {
			return nil, s.fail("a slice needs integers, not %s", typeName(v))
		}
		bounds[i] = &n
	}
	switch x := of.(type) {
	case undefined:
		return nil, s.fail("cannot slice %q, which is undefined", x.name)
	case *list:
		if x.kind > isRange {
			return nil, s.fail("cannot slice %s", typeName(of))
		}
		var out []Value
		err := s.slice(len(x.items), bounds, func(i int) { out = append(out, x.items[i]) })
		cut := &list{items: out, kind: x.kind}
		if from, to, step := sliceBounds(len(x.items), bounds); x.kind == isRange {
			cut.from, cut.to, cut.by = x.from+int64(from)*x.by, x.from+int64(to)*x.by, x.by*int64(step)
		}
		return cut, err
	case str:
		return s.sliceStr(x, bounds)
	}
	return nil, s.fail("cannot slice %s", typeName(of))
}

func (s *state) sliceStr(x str, bounds [3]*int64) (Value, error) {
	n := utf8.RuneCountInString(x.s)
	if err := s.step(n / 64); err != nil {
		return nil, err
	}
	if bounds[2] == nil || *bounds[2] == 1 { // a contiguous range
		first, last := -1, -1
		from, to, _ := sliceBounds(n, bounds)
		if from < to {
			first, last = from, to
		}
		if first < 0 {
			return str{}, nil
		}
		a := offset(x.s, first)
		b := a + offset(x.s[a:], last-first)
		return x.cut(a, b), s.alloc(16)
	}
	chars, err := s.iterate(x)
	if err != nil {
		return nil, err
	}
	var m marked
	err = s.slice(n, bounds, func(i int) { m.addStr(chars[i].(str)) })
	return m.str(), err
}

// sliceBounds implements Python's slice.indices.
func sliceBounds(n int, b [3]*int64) (from, to, step int) {
	step = 1
	if b[2] != nil {
		step = int(max(-1<<40, min(1<<40, *b[2])))
	}
	low, high := 0, n
	if step < 0 {
		low, high = -1, n-1
	}
	clamp := func(p *int64, other int) int {
		if p == nil {
			return other
		}
		i := *p
		if i < 0 {
			i = max(i, -1<<40) + int64(n)
			return int(max(i, int64(low)))
		}
		return int(min(i, int64(high)))
	}
	if step > 0 {
		return clamp(b[0], low), clamp(b[1], high), step
	}
	return clamp(b[0], high), clamp(b[1], low), step
}

func (s *state) slice(n int, b [3]*int64, take func(int)) error {
	from, to, step := sliceBounds(n, b)
	if step == 0 {
		return s.fail("a slice cannot step by zero")
	}
	count := 0
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		take(i)
		count++
	}
	return s.alloc(32 + 16*count)
}
