package template

import (
	"strconv"
	"strings"
)

// format implements Python's str.format. A field names an argument, followed by attributes
// and indices, which are looked up as in a template.
func (s *state) format(t str, a args) (Value, error) {
	f := &formatter{s: s, args: a}
	var m marked
	if err := f.fill(&m, t, 0); err != nil {
		return nil, err
	}
	out := m.str()
	out.safe = t.safe
	return out, s.alloc(m.len() + 16*len(m.data))
}

type formatter struct {
	s    *state
	args args
	next int // index of the next field without a name
}

func (f *formatter) fill(m *marked, t str, depth int) error {
	for at := 0; at < len(t.s); {
		i := strings.IndexAny(t.s[at:], "{}")
		if i < 0 {
			m.addStr(t.cut(at, len(t.s)))
			return nil
		}
		m.addStr(t.cut(at, at+i))
		at += i
		if at+1 < len(t.s) && t.s[at+1] == t.s[at] && depth == 0 {
			m.addStr(t.cut(at, at+1))
			at += 2
			continue
		}
		end := fieldEnd(t.s[at:])
		if t.s[at] == '}' || end < 0 || depth > 1 {
			return f.s.fail("format with a lone brace")
		}
		if err := f.field(m, t.cut(at+1, at+end), depth, t.safe); err != nil {
			return err
		}
		at += end + 1
		if err := f.s.alloc(16 + len(t.data)); err != nil {
			return err
		}
	}
	return nil
}

// fieldEnd returns the position of the brace that closes a field.
func fieldEnd(t string) int {
	depth := 0
	for i := range len(t) {
		switch t[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// field appends one field: name, !conversion and :specification.
func (f *formatter) field(m *marked, t str, depth int, safe bool) error {
	s := f.s
	end := strings.IndexAny(t.s, "!:")
	if i := strings.IndexByte(t.s, '['); i >= 0 && i < end { // a key may contain either character
		end = len(t.s)
		if j := strings.IndexByte(t.s[i:], ']'); j >= 0 {
			if k := strings.IndexAny(t.s[i+j:], "!:"); k >= 0 {
				end = i + j + k
			}
		}
	}
	if end < 0 {
		end = len(t.s)
	}
	v, err := f.value(t.s[:end])
	if err != nil {
		return err
	}
	rest := t.cut(end, len(t.s))
	conversion := byte(0)
	if strings.HasPrefix(rest.s, "!") {
		if len(rest.s) < 2 || strings.IndexByte("sra", rest.s[1]) < 0 || len(rest.s) > 2 && rest.s[2] != ':' {
			return s.fail("format with a bad conversion in %q", t.s)
		}
		conversion, rest = rest.s[1], rest.cut(2, len(rest.s))
	}
	layout := ""
	if strings.HasPrefix(rest.s, ":") {
		var inner marked
		if err := f.fill(&inner, rest.cut(1, len(rest.s)), depth+1); err != nil {
			return err
		}
		layout = inner.b.String()
	}
	switch conversion {
	case 's':
		v, err = s.text(v)
	case 'r', 'a':
		v, err = s.quoted(v, conversion == 'a')
	}
	if err != nil {
		return err
	}
	return s.layOut(m, v, layout, safe)
}

// value looks up what a field names.
func (f *formatter) value(name string) (Value, error) {
	s := f.s
	end := strings.IndexAny(name, ".[")
	if end < 0 {
		end = len(name)
	}
	first, rest := name[:end], name[end:]
	if first == "" {
		first = strconv.Itoa(f.next)
		f.next++
	}
	var v Value
	if n, err := strconv.Atoi(first); err == nil && n >= 0 {
		if n >= len(f.args.pos) {
			return nil, s.fail("format lacks value %d", n)
		}
		v = f.args.pos[n]
	} else {
		missing := undefined{first}
		if v = f.args.get(-1, first, missing); v == Value(missing) {
			return nil, s.fail("format lacks a value for %q", first)
		}
	}
	for rest != "" {
		var err error
		switch rest[0] {
		case '[':
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, s.fail("format with a bad field %q", name)
			}
			var key Value = str{s: rest[1:end]}
			if i, err := strconv.ParseInt(rest[1:end], 10, 64); err == nil {
				key = i
			}
			v, err = s.item(v, key)
			rest = rest[end+1:]
		case '.':
			end := strings.IndexAny(rest[1:], ".[") + 1
			if end == 0 {
				end = len(rest)
			}
			v, err = s.attr(v, rest[1:end])
			rest = rest[end:]
		default:
			err = s.fail("format with a bad field %q", name)
		}
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// quoted implements Python's repr and ascii.
func (s *state) quoted(v Value, ascii bool) (str, error) {
	var b marked
	if err := s.repr(&b, v); err != nil {
		return str{}, err
	}
	out := b.str()
	if ascii {
		out = out.like(asciiOnly(out.s))
	}
	return out, s.alloc(len(out.s))
}

// layOut appends a value formatted as by Python's format().
func (s *state) layOut(m *marked, v Value, layout string, escape bool) error {
	p, ok := parseSpec(layout)
	if !ok {
		return s.fail("format with a bad specification %q", layout)
	}
	if err := s.alloc(p.width + max(0, p.precision) + 64); err != nil {
		return err
	}
	if layout == "" {
		text, err := s.text(v)
		if err == nil && escape && !text.safe {
			text, err = s.escape(text)
		}
		m.addStr(text)
		return err
	}
	f, i, exact := number(v)
	switch x := v.(type) {
	case str:
		if p.verb != 0 && p.verb != 's' || p.align == '=' || p.sign != 0 || p.group != 0 {
			return s.fail("cannot format a string by %q", layout)
		}
		if p.zero && p.align == 0 {
			p.fill, p.align = "0", '<'
		}
		s.laidOut(m, &p, x)
		return s.alloc(len(x.s))
	case bool, int64:
		switch {
		case p.verb == 's' || exact && p.precision >= 0 && strings.IndexByte("eEfFgG%", p.verb) <= 0 && p.verb != 'e':
			return s.fail("cannot format a number by %q", layout)
		case p.verb == 'c':
			left, body, right := p.text(string(rune(i)))
			m.add(left + body + right)
		case p.verb != 0 && strings.IndexByte("eEfFgG%", p.verb) >= 0:
			m.add(p.float(f))
		default:
			m.add(p.integer(i))
		}
		return nil
	case float64:
		if p.verb != 0 && strings.IndexByte("eEfFgGn%", p.verb) < 0 {
			return s.fail("cannot format a float by %q", layout)
		}
		m.add(p.float(x))
		return nil
	}
	return s.fail("cannot format %s by %q", typeName(v), layout)
}

// laidOut appends a string under a format specification and keeps its marks.
func (s *state) laidOut(m *marked, p *spec, x str) {
	left, body, right := p.text(x.s)
	m.add(left)
	m.addStr(x.cut(0, len(body)))
	m.add(right)
}
