package template

import (
	"strings"
	"unicode/utf8"
)

func (s *state) strip(t str, chars Value, left, right bool) (Value, error) {
	switch c := chars.(type) {
	case nil:
		out := t.trim(isSpace, left, right)
		return out, s.step(1 + (len(t.s)-len(out.s))/8)
	case str:
		set := map[rune]bool{}
		for _, r := range c.s {
			set[r] = true
		}
		out := t.trim(func(r rune) bool { return set[r] }, left, right)
		return out, s.step(1 + len(c.s)/2 + (len(t.s)-len(out.s))/4)
	}
	return nil, s.fail("cannot strip %s from a string", typeName(chars))
}

func (s *state) affix(t str, name string, a args) (Value, error) {
	if len(a.pos) > 1 {
		from, to, err := s.span(t, a.pos[1:])
		if err != nil {
			return nil, err
		}
		t = t.cut(from, max(from, to))
	}
	options := []Value{a.get(0, "prefix", nil)}
	if l, ok := options[0].(*list); ok {
		options = l.items
	}
	for _, o := range options {
		x, ok := o.(str)
		if !ok {
			return nil, s.fail("%s needs a string, not %s", name, typeName(o))
		}
		if name == "startswith" && strings.HasPrefix(t.s, x.s) || name == "endswith" && strings.HasSuffix(t.s, x.s) {
			return true, nil
		}
		if err := s.step(1 + len(x.s)/64); err != nil {
			return nil, err
		}
	}
	return false, nil
}

func (s *state) split(t str, sep, most Value, right bool) (Value, error) {
	n, exact := -1, false
	if _, i, ok := number(most); ok && isNumber(most) {
		n, exact = int(max(-1, min(i, 1<<40))), true
	}
	if !exact {
		return nil, s.fail("split needs an integer, not %s", typeName(most))
	}
	var parts []Value
	switch x := sep.(type) {
	case nil:
		if err := s.alloc(32 * len(t.s)); err != nil {
			return nil, err
		}
		if right && n >= 0 {
			parts = t.fieldsRight(n)
		} else {
			parts = t.fields(n)
		}
	case str:
		if x.s == "" {
			return nil, s.fail("split needs a separator that is not empty")
		}
		if err := s.alloc(len(t.s) + 64*strings.Count(t.s, x.s)); err != nil {
			return nil, err
		}
		if right {
			parts = t.splitRight(x.s, n)
		} else {
			parts = t.split(x.s, n)
		}
	default:
		return nil, s.fail("split needs a string, not %s", typeName(sep))
	}
	return &list{items: parts}, s.step(len(parts) * (1 + len(t.data)/8))
}

func (s *state) lines(t str, keep bool) (Value, error) {
	if err := s.alloc(len(t.s) + 64*strings.Count(t.s, "\n")); err != nil {
		return nil, err
	}
	out := &list{}
	for at := 0; at < len(t.s); {
		end, next := len(t.s), len(t.s)
		if i := strings.IndexAny(t.s[at:], "\r\n"); i >= 0 {
			end, next = at+i, at+i+1
			if strings.HasPrefix(t.s[end:], "\r\n") {
				next++
			}
		}
		if keep {
			end = next
		}
		out.items = append(out.items, t.cut(at, end))
		at = next
	}
	return out, s.step(len(out.items) * (1 + len(t.data)/8))
}

func (s *state) partition(t str, name string, sep Value) (Value, error) {
	x, ok := sep.(str)
	if !ok || x.s == "" {
		return nil, s.fail("%s needs a string", name)
	}
	i := strings.Index(t.s, x.s)
	parts := []Value{t, str{}, str{}}
	if name == "rpartition" {
		i = strings.LastIndex(t.s, x.s)
		parts = []Value{str{}, str{}, t}
	}
	if i >= 0 {
		parts = []Value{t.cut(0, i), t.cut(i, i+len(x.s)), t.cut(i+len(x.s), len(t.s))}
	}
	return &list{items: parts, kind: isTuple}, s.alloc(len(t.s))
}

