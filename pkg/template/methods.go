package template

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// method makes a function of a value's method.
func method(name string, do func(s *state, a args) (Value, error)) *function {
	return &function{name, do}
}

// mapMethod is a mapping's method, or nil.
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
			return nil, s.fail("pop of a key that is not there")
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

// pairs lists a mapping's keys with their values.
func (s *state) pairs(m *Map) (*list, error) {
	out := &list{items: make([]Value, len(m.keys)), kind: isItems}
	for i, k := range m.keys {
		out.items[i] = &list{items: []Value{k, m.vals[i]}, kind: isTuple}
	}
	return out, s.alloc(96 * len(m.keys))
}

// listMethod is a list's method, or nil.
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
				return nil, s.fail("pop outside a list of %d", len(l.items))
			}
			v := l.items[at]
			l.items = append(l.items[:at], l.items[at+1:]...)
			return v, s.step(1 + len(l.items)/8)
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
				return nil, s.fail("index of a value that is not there")
			}
			return n, nil
		})
	}
	return nil
}

// strMethod is a string's method, or nil.
func strMethod(t str, name string) Value {
	rewrite := func(f func(string) string) Value {
		return method(name, func(s *state, _ args) (Value, error) { return t.like(f(t.s)), s.alloc(4 * len(t.s)) })
	}
	is := func(f func(rune) bool) Value {
		return method(name, func(s *state, _ args) (Value, error) {
			return t.s != "" && strings.IndexFunc(t.s, func(r rune) bool { return !f(r) }) < 0, s.alloc(len(t.s))
		})
	}
	switch name {
	case "upper":
		return rewrite(strings.ToUpper)
	case "lower", "casefold":
		return rewrite(strings.ToLower)
	case "title":
		return rewrite(pythonTitle)
	case "capitalize":
		return rewrite(capitalize)
	case "swapcase":
		return rewrite(func(x string) string {
			return strings.Map(func(r rune) rune {
				if unicode.IsUpper(r) {
					return unicode.ToLower(r)
				}
				return unicode.ToUpper(r)
			}, x)
		})
	case "strip", "lstrip", "rstrip":
		return method(name, func(s *state, a args) (Value, error) {
			return s.strip(t, a.get(0, "chars", nil), name != "rstrip", name != "lstrip")
		})
	case "startswith", "endswith":
		return method(name, func(s *state, a args) (Value, error) { return s.affix(t, name, a) })
	case "removeprefix", "removesuffix":
		return method(name, func(s *state, a args) (Value, error) {
			x, ok := a.get(0, "", nil).(str)
			switch {
			case !ok:
				return nil, s.fail("%s needs a string", name)
			case name == "removeprefix" && strings.HasPrefix(t.s, x.s):
				return t.cut(len(x.s), len(t.s)), s.alloc(16)
			case name == "removesuffix" && strings.HasSuffix(t.s, x.s):
				return t.cut(0, len(t.s)-len(x.s)), s.alloc(16)
			}
			return t, nil
		})
	case "split", "rsplit":
		return method(name, func(s *state, a args) (Value, error) {
			return s.split(t, a.get(0, "sep", nil), a.get(1, "maxsplit", int64(-1)), name == "rsplit")
		})
	case "splitlines":
		return method(name, func(s *state, a args) (Value, error) {
			return s.lines(t, truth(a.get(0, "keepends", false)))
		})
	case "partition", "rpartition":
		return method(name, func(s *state, a args) (Value, error) { return s.partition(t, name, a.get(0, "sep", nil)) })
	case "replace":
		return method(name, func(s *state, a args) (Value, error) {
			return s.replace(t, a.get(0, "old", nil), a.get(1, "new", nil), a.get(2, "count", int64(-1)))
		})
	case "join":
		return method(name, func(s *state, a args) (Value, error) {
			items, err := s.iterate(a.get(0, "iterable", nil))
			if err != nil {
				return nil, err
			}
			return s.joinText(items, t)
		})
	case "find", "rfind", "index", "rindex", "count":
		return method(name, func(s *state, a args) (Value, error) { return s.find(t, name, a.get(0, "sub", nil)) })
	case "format":
		return method(name, func(s *state, a args) (Value, error) { return s.format(t, a) })
	case "zfill", "ljust", "rjust", "center":
		return method(name, func(s *state, a args) (Value, error) { return s.pad(t, name, a) })
	case "isdigit", "isdecimal", "isnumeric":
		return is(unicode.IsDigit)
	case "isalpha":
		return is(unicode.IsLetter)
	case "isalnum":
		return is(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) })
	case "isspace":
		return is(isSpace)
	case "isupper":
		return method(name, func(s *state, _ args) (Value, error) {
			return t.s != strings.ToLower(t.s) && t.s == strings.ToUpper(t.s), s.alloc(len(t.s))
		})
	case "islower":
		return method(name, func(s *state, _ args) (Value, error) {
			return t.s != strings.ToUpper(t.s) && t.s == strings.ToLower(t.s), s.alloc(len(t.s))
		})
	}
	return nil
}

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
		if right && n >= 0 {
			return nil, s.fail("rsplit at white space with a limit is not supported")
		}
		if err := s.alloc(32 * len(t.s)); err != nil {
			return nil, err
		}
		parts = t.fields(n)
	case str:
		if x.s == "" {
			return nil, s.fail("split at an empty string")
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

func (s *state) find(t str, name string, sub Value) (Value, error) {
	x, ok := sub.(str)
	if !ok {
		return nil, s.fail("%s needs a string, not %s", name, typeName(sub))
	}
	if err := s.alloc(len(t.s)); err != nil {
		return nil, err
	}
	if name == "count" {
		return int64(strings.Count(t.s, x.s)), nil
	}
	i := strings.Index(t.s, x.s)
	if name[0] == 'r' {
		i = strings.LastIndex(t.s, x.s)
	}
	if i < 0 && strings.HasSuffix(name, "index") {
		return nil, s.fail("%s of a string that is not there", name)
	}
	if i < 0 {
		return int64(-1), nil
	}
	return int64(utf8.RuneCountInString(t.s[:i])), nil
}

// pad fills a string up to a width.
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
		left = n / 2
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
