package cpu

import (
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Products of matrices rounded to bfloat16, to the nearest, ties to even. They are what
// VDPBF16PS computes: chains of fused multiply-adds over pairs of the reduction, of each
// pair the second product first, with subnormal numbers taken and left as zero. Where a
// machine has no such instruction, the rounded numbers stay float32 and change places,
// and the chains are those of float32 products that treat subnormal numbers alike.

// BFloat16 is the set whose products over dense matrices round both sides to bfloat16.
// It shares the workers, and ends with the set it is made of.
func (s *Set) BFloat16() kernel.Set[float32] {
	half := newParts(s.ops, s.pool)
	half.dense, half.class = &half.pairs, half.class+"+bf16/2"
	return half
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

// pairsPortable are the loops in plain Go.
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

// flushed is fma32 of numbers whose subnormal ones are zero.
func flushed(x, y, z float32) float32 { return flush(fma32(flush(x), flush(y), flush(z))) }

func flush(x float32) float32 {
	if bits := math.Float32bits(x); bits&0x7f800000 == 0 {
		return math.Float32frombits(bits & 0x80000000)
	}
	return x
}

// roundRow rounds a row and lets the elements of each pair change places.
func roundRow(dst, src *float32, k int) {
	out, in := unsafe.Slice(dst, k), unsafe.Slice(src, k)
	for i := 0; i+1 < k; i += 2 {
		out[i], out[i+1] = rounded(in[i+1]), rounded(in[i])
	}
	if k%2 == 1 {
		out[k-1] = rounded(in[k-1])
	}
}

// roundRows does so with pairs of rows, in place.
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

// rounded is x as bfloat16.
func rounded(x float32) float32 {
	bits := math.Float32bits(flush(x))
	if bits&0x7fffffff > 0x7f800000 {
		return math.Float32frombits(0x7fc00000)
	}
	return math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
}
