package cpu

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

// pairAVX512 are the loops for processors with AVX-512 BF16.
func pairAVX512() pairOps {
	return pairOps{round: roundPairs, group: roundGroup, vector: pairVector, tile: map[int]pairFunc{1: pairs1, 2: pairs2, 4: pairs4, 8: pairs8, 16: pairs16}}
}
