package template

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Value is what a template works with: nil (none), bool, int64, float64, a
// string, a list, a mapping or a function. DecodeJSON and Trusted make values;
// NewMap holds variables. Go's string, int and []any are taken as well, strings
// as data.
type Value any

// undefined is a name that is not there, or what a lookup did not find.
type undefined struct{ name string }

// Map is a mapping that keeps the order in which keys were first set.
type Map struct {
	keys      []Value
	vals      []Value
	index     map[string]int
	namespace bool
}

// NewMap makes an empty mapping.
func NewMap() *Map { return &Map{index: map[string]int{}} }

// Set gives a name a value. The name itself counts as the template's own text.
func (m *Map) Set(name string, v Value) { m.put(str{s: name}, value(v)) }

// Len is the number of keys.
func (m *Map) Len() int { return len(m.keys) }

// Get returns the value of a name.
func (m *Map) Get(name string) (Value, bool) {
	i, ok := m.index["s"+name]
	if !ok {
		return nil, false
	}
	return m.vals[i], true
}

func (m *Map) put(key, v Value) bool {
	k, ok := hashKey(key)
	if !ok {
		return false
	}
	if i, ok := m.index[k]; ok {
		m.vals[i] = v
		return true
	}
	m.index[k] = len(m.keys)
	m.keys = append(m.keys, key)
	m.vals = append(m.vals, v)
	return true
}

func (m *Map) get(key Value) (Value, bool) {
	k, ok := hashKey(key)
	if !ok {
		return nil, false
	}
	i, ok := m.index[k]
	if !ok {
		return nil, false
	}
	return m.vals[i], true
}

// remove takes a key out. It is linear in the mapping.
func (m *Map) remove(key Value) (Value, bool) {
	k, _ := hashKey(key)
	i, ok := m.index[k]
	if !ok {
		return nil, false
	}
	v := m.vals[i]
	m.keys = append(m.keys[:i:i], m.keys[i+1:]...)
	m.vals = append(m.vals[:i:i], m.vals[i+1:]...)
	delete(m.index, k)
	for name, at := range m.index {
		if at > i {
			m.index[name] = at - 1
		}
	}
	return v, true
}

// hashKey spells a key so that keys that are equal in Python are spelled alike:
// 1, 1.0 and true are one key.
func hashKey(key Value) (string, bool) {
	switch k := key.(type) {
	case str:
		return "s" + k.s, true
	case nil:
		return "n", true
	case bool, int64, float64:
		f, i, isInt := number(k)
		if isInt {
			return "i" + strconv.FormatInt(i, 10), true
		}
		if f == math.Trunc(f) && math.Abs(f) < 1<<62 {
			return "i" + strconv.FormatInt(int64(f), 10), true
		}
		return "f" + strconv.FormatFloat(f, 'g', -1, 64), true
	case *list:
		if k.kind != isTuple {
			return "", false
		}
		var b strings.Builder
		b.WriteString("t")
		for _, item := range k.items {
			h, ok := hashKey(item)
			if !ok {
				return "", false
			}
			fmt.Fprintf(&b, "%d:%s", len(h), h)
		}
		return b.String(), true
	default:
		return "", false
	}
}

// value takes Go's own types in.
func value(v Value) Value {
	switch x := v.(type) {
	case string:
		return userText(x)
	case int:
		return int64(x)
	case []any:
		l := &list{items: make([]Value, len(x))}
		for i, e := range x {
			l.items[i] = value(e)
		}
		return l
	case []string:
		l := &list{items: make([]Value, len(x))}
		for i, e := range x {
			l.items[i] = userText(e)
		}
		return l
	default:
		return v
	}
}

// number reads a number; isInt says that i is exact.
func number(v Value) (f float64, i int64, isInt bool) {
	switch x := v.(type) {
	case bool:
		if x {
			return 1, 1, true
		}
		return 0, 0, true
	case int64:
		return float64(x), x, true
	case float64:
		return x, 0, false
	}
	return 0, 0, false
}

func isNumber(v Value) bool {
	switch v.(type) {
	case bool, int64, float64:
		return true
	}
	return false
}

// typeName is a value's type as error texts name it.
func typeName(v Value) string {
	switch x := v.(type) {
	case nil:
		return "none"
	case undefined:
		return "undefined"
	case bool:
		return "boolean"
	case int64:
		return "integer"
	case float64:
		return "float"
	case str:
		return "string"
	case *list:
		return x.kind.String()
	case *Map:
		return "mapping"
	default:
		return "function"
	}
}

// truth is Python's.
func truth(v Value) bool {
	switch x := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return x
	case int64:
		return x != 0
	case float64:
		return x != 0
	case str:
		return x.s != ""
	case *list:
		return x.kind == isGenerator || len(x.items) > 0
	case *Map:
		return x.namespace || len(x.keys) > 0
	default:
		return true
	}
}

// formatFloat is Python's repr.
func formatFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// equal is Python's ==.
func (s *state) equal(a, b Value) (bool, error) {
	if err := s.nest(); err != nil {
		return false, err
	}
	defer s.unnest()
	switch x := a.(type) {
	case nil:
		return b == nil, nil
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

// compare orders two values of a kind, as Python's < does.
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

// contains is Python's "in".
func (s *state) contains(in, v Value) (bool, error) {
	switch x := in.(type) {
	case undefined:
		return false, nil
	case str:
		y, ok := v.(str)
		if !ok {
			return false, s.fail("cannot look for %s in a string", typeName(v))
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
	return false, s.fail("cannot look into %s", typeName(in))
}

// text is Python's str().
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
	case float64:
		b.add(formatFloat(x))
	case str:
		if x.safe {
			b.add("Markup(")
			defer b.add(")")
		}
		b.addLike(pythonQuote(x.s), x)
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
	b.WriteRune(quote)
	for _, r := range s {
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
