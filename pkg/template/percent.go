package template

import (
	"math"
	"strconv"
	"strings"
)

// percent implements Python's "%" on strings. values holds a tuple's items, or one value.
func (s *state) percent(t str, of Value) (Value, error) {
	d := &directives{s: s, escape: t.safe}
	if l, ok := of.(*list); ok && l.kind == isTuple {
		d.values = l.items
	} else {
		d.values = []Value{of}
		d.named, _ = of.(*Map)
		_, missing := of.(undefined)
		d.spare = ok || missing || d.named != nil
	}
	var m marked
	for at := 0; at < len(t.s); {
		i := strings.IndexByte(t.s[at:], '%')
		if i < 0 {
			m.addStr(t.cut(at, len(t.s)))
			break
		}
		m.addStr(t.cut(at, at+i))
		n, err := d.directive(&m, t.s[at+i+1:])
		if err != nil {
			return nil, err
		}
		at += i + 1 + n
	}
	if d.at < len(d.values) && !d.spare {
		return nil, s.fail("format has %d unused values", len(d.values)-d.at)
	}
	out := m.str()
	out.safe = t.safe
	return out, s.alloc(m.len() + 16*len(m.data))
}

// directives holds the values that fill the directives of a "%" format.
type directives struct {
	s      *state
	values []Value
	at     int
	named  *Map
	spare  bool // unused values are allowed
	escape bool
}

func (d *directives) take() (Value, error) {
	if d.at >= len(d.values) {
		return nil, d.s.fail("format lacks a value")
	}
	d.at++
	return d.values[d.at-1], nil
}

// amount reads digits, or the star that takes a value.
func (d *directives) amount(t string, at *int) (int, error) {
	if *at < len(t) && t[*at] == '*' {
		*at++
		v, err := d.take()
		if err != nil {
			return 0, err
		}
		_, n, exact := number(v)
		if !exact || n < -maxWidth || n > maxWidth {
			return 0, d.s.fail("format needs an integer for *")
		}
		return int(n), nil
	}
	from := *at
	for *at < len(t) && t[*at] >= '0' && t[*at] <= '9' {
		*at++
	}
	if from == *at {
		return 0, nil
	}
	n, err := strconv.Atoi(t[from:*at])
	if err != nil || n > maxWidth {
		return 0, d.s.fail("format is wider than %d", maxWidth)
	}
	return n, nil
}

// directive appends the directive at the beginning of t, after the percent sign, and returns
// its length.
func (d *directives) directive(m *marked, t string) (int, error) {
	s, at := d.s, 0
	p := spec{fill: " ", precision: -1}
	var v Value
	named := strings.HasPrefix(t, "(")
	if named {
		end := strings.IndexByte(t, ')')
		if end < 0 || d.named == nil {
			return 0, s.fail("format needs a mapping")
		}
		found, ok := d.named.Get(t[1:end])
		if !ok {
			return 0, s.fail("format lacks a value for %q", t[1:end])
		}
		v, at = found, end+1
	}
	left := false
	for ; at < len(t) && strings.IndexByte("#0- +", t[at]) >= 0; at++ {
		switch c := t[at]; c {
		case '#':
			p.alternate = true
		case '0':
			p.zero = true
		case '-':
			left = true
		case '+':
			p.sign = '+'
		default:
			if p.sign == 0 {
				p.sign = ' '
			}
		}
	}
	var err error
	if p.width, err = d.amount(t, &at); err != nil {
		return 0, err
	}
	if p.width < 0 {
		left, p.width = true, -p.width
	}
	if at < len(t) && t[at] == '.' {
		at++
		if p.precision, err = d.amount(t, &at); err != nil {
			return 0, err
		}
		p.precision = max(0, p.precision)
	}
	for at < len(t) && strings.IndexByte("hlL", t[at]) >= 0 {
		at++
	}
	if at == len(t) {
		return 0, s.fail("format ends within a directive")
	}
	verb := t[at]
	if verb == '%' {
		m.add("%")
		return at + 1, nil
	}
	if !named {
		if v, err = d.take(); err != nil {
			return 0, err
		}
	}
	p.align = '>'
	if left {
		p.align, p.zero = '<', false
	}
	if err := s.alloc(p.width + max(0, p.precision) + 64); err != nil {
		return 0, err
	}
	return at + 1, d.write(m, &p, verb, v)
}

func (d *directives) write(m *marked, p *spec, verb byte, v Value) error {
	s := d.s
	f, i, exact := number(v)
	switch verb {
	case 's', 'r', 'a':
		var text str
		var err error
		if verb == 's' {
			text, err = s.text(v)
		} else {
			text, err = s.quoted(v, verb == 'a')
		}
		if err == nil && d.escape && !text.safe {
			text, err = s.escape(text)
		}
		if err != nil {
			return err
		}
		s.laidOut(m, p, text)
		return s.alloc(len(text.s))
	case 'c':
		if x, ok := v.(str); ok && x.s != "" && offset(x.s, 1) == len(x.s) {
			s.laidOut(m, p, x)
			return nil
		}
		if !exact || i < 0 || i > 0x10ffff {
			return s.fail("%%c needs a character or its number")
		}
		s.laidOut(m, p, str{s: string(rune(i))})
		return nil
	}
	if !isNumber(v) {
		return s.fail("cannot format %s as a number", typeName(v))
	}
	if p.zero {
		p.align = 0 // the zeros come after the sign
	}
	switch p.verb = verb; verb {
	case 'd', 'i', 'u', 'x', 'X', 'o':
		if !exact {
			if verb == 'x' || verb == 'X' || verb == 'o' || math.IsNaN(f) || math.Abs(f) >= 1<<63 {
				return s.fail("cannot format %s by %%%c", typeName(v), verb)
			}
			i = int64(f)
		}
		m.add(p.integer(i))
	case 'e', 'E', 'f', 'F', 'g', 'G':
		if p.precision < 0 {
			p.precision = 6
		}
		m.add(p.float(f))
	default:
		return s.fail("unknown directive %%%c", verb)
	}
	return nil
}
