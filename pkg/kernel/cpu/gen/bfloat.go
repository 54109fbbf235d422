package main

import (
	"fmt"
	"strings"
)

// Products of bfloat16 weights. A panel holds pairs of inputs, and each lane holds a row: VDPBF16PS adds the
// product of the odd input of a pair to the row's sum, and then that of the even one.

// dotPairs is VDPBF16PS zmm(acc), zmm(w), dword at disp(BX) broadcast. The assembler
// does not know the instruction: EVEX.512.F3.0F38.W0 52 /r.
func (a *asm) dotPairs(disp, w, acc int) {
	not := func(bit int) int { return bit&1 ^ 1 }
	b := []int{
		0x62,
		not(acc>>3)<<7 | 1<<6 | 1<<5 | not(acc>>4)<<4 | 2,
		(^w&15)<<3 | 1<<2 | 2,
		2<<5 | 1<<4 | not(w>>4)<<3,
		0x52,
		1<<6 | acc&7<<3 | 3, // BX and an offset of dwords
		disp / 4 & 0xff,
	}
	var text []string
	for _, v := range b {
		text = append(text, fmt.Sprintf("BYTE $0x%02x", v))
	}
	a.f("%s // VDPBF16PS %d(BX){1to16}, Z%d, Z%d", strings.Join(text, "; "), disp, w, acc)
}

// pairTiles lists how many rows of activations a pass over a panel may have.
var pairTiles = []int{1, 2, 4, 8, 16}

// bfloat writes the loops over bfloat16 weights.
func bfloat(a *asm) {
	for _, t := range pairTiles {
		a.pairs(t)
	}
	a.pairVector()
	a.roundPairs()
	a.roundGroup()
	for _, t := range []int{1, 2, 4} {
		a.pairsWide(t)
	}
	a.roundPairsWide()
}

// pairs writes pairs<t>: a panel times t rows of activations, whose pairs are interleaved.
func (a *asm) pairs(t int) {
	a.fn(fmt.Sprintf("pairs%d", t), 40, fmt.Sprintf("func pairs%d(y *float32, ldy int, w, x *byte, pairs int)", t))
	a.f("MOVQ w+16(FP), DI")
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ pairs+32(FP), CX")
	for i := range t {
		a.f("VPXORD Z%d, Z%d, Z%d", i, i, i)
	}
	step := func(u int) {
		a.f("VMOVDQU32 %d(DI), Z%d", 64*u, 16+u)
		for i := range t {
			a.dotPairs(4*t*u+4*i, 16+u, i)
		}
	}
	a.label("loop")
	a.f("CMPQ CX, $4")
	a.f("JLT tail")
	for u := range 4 {
		step(u)
	}
	a.f("ADDQ $256, DI")
	a.f("ADDQ $%d, BX", 16*t)
	a.f("SUBQ $4, CX")
	a.f("JMP loop")
	a.label("tail")
	a.f("TESTQ CX, CX")
	a.f("JZ done")
	step(0)
	a.f("ADDQ $64, DI")
	a.f("ADDQ $%d, BX", 4*t)
	a.f("DECQ CX")
	a.f("JMP tail")
	a.label("done")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ ldy+8(FP), SI")
	for i := range t {
		a.f("VMOVUPS Z%d, (DI)", i)
		if i < t-1 {
			a.f("ADDQ SI, DI")
		}
	}
	a.end()
}

// pairVector writes pairVector: four panels at a time times one row. Four independent sums hide the latency of
// VDPBF16PS.
func (a *asm) pairVector() {
	a.fn("pairVector", 40, "func pairVector(y *float32, w, x *byte, pairs, fours int)")
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ w+8(FP), DI")
	a.f("MOVQ pairs+24(FP), R9")
	a.f("SHLQ $6, R9") // bytes of a panel
	a.f("MOVQ fours+32(FP), R13")
	a.label("fours")
	a.f("LEAQ (DI)(R9*1), R10")
	a.f("LEAQ (DI)(R9*2), R11")
	a.f("LEAQ (R10)(R9*2), R12")
	a.f("MOVQ x+16(FP), BX")
	a.f("MOVQ pairs+24(FP), CX")
	for i := range 4 {
		a.f("VPXORD Z%d, Z%d, Z%d", i, i, i)
	}
	a.label("loop")
	for i, r := range []string{"DI", "R10", "R11", "R12"} {
		a.f("PREFETCHT0 %d(%s)", prefetchDistance, r)
		a.f("VMOVDQU32 (%s), Z%d", r, 16+i)
		a.f("ADDQ $64, %s", r)
	}
	for i := range 4 {
		a.dotPairs(0, 16+i, i)
	}
	a.f("ADDQ $4, BX")
	a.f("DECQ CX")
	a.f("JNZ loop")
	for i := range 4 {
		a.f("VMOVUPS Z%d, %d(R8)", i, 64*i)
	}
	a.f("ADDQ $256, R8")
	a.f("MOVQ R12, DI")
	a.f("DECQ R13")
	a.f("JNZ fours")
	a.end()
}

