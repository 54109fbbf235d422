package weights

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
)

// Meta is a GGUF file's metadata. Getters report false for a missing key and for a
// value of another type.
type Meta struct {
	values  map[string]any
	encoded map[string]Encoded
}

// Keys lists the keys, sorted.
func (m Meta) Keys() []string { return slices.Sorted(maps.Keys(m.values)) }

// Value returns a value in the type that it was read as: int64 (uint64 above its range), float64,
// bool, string, or []int64, []float32, []bool, []string, or []any of such slices.
func (m Meta) Value(key string) (any, bool) {
	v, ok := m.values[key]
	return v, ok
}

// Encoded returns a value as the file holds it. It is a view of the file and valid until Close.
func (m Meta) Encoded(key string) (Encoded, bool) {
	v, ok := m.encoded[key]
	return v, ok
}

// Has reports whether a key exists.
func (m Meta) Has(key string) bool {
	_, ok := m.values[key]
	return ok
}

func get[T any](m Meta, key string) (T, bool) {
	v, ok := m.values[key].(T)
	return v, ok
}

// String returns a string.
func (m Meta) String(key string) (string, bool) { return get[string](m, key) }

// Bool returns a bool.
func (m Meta) Bool(key string) (bool, bool) { return get[bool](m, key) }

// Float returns a float of either width.
func (m Meta) Float(key string) (float64, bool) { return get[float64](m, key) }

// Uint returns an integer of any width that is not negative.
func (m Meta) Uint(key string) (uint64, bool) {
	if v, ok := get[uint64](m, key); ok {
		return v, true
	}
	v, ok := get[int64](m, key)
	return uint64(v), ok && v >= 0
}

// Strings returns a list of strings; they need not be UTF-8.
func (m Meta) Strings(key string) ([]string, bool) { return get[[]string](m, key) }

// Bools returns a list of bools.
func (m Meta) Bools(key string) ([]bool, bool) { return get[[]bool](m, key) }

// Ints returns a list of integers of any width; uint64 values above MaxInt64 wrap.
func (m Meta) Ints(key string) ([]int64, bool) { return get[[]int64](m, key) }

// Floats returns a list of floats of either width.
func (m Meta) Floats(key string) ([]float32, bool) { return get[[]float32](m, key) }

// The types of metadata values.
const (
	kindU8 = iota
	kindI8
	kindU16
	kindI16
	kindU32
	kindI32
	kindF32
	kindBool
	kindString
	kindArray
	kindU64
	kindI64
	kindF64
)

// width returns the size of a scalar type in bytes, or 0 for strings and arrays.
func width(kind uint32) uint64 {
	switch kind {
	case kindU8, kindI8, kindBool:
		return 1
	case kindU16, kindI16:
		return 2
	case kindU32, kindI32, kindF32:
		return 4
	case kindU64, kindI64, kindF64:
		return 8
	}
	return 0
}

// value reads a value as Meta.Value describes it. key is its name in errors.
func (r *reader) value(key string, kind uint32, depth int) any {
	switch {
	case r.err != nil:
		return nil
	case kind == kindString:
		return r.str(key)
	case kind == kindArray:
		return r.array(key, depth)
	case width(kind) == 0:
		r.fail(key, "unknown value type %d", kind)
		return nil
	}
	b := r.take(key, width(kind))
	if b == nil {
		return nil
	}
	switch kind {
	case kindF32, kindF64:
		return float(b)
	case kindBool:
		return b[0] != 0
	}
	v := integer(kind, b)
	if kind == kindU64 && v < 0 {
		return uint64(v)
	}
	return v
}

func float(b []byte) float64 {
	if len(b) == 4 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(b))
}

func integer(kind uint32, b []byte) int64 {
	le := binary.LittleEndian
	switch kind {
	case kindU8:
		return int64(b[0])
	case kindI8:
		return int64(int8(b[0]))
	case kindU16:
		return int64(le.Uint16(b))
	case kindI16:
		return int64(int16(le.Uint16(b)))
	case kindU32:
		return int64(le.Uint32(b))
	case kindI32:
		return int64(int32(le.Uint32(b)))
	}
	return int64(le.Uint64(b))
}

func (r *reader) array(key string, depth int) any {
	at := r.at
	kind, count := r.u32(key), r.u64(key)
	if depth == maxDepth {
		r.fail(key, "arrays are nested more than %d deep", maxDepth)
	}
	if r.err != nil {
		return nil
	}
	size := width(kind)
	least := size // bytes an element takes in the file
	switch kind {
	case kindString:
		least = 8
	case kindArray:
		least = 12
	}
	switch {
	case least == 0:
		r.failAt(at, key, "unknown element type %d", kind)
	case count > r.left()/least:
		r.failAt(at, key, "%d elements do not fit in the %d bytes left", count, r.left())
	case kind == kindString:
		return r.stringArray(key, count)
	case kind == kindArray:
		return r.arrays(key, count, depth)
	case r.charge(key, count, inMemory(kind)):
		return scalars(kind, size, r.take(key, count*size))
	}
	return nil
}

// stringArray reads strings. They share one copy of their bytes, so a large
// vocabulary costs one allocation.
func (r *reader) stringArray(key string, count uint64) any {
	from := r.at
	for range count {
		r.take(key, r.u64(key))
		if r.err != nil {
			return nil
		}
	}
	if !r.charge(key, count, 16) || !r.charge(key, 1, uint64(r.at-from)) {
		return nil
	}
	all := string(r.b[from:r.at])
	out := make([]string, count)
	at := uint64(0)
	for i := range out {
		n := binary.LittleEndian.Uint64(r.b[uint64(from)+at:])
		out[i] = all[at+8 : at+8+n]
		at += 8 + n
	}
	return out
}

// arrays reads an array of arrays.
func (r *reader) arrays(key string, count uint64, depth int) any {
	if !r.charge(key, count, 64) { // an interface, a slice and its smallest allocation
		return nil
	}
	out := make([]any, count)
	for i := range out {
		out[i] = r.array(key, depth+1)
		if r.err != nil {
			return nil
		}
	}
	return out
}

// inMemory returns the size of a decoded scalar in an array.
func inMemory(kind uint32) uint64 {
	switch kind {
	case kindBool:
		return 1
	case kindF32, kindF64:
		return 4
	}
	return 8
}

// scalars decodes packed scalars.
func scalars(kind uint32, size uint64, b []byte) any {
	n := uint64(len(b)) / size
	switch kind {
	case kindF32, kindF64:
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(float(b[uint64(i)*size:][:size]))
		}
		return out
	case kindBool:
		out := make([]bool, n)
		for i := range out {
			out[i] = b[i] != 0
		}
		return out
	}
	out := make([]int64, n)
	for i := range out {
		out[i] = integer(kind, b[uint64(i)*size:][:size])
	}
	return out
}
