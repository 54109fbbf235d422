package weights

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
)

// Meta is a GGUF file's metadata. Getters report false where the key is missing or
// of another kind.
type Meta struct{ values map[string]any }

// Keys lists the keys, sorted.
func (m Meta) Keys() []string { return slices.Sorted(maps.Keys(m.values)) }

// Value returns a value as it was read: an integer, float, bool, string or slice.
func (m Meta) Value(key string) (any, bool) {
	v, ok := m.values[key]
	return v, ok
}

// Has reports whether the key is there.
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
	v, ok := get[int64](m, key)
	return uint64(v), ok && v >= 0
}

// Strings returns a list of strings; they need not be UTF-8.
func (m Meta) Strings(key string) ([]string, bool) { return get[[]string](m, key) }

// Ints returns a list of integers of any width.
func (m Meta) Ints(key string) ([]int64, bool) { return get[[]int64](m, key) }

// Floats returns a list of floats of either width.
func (m Meta) Floats(key string) ([]float32, bool) { return get[[]float32](m, key) }

// The kinds of metadata values.
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

// width is a scalar kind's size in bytes, 0 for the others.
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

// value reads a value: int64 (integers of all widths), float64, bool, string, or a
// slice of int64, float32, bool, string or any.
func (r *reader) value(key string, kind uint32, depth int) any {
	switch {
	case kind == kindString:
		return r.str(key)
	case kind == kindArray:
		return r.array(key, depth)
	case width(kind) == 0:
		r.fail(key, "value kind %d is unknown", kind)
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
	return integer(kind, b)
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
	kind, count := r.u32(key+" element kind"), r.u64(key+" length")
	if depth == maxDepth {
		r.fail(key, "arrays are nested more than %d deep", maxDepth)
	}
	if r.err != nil {
		return nil
	}
	size := width(kind)
	if size > 0 {
		if count > uint64(len(r.b))/size {
			r.fail(key, "%d elements cannot be in the file", count)
			return nil
		}
		return scalars(kind, size, r.take(key, count*size))
	}
	// A string takes at least 8 bytes, an array at least 12.
	if count > (uint64(len(r.b))-uint64(r.at))/8 {
		r.fail(key, "%d elements cannot be in the file", count)
		return nil
	}
	if kind == kindString {
		out := make([]string, 0, count)
		for range count {
			s := r.str(key)
			if r.err != nil {
				return nil
			}
			out = append(out, s)
		}
		return out
	}
	var out []any
	for range count {
		v := r.value(key, kind, depth+1)
		if r.err != nil {
			return nil
		}
		out = append(out, v)
	}
	return out
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