// roundTo rounds the float32 lanes of z to bfloat16, in the low 16 bits of each lane. Z28..Z30 hold the
// constants, and t is scratch.
func (a *asm) roundTo(z, t int) {
	a.f("VCMPPS $3, Z%d, Z%d, K2", z, z) // NaN
	a.f("VPSRLD $16, Z%d, Z%d", z, t)
	a.f("VPANDD Z30, Z%d, Z%d", t, t)
	a.f("VPADDD Z29, Z%d, Z%d", t, t)
	a.f("VPADDD Z%d, Z%d, Z%d", z, t, z)
	a.f("VPSRLD $16, Z%d, Z%d", z, z)
	a.f("VMOVDQA32 Z28, K2, Z%d", z)
}

// roundConstants loads the constants of roundTo.
func (a *asm) roundConstants() {
	a.constant(1, 30)
	a.constant(0x7fff, 29)
	a.constant(0x7fc0, 28)
}

// roundGroup writes roundGroup, which turns 32 inputs of 16 rows at a time into interleaved pairs.
func (a *asm) roundGroup() {
	a.fn("roundGroup", 32, "func roundGroup(dst *byte, x *float32, ldx, count int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ ldx+16(FP), DX")
	a.f("MOVQ count+24(FP), CX")
	a.label("loop")
	a.roundConstants()
	a.f("MOVQ SI, R8")
	for i := range 16 {
		a.f("VMOVUPS (R8), Z16")
		a.f("VMOVUPS 64(R8), Z17")
		a.roundTo(16, 18)
		a.roundTo(17, 19)
		a.f("VPMOVDW Z16, Y16")
		a.f("VPMOVDW Z17, Y17")
		a.f("VINSERTI64X4 $1, Y17, Z16, Z%d", i)
		a.f("ADDQ DX, R8")
	}
	a.transpose()
	for i := range 16 {
		a.f("VMOVDQU32 Z%d, %d(DI)", i, 64*i)
	}
	a.f("ADDQ $128, SI")
	a.f("ADDQ $1024, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// transpose transposes the 16 by 16 dwords of Z0..Z15. Z16..Z31 are scratch.
func (a *asm) transpose() {
	for i := 0; i < 16; i += 2 { // pairs of rows
		a.f("VPUNPCKLDQ Z%d, Z%d, Z%d", i+1, i, 16+i)
		a.f("VPUNPCKHDQ Z%d, Z%d, Z%d", i+1, i, 17+i)
	}
	for i := 0; i < 16; i += 4 { // quads: column c of each 128-bit lane
		a.f("VPUNPCKLQDQ Z%d, Z%d, Z%d", 18+i, 16+i, i)
		a.f("VPUNPCKHQDQ Z%d, Z%d, Z%d", 18+i, 16+i, i+1)
		a.f("VPUNPCKLQDQ Z%d, Z%d, Z%d", 19+i, 17+i, i+2)
		a.f("VPUNPCKHQDQ Z%d, Z%d, Z%d", 19+i, 17+i, i+3)
	}
	for c := range 4 { // lanes 0 and 2, 1 and 3 of rows 0..7 and 8..15
		a.f("VSHUFI32X4 $0x88, Z%d, Z%d, Z%d", 4+c, c, 16+c)
		a.f("VSHUFI32X4 $0xdd, Z%d, Z%d, Z%d", 4+c, c, 20+c)
		a.f("VSHUFI32X4 $0x88, Z%d, Z%d, Z%d", 12+c, 8+c, 24+c)
		a.f("VSHUFI32X4 $0xdd, Z%d, Z%d, Z%d", 12+c, 8+c, 28+c)
	}
	for c := range 4 {
		a.f("VSHUFI32X4 $0x88, Z%d, Z%d, Z%d", 24+c, 16+c, c)
		a.f("VSHUFI32X4 $0x88, Z%d, Z%d, Z%d", 28+c, 20+c, 4+c)
		a.f("VSHUFI32X4 $0xdd, Z%d, Z%d, Z%d", 24+c, 16+c, 8+c)
		a.f("VSHUFI32X4 $0xdd, Z%d, Z%d, Z%d", 28+c, 20+c, 12+c)
	}
}

// roundPairs writes roundPairs, which rounds float32 to bfloat16, to nearest even.
func (a *asm) roundPairs() {
	a.fn("roundPairs", 24, "func roundPairs(dst *uint16, x *float32, n int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ n+16(FP), CX")
	a.roundConstants()
	body := func(load, store string) {
		a.f(load, "SI", "Z0")
		a.roundTo(0, 1)
		a.f(store)
	}
	a.label("loop")
	a.f("CMPQ CX, $16")
	a.f("JLT tail")
	body("VMOVUPS (%s), %s", "VPMOVDW Z0, (DI)")
	a.f("ADDQ $64, SI")
	a.f("ADDQ $32, DI")
	a.f("SUBQ $16, CX")
	a.f("JMP loop")
	a.label("tail")
	a.f("TESTQ CX, CX")
	a.f("JZ done")
	a.mask()
	body("VMOVUPS.Z (%s), K1, %s", "VPMOVDW Z0, K1, (DI)")
	a.label("done")
	a.end()
}

// pairsWide writes pairs<t>Wide, the same chain with AVX2. The activations of a pair, for all rows, are ldx bytes
// from those of the next pair.
func (a *asm) pairsWide(t int) {
	a.fn(fmt.Sprintf("pairs%dWide", t), 48,
		fmt.Sprintf("func pairs%dWide(y *float32, ldy int, w, x *byte, ldx, pairs int)", t))
	a.f("MOVQ w+16(FP), DI")
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ ldx+32(FP), DX")
	a.f("MOVQ pairs+40(FP), CX")
	a.constant256(0xffff0000, 15)
	for i := range 2 * t {
		a.f("VPXOR Y%d, Y%d, Y%d", i, i, i)
	}
	a.label("loop")
	for h := range 2 {
		a.f("VMOVDQU %d(DI), Y%d", 32*h, 8+h)
		a.f("VPAND Y15, Y%d, Y%d", 8+h, 10+h) // odd inputs
		a.f("VPSLLD $16, Y%d, Y%d", 8+h, 8+h) // even inputs
	}
	for i := range t {
		a.f("VPBROADCASTD %d(BX), Y12", 4*i)
		a.f("VPAND Y15, Y12, Y13")
		a.f("VPSLLD $16, Y12, Y12")
		for h := range 2 {
			a.f("VFMADD231PS Y13, Y%d, Y%d", 10+h, 2*i+h)
			a.f("VFMADD231PS Y12, Y%d, Y%d", 8+h, 2*i+h)
		}
	}
	a.f("ADDQ $64, DI")
	a.f("ADDQ DX, BX")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ ldy+8(FP), SI")
	for i := range t {
		a.f("VMOVUPS Y%d, (DI)", 2*i)
		a.f("VMOVUPS Y%d, 32(DI)", 2*i+1)
		if i < t-1 {
			a.f("ADDQ SI, DI")
		}
	}
	a.end()
}

// roundPairsWide writes roundPairsWide, which rounds eight float32 at a time to bfloat16.
func (a *asm) roundPairsWide() {
	a.fn("roundPairsWide", 24, "func roundPairsWide(dst *uint16, x *float32, eights int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ eights+16(FP), CX")
	a.constant256(1, 15)
	a.constant256(0x7fff, 14)
	a.constant256(0x7fc0, 13)
	a.label("loop")
	a.f("VMOVUPS (SI), Y0")
	a.f("VCMPPS $3, Y0, Y0, Y2") // NaN
	a.f("VPSRLD $16, Y0, Y1")
	a.f("VPAND Y15, Y1, Y1")
	a.f("VPADDD Y14, Y1, Y1")
	a.f("VPADDD Y0, Y1, Y1")
	a.f("VPSRLD $16, Y1, Y1")
	a.f("VPBLENDVB Y2, Y13, Y1, Y1")
	a.f("VPACKUSDW Y1, Y1, Y1")
	a.f("VPERMQ $0xD8, Y1, Y1")
	a.f("VMOVDQU X1, (DI)")
	a.f("ADDQ $32, SI")
	a.f("ADDQ $16, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}
