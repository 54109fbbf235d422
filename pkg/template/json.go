package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

const maxDepth = 200 // maximum nesting depth, in data and in templates

// DecodeJSON decodes one JSON value. Mappings keep their order; strings and keys
// are data. It returns an error for text that is not one JSON value or nests
// deeper than 200.
func DecodeJSON(data []byte) (Value, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := decode(d, 0)
	if err != nil {
		return nil, fmt.Errorf("decode json: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode json: unexpected text after the value at byte %d", d.InputOffset())
	}
	return v, nil
}

func decode(d *json.Decoder, depth int) (Value, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d at byte %d", maxDepth, d.InputOffset())
	}
	t, err := d.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	switch x := t.(type) {
	case string:
		return userText(x), nil
	case json.Number:
		i, err := strconv.ParseInt(x.String(), 10, 64)
		if err == nil {
			return i, nil
		}
		if errors.Is(err, strconv.ErrRange) {
			return bigInt(x.String()), nil
		}
		f, err := x.Float64()
		return f, err
	case json.Delim:
		if x == '[' {
			l := &list{}
			for d.More() {
				v, err := decode(d, depth+1)
				if err != nil {
					return nil, err
				}
				l.items = append(l.items, v)
			}
			_, err := d.Token()
			return l, err
		}
		m := NewMap()
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			name, ok := k.(string)
			if !ok {
				return nil, fmt.Errorf("object key is not a string at byte %d", d.InputOffset())
			}
			v, err := decode(d, depth+1)
			if err != nil {
				return nil, err
			}
			m.put(userText(name), v)
		}
		_, err := d.Token()
		return m, err
	default:
		return t, nil // null, true, false
	}
}

// jsonStyle holds the options of tojson, as Python's json.dumps has them.
type jsonStyle struct {
	ascii     bool
	sortKeys  bool
	indent    string
	pretty    bool
	item, key string // separators
}

// encodeJSON appends v as JSON.
func (s *state) encodeJSON(b *marked, v Value, st *jsonStyle, depth int) error {
	if err := s.step(1); err != nil {
		return err
	}
	if depth > maxDepth || b.len() > s.memory {
		return s.alloc(s.memory + 1)
	}
	switch x := v.(type) {
	case nil:
		b.add("null")
	case bool:
		b.add(strconv.FormatBool(x))
	case int64:
		b.add(strconv.FormatInt(x, 10))
	case bigInt:
		b.add(string(x))
		return s.step(len(x) / 64)
	case float64:
		switch {
		case math.IsNaN(x):
			b.add("NaN")
		case math.IsInf(x, 0):
			b.add(strings.Replace(strings.Replace(formatFloat(x), "inf", "Infinity", 1), "+", "", 1))
		default:
			b.add(formatFloat(x))
		}
	case str:
		b.addLike(jsonQuote(x.s, st.ascii), x)
		return s.step(len(x.s) / 8)
	case *list:
		if x.kind > isTuple {
			return s.fail("cannot write %s as json", typeName(v))
		}
		return s.encodeItems(b, "[", "]", len(x.items), st, depth, func(i int) error {
			return s.encodeJSON(b, x.items[i], st, depth+1)
		})
	case *Map:
		order := make([]int, len(x.keys))
		for i := range order {
			order[i] = i
		}
		if st.sortKeys {
			if err := s.sortBy(order,
				func(i, j int) (int, error) { return s.compare(x.keys[i], x.keys[j]) }); err != nil {
				return err
			}
		}
		return s.encodeItems(b, "{", "}", len(order), st, depth, func(i int) error {
			if err := s.encodeKey(b, x.keys[order[i]], st); err != nil {
				return err
			}
			b.add(st.key)
			return s.encodeJSON(b, x.vals[order[i]], st, depth+1)
		})
	default:
		return s.fail("cannot write %s as json", typeName(v))
	}
	return nil
}

func (s *state) encodeItems(b *marked, open, end string, n int, st *jsonStyle, depth int, item func(int) error) error {
	b.add(open)
	for i := range n {
		if i > 0 {
			b.add(st.item)
		}
		if st.pretty {
			b.add("\n" + strings.Repeat(st.indent, depth+1))
		}
		if err := item(i); err != nil {
			return err
		}
	}
	if st.pretty && n > 0 {
		b.add("\n" + strings.Repeat(st.indent, depth))
	}
	b.add(end)
	return nil
}

func (s *state) encodeKey(b *marked, k Value, st *jsonStyle) error {
	switch x := k.(type) {
	case str:
		b.addLike(jsonQuote(x.s, st.ascii), x)
	case nil:
		b.add(`"null"`)
	case bool:
		b.add(strconv.Quote(strconv.FormatBool(x)))
	case int64:
		b.add(strconv.Quote(strconv.FormatInt(x, 10)))
	case float64:
		b.add(strconv.Quote(formatFloat(x)))
	default:
		return s.fail("cannot write a key that is a %s as json", typeName(k))
	}
	return nil
}

func jsonQuote(s string, ascii bool) string {
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for s != "" {
		if n := plainRun(s, '"'); n > 0 {
			b.WriteString(s[:n])
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r < ' ' || ascii && r > '~' && r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		case ascii && r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// plainRun returns how many bytes at the beginning of a string need no escape: ASCII
// characters other than control characters, the backslash and the quote.
func plainRun(s string, quote byte) int {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '\\' || c == quote {
			return i
		}
	}
	return len(s)
}
