package cpu

import (
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

//go:noescape
func pairs1(y *float32, ldy int, w, x *byte, pairs int)

//go:noescape
func pairs2(y *float32, ldy int, w, x *byte, pairs int)

//go:noescape
func pairs4(y *float32, ldy int, w, x *byte, pairs int)

//go:noescape
func pairs8(y *float32, ldy int, w, x *byte, pairs int)

//go:noescape
func pairs16(y *float32, ldy int, w, x *byte, pairs int)

//go:noescape
func pairVector(y *float32, w, x *byte, pairs, fours int)

//go:noescape
func roundGroup(dst *byte, x *float32, ldx, count int)

//go:noescape
func roundPairs(dst *uint16, x *float32, n int)

// pairAVX512 returns the loops for processors with AVX-512 BF16.
func pairAVX512() pairOps {
	return pairOps{round: roundPairs, group: roundGroup, vector: pairVector,
		tile: map[int]pairFunc{1: pairs1, 2: pairs2, 4: pairs4, 8: pairs8, 16: pairs16}}
}

//go:noescape
func pairs1Wide(y *float32, ldy int, w, x *byte, ldx, pairs int)

//go:noescape
func pairs2Wide(y *float32, ldy int, w, x *byte, ldx, pairs int)

//go:noescape
func pairs4Wide(y *float32, ldy int, w, x *byte, ldx, pairs int)

//go:noescape
func roundPairsWide(dst *uint16, x *float32, eights int)

// pairAVX2 returns the loops for processors with AVX2.
func pairAVX2() pairOps {
	o := pairOps{tile: map[int]pairFunc{}, round: func(dst *uint16, x *float32, n int) {
		if n >= 8 {
			roundPairsWide(dst, x, n/8)
		}
		out, in := unsafe.Slice(dst, n), unsafe.Slice(x, n)
		for i := n &^ 7; i < n; i++ {
			out[i] = tensor.BFloat16bits(in[i])
		}
	}}
	for rows := 1; rows <= tileRows; rows *= 2 {
		step, loop := min(rows, 4), pairs4Wide
		switch rows {
		case 1:
			loop = pairs1Wide
		case 2:
			loop = pairs2Wide
		}
		o.tile[rows] = func(y *float32, ldy int, w, x *byte, pairs int) {
			for r := 0; r < rows; r += step {
				loop((*float32)(unsafe.Add(unsafe.Pointer(y), r*ldy)), ldy, w,
					(*byte)(unsafe.Add(unsafe.Pointer(x), 4*r)), 4*rows, pairs)
			}
		}
	}
	return o
}
