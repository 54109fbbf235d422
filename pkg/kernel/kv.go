package kernel

import (
	"encoding/binary"
	"math"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// KVType is what keys and values are stored as. It is part of what decides a result's
// bits: sequences that shall agree are stored alike.
type KVType uint8

// The types of stored keys and values.
const (
	KVFull KVType = iota // the element type of the set
	KVF16                // float16, rounded to nearest even
	KVQ8                 // bytes, and for each vector of D the scale max|x|/127
	KVAuto               // what a set finds best for a model; no cache's own type
)

var kvTypes = [...]string{KVFull: "f32", KVF16: "f16", KVQ8: "q8", KVAuto: "auto"}

// Narrow is the width below which a model is so small that to round its activations or
// what its caches store would lose precision and win nothing.
const Narrow = 576

// For is the type that caches of a model of some width have.
func (t KVType) For(width int) KVType {
	switch {
	case t != KVAuto:
		return t
	case width < Narrow:
		return KVFull
	}
	return KVF16
}

// String is the value of --kv-type.
func (t KVType) String() string { return kvTypes[t] }

// ParseKVType is String's inverse; ok is false for anything else.
func ParseKVType(name string) (t KVType, ok bool) {
	for t, n := range kvTypes {
		if n == name {
			return KVType(t), true
		}
	}
	return 0, false
}

// KV is one layer's view of one sequence in a paged cache. Position p is column
// p%PageLen of keys page [K, D, PageLen] and row p%PageLen of values page
// [K, PageLen, D], page p/PageLen: scores run along positions, values along d.
type KV[F tensor.Float] struct {
	Type         KVType
	Keys, Values [][]F    // of KVFull
	Packed       []KVPage // of the others
	PageLen      int
}

// KVPage is a page of keys and values in fewer bits.
type KVPage struct {
	Keys, Values           []byte    // little-endian halves, or signed bytes
	KeyScales, ValueScales []float32 // [K, PageLen], of KVQ8
}

// NewKVPage returns a page for so many elements of keys and as many of values, in
// vectors of d.
func NewKVPage(t KVType, elements, d int) KVPage {
	if t == KVF16 {
		store := make([]byte, 4*elements)
		return KVPage{Keys: store[: 2*elements : 2*elements], Values: store[2*elements:]}
	}
	store, scales := make([]byte, 2*elements), make([]float32, 2*(elements/d))
	half := len(scales) / 2
	return KVPage{Keys: store[:elements:elements], Values: store[elements:], KeyScales: scales[:half:half], ValueScales: scales[half:]}
}

// Write stores keys and values k, v [rows, K*D] of consecutive positions from pos on,
// for heads key/value heads of size d.
func (c KV[F]) Write(pos int, k, v []F, heads, d int) {
	for row := 0; row < len(k); row += heads * d {
		for head := range heads {
			from, to := row+head*d, row+(head+1)*d
			c.write(pos, head, k[from:to], v[from:to])
		}
		pos++
	}
}

func (c KV[F]) write(pos, head int, key, value []F) {
	page, at, n, d := pos/c.PageLen, pos%c.PageLen, c.PageLen, len(key)
	keyAt, valueAt := head*d*n+at, (head*n+at)*d
	if c.Type == KVFull {
		keys := c.Keys[page][keyAt:]
		for i, x := range key {
			keys[i*n] = x
		}
		copy(c.Values[page][valueAt:], value)
		return
	}
	p := &c.Packed[page]
	if c.Type == KVF16 {
		for i, x := range key {
			binary.LittleEndian.PutUint16(p.Keys[2*(keyAt+i*n):], tensor.Float16bits(float32(x)))
		}
		for i, x := range value {
			binary.LittleEndian.PutUint16(p.Values[2*(valueAt+i):], tensor.Float16bits(float32(x)))
		}
		return
	}
	var back float32
	p.KeyScales[head*n+at], back = byteScale(key)
	for i, x := range key {
		p.Keys[keyAt+i*n] = toByte(float32(x) * back)
	}
	p.ValueScales[head*n+at], back = byteScale(value)
	for i, x := range value {
		p.Values[valueAt+i] = toByte(float32(x) * back)
	}
}

// byteScale is the scale of a vector's bytes and what numbers are multiplied by to
// become bytes. A vector of hardly anything is zero.
func byteScale[F tensor.Float](x []F) (scale, back float32) {
	var most float32
	for _, v := range x {
		if a := float32(math.Abs(float64(v))); a > most || a != a {
			most = a
		}
	}
	if most < 1e-30 {
		return 0, 0
	}
	return most / 127, 127 / most
}

// rounder is 1.5·2^23: a small number added to it leaves its nearest integer in the low
// bits.
const rounder = 1<<23 + 1<<22

func toByte(x float32) byte { return byte(math.Float32bits(x + rounder)) }

// Key copies the key of a position to dst[D].
func (c KV[F]) Key(dst []F, pos, head int) {
	page, n := pos/c.PageLen, c.PageLen
	for i := range dst {
		at := (head*len(dst)+i)*n + pos%n
		switch c.Type {
		case KVFull:
			dst[i] = c.Keys[page][at]
		case KVF16:
			dst[i] = F(tensor.Float16(binary.LittleEndian.Uint16(c.Packed[page].Keys[2*at:])))
		default:
			p := &c.Packed[page]
			dst[i] = F(float32(int8(p.Keys[at])) * p.KeyScales[head*n+pos%n])
		}
	}
}

// Value copies the value of a position to dst[D].
func (c KV[F]) Value(dst []F, pos, head int) {
	page, n := pos/c.PageLen, c.PageLen
	for i := range dst {
		at := (head*n+pos%n)*len(dst) + i
		switch c.Type {
		case KVFull:
			dst[i] = c.Values[page][at]
		case KVF16:
			dst[i] = F(tensor.Float16(binary.LittleEndian.Uint16(c.Packed[page].Values[2*at:])))
		default:
			p := &c.Packed[page]
			dst[i] = F(float32(int8(p.Values[at])) * p.ValueScales[head*n+pos%n])
		}
	}
}

// Pages is how many pages it has.
func (c KV[F]) Pages() int { return max(len(c.Keys), len(c.Packed)) }
