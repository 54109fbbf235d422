package cpu

import (
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Products of matrices whose elements are rounded to bfloat16, to nearest even. They compute what
// VDPBF16PS computes: a chain of fused multiply-adds over pairs of inputs, the second of each pair
// first, where subnormal operands and results are zero. On a machine without the instruction the rounded
// numbers stay float32, the elements of each pair are swapped, and the float32 loops run with subnormals
// treated as zero. The chains are the same.

// BFloat16 returns a set whose products of dense matrices round both operands to bfloat16. It shares
// the workers; closing this set closes it too.
func (s *Set) BFloat16() kernel.Set[float32] {
	rounding := newParts(s.ops, s.pool)
	rounding.dense, rounding.class = &rounding.pairs, rounding.class+"+bf16/2"
	return rounding
}

// UsesBFloat16 reports whether the set was made by BFloat16.
func (s *Set) UsesBFloat16() bool { return s.dense == &s.pairs }

// RoundBF16 rounds x in place to bfloat16 and writes the bits to h.
func (s *Set) RoundBF16(h []uint16, x kernel.Buffer[float32]) {
	must("round bfloat16", "h", len(h), len(x))
	s.pieces(len(x), func(lo, hi int) {
		s.pair.round(&h[lo], &x[lo], hi-lo)
		s.widenBF16(x[lo:hi], h[lo:hi])
	})
}

// WidenBF16 converts the bfloat16 bits h to x.
func (s *Set) WidenBF16(x kernel.Buffer[float32], h []uint16) {
	must("widen bfloat16", "x", len(x), len(h))
	s.pieces(len(x), func(lo, hi int) { s.widenBF16(x[lo:hi], h[lo:hi]) })
}

func (s *Set) widenBF16(x []float32, h []uint16) {
	whole := 0
	if d, ok := s.decode[tensor.BF16]; ok {
		if whole = len(x) / d.group * d.group; whole > 0 {
			d.run(&x[0], (*byte)(unsafe.Pointer(&h[0])), whole/d.group)
		}
	}
	for i := whole; i < len(x); i++ {
		x[i] = math.Float32frombits(uint32(h[i]) << 16)
	}
}

// pairsPortable returns the loops in plain Go.
func pairsPortable() gemmOps {
	plain := gemmPortable()
	o := plain
	o.tiles = plainTiles(flushed)
	o.narrow = o.tiles
	o.fromRow = roundRow
	o.fromRows = func(dst *float32, ldd int, src *float32, lds, k int) {
		plain.fromRows(dst, ldd, src, lds, k)
		roundRows(dst, ldd, k, lanes)
	}
	o.fromColumns = func(dst *float32, ldd int, src *float32, lds, k, columns int) {
		plain.fromColumns(dst, ldd, src, lds, k, columns)
		roundRows(dst, ldd, k, columns)
	}
	return o
}

// flushed is fma32 with subnormal operands and results taken as zero.
func flushed(x, y, z float32) float32 { return flush(fma32(flush(x), flush(y), flush(z))) }

// flush returns x, or a zero of the same sign if x is subnormal.
func flush(x float32) float32 {
	if bits := math.Float32bits(x); bits&0x7f800000 == 0 {
		return math.Float32frombits(bits & 0x80000000)
	}
	return x
}

// roundRow rounds a row and swaps the elements of each pair.
func roundRow(dst, src *float32, k int) {
	out, in := unsafe.Slice(dst, k), unsafe.Slice(src, k)
	for i := 0; i+1 < k; i += 2 {
		out[i], out[i+1] = rounded(in[i+1]), rounded(in[i])
	}
	if k%2 == 1 {
		out[k-1] = rounded(in[k-1])
	}
}

// roundRows rounds rows in place and swaps the rows of each pair.
func roundRows(p *float32, ld, k, columns int) {
	for c := range columns {
		for i := 0; i+1 < k; i += 2 {
			first, second := at(p, i*ld/4+c), at(p, (i+1)*ld/4+c)
			*first, *second = rounded(*second), rounded(*first)
		}
		if k%2 == 1 {
			last := at(p, (k-1)*ld/4+c)
			*last = rounded(*last)
		}
	}
}

// rounded returns x rounded to bfloat16.
func rounded(x float32) float32 {
	bits := math.Float32bits(flush(x))
	if bits&0x7fffffff > 0x7f800000 {
		return math.Float32frombits(0x7fc00000)
	}
	return math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
}
