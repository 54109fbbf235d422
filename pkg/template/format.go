package template

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// format is Python's str.format with {}, {0} and {name}; it reaches no
// attributes.
func (s *state) format(t str, a args) (Value, error) {
	var m marked
	next := 0
	for at := 0; at < len(t.s); {
		i := strings.IndexAny(t.s[at:], "{}")
		if i < 0 {
			m.addStr(t.cut(at, len(t.s)))
			break
		}
		m.addStr(t.cut(at, at+i))
		at += i
		if at+1 < len(t.s) && t.s[at+1] == t.s[at] {
			m.addStr(t.cut(at, at+1))
			at += 2
			continue
		}
		end := strings.IndexByte(t.s[at:], '}')
		if t.s[at] == '}' || end < 0 {
			return nil, s.fail("format with a lone brace")
		}
		field := t.s[at+1 : at+end]
		at += end + 1
		var v Value = undefined{field}
		if field == "" {
			field = strconv.Itoa(next)
			next++
		}
		if n, err := strconv.Atoi(field); err == nil && n >= 0 && n < len(a.pos) {
			v = a.pos[n]
		} else if v = a.get(-1, field, v); v == (undefined{field}) {
			return nil, s.fail("format lacks a value for %q", field)
		}
		text, err := s.text(v)
		if err != nil {
			return nil, err
		}
		m.addStr(text)
		if err := s.alloc(len(text.s) + 16); err != nil {
			return nil, err
		}
	}
	return m.str(), s.alloc(m.len() + 16*len(m.data))
}

// percent is Python's "%" on strings: %s %r %d %i %f %x %%, with a width and a
// precision of at most two digits.
func (s *state) percent(t str, values []Value) (Value, error) {
	var m marked
	for at := 0; at < len(t.s); {
		i := strings.IndexByte(t.s[at:], '%')
		if i < 0 {
			m.addStr(t.cut(at, len(t.s)))
			break
		}
		m.addStr(t.cut(at, at+i))
		at += i + 1
		end := at
		for end < len(t.s) && end-at < 6 && strings.IndexByte("-+ 0123456789.", t.s[end]) >= 0 {
			end++
		}
		if end == len(t.s) {
			return nil, s.fail("format ends within a directive")
		}
		verb := t.s[end]
		spec := "%" + t.s[at:end]
		at = end + 1
		if verb == '%' {
			m.add("%")
			continue
		}
		if len(values) == 0 {
			return nil, s.fail("format lacks a value")
		}
		v := values[0]
		values = values[1:]
		if err := s.directive(&m, spec, verb, v); err != nil {
			return nil, err
		}
	}
	if len(values) > 0 {
		return nil, s.fail("format has %d values too many", len(values))
	}
	return m.str(), s.alloc(m.len() + 16*len(m.data))
}

func (s *state) directive(m *marked, spec string, verb byte, v Value) error {
	f, i, exact := number(v)
	switch verb {
	case 's', 'r':
		text, err := s.text(v)
		if err != nil {
			return err
		}
		if verb == 'r' {
			if x, ok := v.(str); ok {
				text = x.like(pythonQuote(x.s))
			}
		}
		if spec == "%" {
			m.addStr(text)
			return s.alloc(len(text.s) + 16)
		}
		padded := fmt.Sprintf(spec+"s", text.s)
		m.addLike(padded, text)
		return s.alloc(len(padded))
	case 'd', 'i', 'x':
		if !isNumber(v) {
			return s.fail("cannot format %s as a number", typeName(v))
		}
		if !exact {
			i = int64(f)
		}
		if verb == 'i' {
			verb = 'd'
		}
		padded := fmt.Sprintf(spec+string(verb), i)
		m.add(padded)
		return s.alloc(len(padded))
	case 'f', 'g', 'e':
		if !isNumber(v) {
			return s.fail("cannot format %s as a number", typeName(v))
		}
		padded := fmt.Sprintf(spec+string(verb), f)
		m.add(padded)
		return s.alloc(len(padded))
	default:
		return s.fail("unknown directive %%%c", verb)
	}
}

// strftime formats a time by C's directives.
func strftime(t time.Time, format string) (string, error) {
	layouts := map[byte]string{'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'y': "06",
		'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'p': "PM", 'Z': "MST", 'z': "-0700", 'e': "_2",
		'j': "002", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006",
		'x': "01/02/06", 'X': "15:04:05"}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		bare := i < len(format) && format[i] == '-' // no leading zero
		if bare {
			i++
		}
		if i >= len(format) {
			return "", fmt.Errorf("strftime format ends within a directive")
		}
		text := ""
		switch c := format[i]; c {
		case '%':
			text = "%"
		case 'n':
			text = "\n"
		case 't':
			text = "\t"
		case 'f':
			text = fmt.Sprintf("%06d", t.Nanosecond()/1000)
		case 'w':
			text = strconv.Itoa(int(t.Weekday()))
		case 'u':
			text = strconv.Itoa((int(t.Weekday())+6)%7 + 1)
		default:
			layout, ok := layouts[c]
			if !ok {
				return "", fmt.Errorf("strftime directive %%%c is not supported", c)
			}
			text = t.Format(layout)
		}
		if bare {
			if cut := strings.TrimLeft(text, "0 "); cut != "" {
				text = cut
			} else {
				text = "0"
			}
		}
		b.WriteString(text)
	}
	return b.String(), nil
}
