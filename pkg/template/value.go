package template

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Value is a template value: nil (none), bool, int64, float64, a string, a list, a mapping or
// a function. DecodeJSON and Trusted make values; NewMap holds variables. Go's string, int
// and []any are accepted too; strings count as data.
type Value any

// bigInt is an integer beyond 64 bits, as digits. It supports only equality and printing.
type bigInt string

// undefined is the value of an unknown name or a failed lookup.
type undefined struct{ name string }

// Map is a mapping that keeps the insertion order of its keys.
type Map struct {
	keys      []Value
	vals      []Value
	index     map[string]int
	namespace bool
}

// NewMap returns an empty mapping.
func NewMap() *Map { return &Map{index: map[string]int{}} }

// Set sets a key to a value. The key itself counts as the template's own text.
func (m *Map) Set(name string, v Value) { m.put(str{s: name}, value(v)) }

// Len returns the number of keys.
func (m *Map) Len() int { return len(m.keys) }

// Get returns the value of a key.
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

// remove removes a key, in time linear in the size of the mapping.
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

// hashKey encodes a key so that keys that are equal in Python have one encoding: 1, 1.0 and
// true are the same key.
func hashKey(key Value) (string, bool) {
	switch k := key.(type) {
	case str:
		return "s" + k.s, true
	case nil:
		return "n", true
	case bigInt:
		return "i" + string(k), true
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

// value converts Go's own types.
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

// number converts to a number; isInt says that i is exact.
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

// typeName returns the name of a value's type, for error messages.
func typeName(v Value) string {
	switch x := v.(type) {
	case nil:
		return "none"
	case undefined:
		return "undefined"
	case bool:
		return "boolean"
	case int64, bigInt:
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

// truth returns Python's truth value.
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

// formatFloat formats as Python's repr.
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