func (s *state) replace(t str, old, with, most Value) (Value, error) {
	from, ok1 := old.(str)
	to, err := s.text(with)
	n := -1
	if _, i, exact := number(most); exact && isNumber(most) {
		n = int(max(-1, min(i, 1<<40)))
	}
	if err != nil {
		return nil, err
	}
	if !ok1 {
		if from, err = s.text(old); err != nil {
			return nil, err
		}
	}
	found := strings.Count(t.s, from.s)
	if n >= 0 {
		found = min(found, n)
	}
	if found > 0 && len(to.s) > s.memory/found {
		return nil, s.alloc(s.memory + 1)
	}
	if err := s.alloc(len(t.s) + found*(len(to.s)+16*len(to.data)+16)); err != nil {
		return nil, err
	}
	return t.replace(from, to, n), s.step(found * (1 + len(t.data)/8))
}

// span returns the byte range of the characters from bounds[0] to bounds[1].
func (s *state) span(t str, bounds []Value) (from, to int, err error) {
	var at [3]*int64
	for i, b := range bounds[:min(2, len(bounds))] {
		if b == nil {
			continue
		}
		_, n, exact := number(b)
		if !exact || !isNumber(b) {
			return 0, 0, s.fail("a position must be an integer, not %s", typeName(b))
		}
		at[i] = &n
	}
	first, last, _ := sliceBounds(utf8.RuneCountInString(t.s), at)
	return offset(t.s, first), offset(t.s, last), s.alloc(len(t.s))
}

func (s *state) find(t str, name string, a args) (Value, error) {
	x, ok := a.get(0, "sub", nil).(str)
	if !ok {
		return nil, s.fail("%s needs a string, not %s", name, typeName(a.get(0, "sub", nil)))
	}
	from, to := 0, len(t.s)
	if len(a.pos) > 1 {
		var err error
		if from, to, err = s.span(t, a.pos[1:]); err != nil {
			return nil, err
		}
	}
	if err := s.alloc(len(t.s)); err != nil {
		return nil, err
	}
	i := -1
	switch in := t.s[from:max(from, to)]; {
	case from > to:
		if name == "count" {
			return int64(0), nil
		}
	case name == "count":
		return int64(strings.Count(in, x.s)), nil
	case name[0] == 'r':
		i = strings.LastIndex(in, x.s)
	default:
		i = strings.Index(in, x.s)
	}
	if i < 0 && strings.HasSuffix(name, "index") {
		return nil, s.fail("%s: no such substring", name)
	}
	if i < 0 {
		return int64(-1), nil
	}
	return int64(utf8.RuneCountInString(t.s[:from+i])), nil
}

func (s *state) expandTabs(t str, by Value) (Value, error) {
	size, ok := count(by)
	if !ok || size > 1000 {
		return nil, s.fail("expandtabs needs a width up to 1000")
	}
	if err := s.alloc(len(t.s) + strings.Count(t.s, "\t")*(size+16)); err != nil {
		return nil, err
	}
	if err := s.step(1 + len(t.s)/8 + strings.Count(t.s, "\t")*(1+len(t.data)/8)); err != nil {
		return nil, err
	}
	var m marked
	column, from := 0, 0
	for i, r := range t.s {
		switch r {
		case '\t':
			m.addStr(t.cut(from, i))
			n := 0
			if size > 0 {
				n = size - column%size
			}
			m.add(strings.Repeat(" ", n))
			column, from = column+n, i+1
		case '\n', '\r':
			column = 0
		default:
			column++
		}
	}
	m.addStr(t.cut(from, len(t.s)))
	return m.str(), nil
}

// pad pads a string to a width.
func (s *state) pad(t str, name string, a args) (Value, error) {
	width, _ := count(a.get(0, "width", int64(80)))
	fill := str{s: " "}
	if name == "zfill" {
		fill.s = "0"
	} else if f, ok := a.get(1, "fillchar", fill).(str); ok && utf8.RuneCountInString(f.s) == 1 {
		fill = f
	}
	n := width - utf8.RuneCountInString(t.s)
	if n <= 0 {
		return t, s.alloc(len(t.s))
	}
	left := 0
	switch name {
	case "zfill", "rjust":
		left = n
	case "center":
		left = n/2 + n&width&1 // rounds an odd remainder as Python does
	}
	before, err := s.repeat(fill, left)
	if err != nil {
		return nil, err
	}
	after, err := s.repeat(fill, n-left)
	if err != nil {
		return nil, err
	}
	var m marked
	if name == "zfill" && t.s != "" && (t.s[0] == '-' || t.s[0] == '+') {
		m.addStr(t.cut(0, 1))
		t = t.cut(1, len(t.s))
	}
	m.addStr(before.(str))
	m.addStr(t)
	m.addStr(after.(str))
	return m.str(), s.alloc(m.len())
}
