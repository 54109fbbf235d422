package kernel

import (
	"encoding/binary"
	"math"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// KVType is the element type that keys and values are stored in. Results depend on it: two
// sequences agree bit for bit only if their caches have the same type.
type KVType uint8

// The types of stored keys and values.
const (
	KVFull KVType = iota // the element type of the set
	KVF16                // float16, rounded to nearest even
	KVQ8                 // bytes, and for each vector of D the scale max|x|/127
	KVAuto               // KVF16, or KVFull for a narrow model; a setting, not the type of a cache
)

var kvTypes = [...]string{KVFull: "f32", KVF16: "f16", KVQ8: "q8", KVAuto: "auto"}

// Narrow is the width below which a model is so small that rounding its activations or its
// caches loses precision and gains no speed.
const Narrow = 576

// For returns the type of the caches of a model of some width.
func (t KVType) For(width int) KVType {
	switch {
	case t != KVAuto:
		return t
	case width < Narrow:
		return KVFull
	}
	return KVF16
}

// String returns the type as --kv-type spells it.
func (t KVType) String() string { return kvTypes[t] }

// ParseKVType returns the type that String spells so; ok is false if there is none.
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
//
// The views of a sequence's layers differ in Layer only and share the list of pages.
type KV[F tensor.Float] struct {
	Type    KVType
	Pages   [][]KVPage[F] // by page and layer
	Layer   int
	PageLen int
}

// Page returns the layer's part of page i.
func (c *KV[F]) Page(i int) *KVPage[F] { return &c.Pages[i][c.Layer] }

// KVPage is one layer's part of a page, in the memory of the set's device.
type KVPage[F tensor.Float] struct {
	Keys, Values           Buffer[F] // of KVFull
	KeyCodes, ValueCodes   []byte    // of the other types: little-endian float16, or signed bytes
	KeyScales, ValueScales []float32 // [K, PageLen], of KVQ8
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
		keys := c.Page(page).Keys[keyAt:]
		for i, x := range key {
			keys[i*n] = x
		}
		copy(c.Page(page).Values[valueAt:], value)
		return
	}
	p := c.Page(page)
	if c.Type == KVF16 {
		for i, x := range key {
			binary.LittleEndian.PutUint16(p.KeyCodes[2*(keyAt+i*n):], tensor.Float16bits(float32(x)))
		}
		for i, x := range value {
			binary.LittleEndian.PutUint16(p.ValueCodes[2*(valueAt+i):], tensor.Float16bits(float32(x)))
		}
		return
	}
	var back float32
	p.KeyScales[head*n+at], back = byteScale(key)
	for i, x := range key {
		p.KeyCodes[keyAt+i*n] = toByte(float32(x) * back)
	}
	p.ValueScales[head*n+at], back = byteScale(value)
	for i, x := range value {
		p.ValueCodes[valueAt+i] = toByte(float32(x) * back)
	}
}

// byteScale returns the scale of a vector that is stored in bytes and its inverse, which values are
// multiplied by to become bytes. A vector whose values are all below 1e-30 is stored as zeros.
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

// rounder is 1.5·2^23. The sum of rounder and a small number x has the integer nearest to x in its
// low bits, since float32 has no fraction bits at that magnitude.
const rounder = 1<<23 + 1<<22

func toByte(x float32) byte { return byte(math.Float32bits(x + rounder)) }

// Key copies the key of a position to dst[D].
func (c KV[F]) Key(dst []F, pos, head int) {
	page, n := pos/c.PageLen, c.PageLen
	for i := range dst {
		at := (head*len(dst)+i)*n + pos%n
		switch c.Type {
		case KVFull:
			dst[i] = c.Page(page).Keys[at]
		case KVF16:
			dst[i] = F(tensor.Float16(binary.LittleEndian.Uint16(c.Page(page).KeyCodes[2*at:])))
		default:
			p := c.Page(page)
			dst[i] = F(float32(int8(p.KeyCodes[at])) * p.KeyScales[head*n+pos%n])
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
			dst[i] = c.Page(page).Values[at]
		case KVF16:
			dst[i] = F(tensor.Float16(binary.LittleEndian.Uint16(c.Page(page).ValueCodes[2*at:])))
		default:
			p := c.Page(page)
			dst[i] = F(float32(int8(p.ValueCodes[at])) * p.ValueScales[head*n+pos%n])
		}
	}
}
