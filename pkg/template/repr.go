package template

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// text implements Python's str().
func (s *state) text(v Value) (str, error) {
	switch x := v.(type) {
	case str:
		return x, nil
	case undefined:
		return str{}, nil
	}
	var b marked
	if err := s.repr(&b, v); err != nil {
		return str{}, err
	}
	return b.str(), s.alloc(b.len())
}

// repr appends Python's repr().
func (s *state) repr(b *marked, v Value) error {
	if err := s.nest(); err != nil {
		return err
	}
	defer s.unnest()
	if b.len() > s.memory {
		return s.alloc(b.len())
	}
	switch x := v.(type) {
	case nil:
		b.add("None")
	case undefined:
		b.add("Undefined")
	case bool:
		if x {
			b.add("True")
		} else {
			b.add("False")
		}
	case int64:
		b.add(strconv.FormatInt(x, 10))
	case bigInt:
		b.add(string(x))
	case float64:
		b.add(formatFloat(x))
	case str:
		if x.safe {
			b.add("Markup(")
			defer b.add(")")
		}
		b.addLike(pythonQuote(x.s), x)
		return s.step(len(x.s) / 8)
	case *list:
		open, end, whole := x.brackets()
		b.add(open)
		if whole {
			return nil
		}
		for i, item := range x.items {
			if i > 0 {
				b.add(", ")
			}
			if err := s.repr(b, item); err != nil {
				return err
			}
		}
		b.add(end)
	case *Map:
		if x.namespace {
			b.add("<Namespace ")
			defer b.add(">")
		}
		b.add("{")
		for i, k := range x.keys {
			if i > 0 {
				b.add(", ")
			}
			if err := s.repr(b, k); err != nil {
				return err
			}
			b.add(": ")
			if err := s.repr(b, x.vals[i]); err != nil {
				return err
			}
		}
		b.add("}")
	default:
		b.add("<function>")
	}
	return nil
}

// pythonQuote quotes a string as Python's repr() does.
func pythonQuote(s string) string {
	quote := '\''
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteRune(quote)
	for s != "" {
		if n := plainRun(s, byte(quote)); n > 0 {
			b.WriteString(s[:n])
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r == quote || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteRune(quote)
	return b.String()
}
