package main

import "fmt"

// Operands of products that are rounded to bfloat16 while they are packed. For AVX-512, two numbers that are adjacent
// along the reduction share a lane. AVX2 has no product of pairs: the rounded numbers stay float32, and the two
// of each pair are swapped, because VDPBF16PS adds the product of the second first.

// pairPanels writes the loops that pack and round.
func pairPanels(a *asm) {
	for i := range 32 { // interleaves the words of a row with those of the next row
		fmt.Fprintf(a, "DATA pairWords<>+%d(SB)/2, $%d\n", 2*i, i/2+i%2*16)
	}
	fmt.Fprintln(a, "GLOBL pairWords<>(SB), RODATA|NOPTR, $64")
	a.panelHead("pairsOfRows", "thirtytwos")
	a.f("LEAQ (R8)(R8*2), R10")
	a.label("loop")
	a.f("MOVQ SI, AX")
	for i := 0; i < 16; i += 4 {
		for j := range 4 {
			at := []string{"", "(R8*1)", "(R8*2)", "(R10*1)"}[j]
			a.f("VMOVUPS (AX)%s, Z30", at)
			a.f("VMOVUPS 64(AX)%s, Z31", at)
			a.roundTwo(30, 31, i+j)
		}
		if i < 12 {
			a.f("LEAQ (AX)(R8*4), AX")
		}
	}
	a.transpose()
	for i := range 16 {
		a.f("VMOVUPS Z%d, (DI)", i)
		a.f("ADDQ DX, DI")
	}
	a.f("ADDQ $128, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()

	a.fn("pairsOfColumns", 48, "func pairsOfColumns(dst *float32, ldd int, src *float32, lds, rows, columns int)")
	a.f("MOVQ columns+40(FP), CX")
	a.mask()
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ ldd+8(FP), DX")
	a.f("MOVQ src+16(FP), SI")
	a.f("MOVQ lds+24(FP), R8")
	a.f("MOVQ rows+32(FP), CX")
	a.f("VMOVDQU16 pairWords<>(SB), Z3")
	row := func() {
		a.roundTwo(0, 1, 2)
		a.f("VPERMW Z2, Z3, Z2")
		a.f("VMOVUPS Z2, (DI)")
	}
	a.label("loop")
	a.f("CMPQ CX, $2")
	a.f("JLT tail")
	a.f("VMOVUPS.Z (SI), K1, Z0")
	a.f("VMOVUPS.Z (SI)(R8*1), K1, Z1")
	row()
	a.f("LEAQ (SI)(R8*2), SI")
	a.f("ADDQ DX, DI")
	a.f("SUBQ $2, CX")
	a.f("JMP loop")
	a.label("tail")
	a.f("TESTQ CX, CX")
	a.f("JZ done")
	a.f("VMOVUPS.Z (SI), K1, Z0")
	a.f("VPXORD Z1, Z1, Z1")
	row()
	a.label("done")
	a.end()

	a.fn("pairsOfRow", 24, "func pairsOfRow(dst, src *float32, n int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ src+8(FP), SI")
	a.f("MOVQ n+16(FP), CX")
	a.label("loop")
	a.f("CMPQ CX, $32")
	a.f("JLT tail")
	a.f("VMOVUPS (SI), Z0")
	a.f("VMOVUPS 64(SI), Z1")
	a.roundTwo(0, 1, 2)
	a.f("VMOVUPS Z2, (DI)")
	a.f("ADDQ $128, SI")
	a.f("ADDQ $64, DI")
	a.f("SUBQ $32, CX")
	a.f("JMP loop")
	a.label("tail")
	a.f("TESTQ CX, CX")
	a.f("JZ done")
	a.f("MOVQ $1, AX")
	a.f("SHLQ CX, AX")
	a.f("DECQ AX")
	a.f("KMOVD AX, K1")
	a.f("SHRQ $16, AX")
	a.f("KMOVD AX, K2")
	a.f("VMOVUPS.Z (SI), K1, Z0")
	a.f("VMOVUPS.Z 64(SI), K2, Z1")
	a.roundTwo(0, 1, 2)
	a.f("INCQ CX")
	a.f("SHRQ $1, CX")
	a.mask()
	a.f("VMOVUPS Z2, K1, (DI)")
	a.label("done")
	a.end()

	a.roundSwap()
	a.swaps()
}

// roundTwo is VCVTNE2PS2BF16: out holds vector low as bfloat16, followed by vector high.
func (a *asm) roundTwo(low, high, out int) {
	not := func(v, bit int) int { return v>>bit&1 ^ 1 }
	a.f(
		"BYTE $0x62; BYTE $0x%02x; BYTE $0x%02x; BYTE $0x%02x; "+
			"BYTE $0x72; BYTE $0x%02x // VCVTNE2PS2BF16 Z%d, Z%d, Z%d",
		not(out, 3)<<7|not(low, 4)<<6|not(low, 3)<<5|not(out, 4)<<4|2,
		(^high&15)<<3|1<<2|3,
		2<<5|not(high, 4)<<3,
		3<<6|out&7<<3|low&7,
		low,
		high,
		out,
	)
}

// roundSwap writes the loops for AVX2: roundRowsWide rounds pairs of rows of 16 columns in place and swaps the two
// rows, roundRowWide rounds the elements of a row and swaps the two of each pair.
func (a *asm) roundSwap() {
	constants := func() {
		a.constant256(1, 15)
		a.constant256(0x7fff, 14)
		a.constant256(0x7fc00000, 13)
		a.constant256(0x7f800000, 12)
		a.constant256(0xffff0000, 11)
		a.constant256(0x80000000, 10)
	}
	round := func(y int) { // Y4 to Y6 are scratch
		a.f("VCMPPS $3, Y%d, Y%d, Y4", y, y) // NaN
		a.f("VPSRLD $16, Y%d, Y5", y)
		a.f("VPAND Y15, Y5, Y5")
		a.f("VPADDD Y14, Y5, Y5")
		a.f("VPADDD Y%d, Y5, Y5", y)
		a.f("VPAND Y11, Y5, Y5")
		a.f("VPBLENDVB Y4, Y13, Y5, Y5")
		a.f("VPAND Y12, Y%d, Y6", y) // a subnormal number becomes a zero of the same sign
		a.f("VPXOR Y4, Y4, Y4")
		a.f("VPCMPEQD Y4, Y6, Y6")
		a.f("VPAND Y10, Y%d, Y4", y)
		a.f("VPBLENDVB Y6, Y4, Y5, Y%d", y)
	}
	a.fn("roundRowsWide", 24, "func roundRowsWide(p *float32, ld, pairs int)")
	a.f("MOVQ p+0(FP), DI")
	a.f("MOVQ ld+8(FP), DX")
	a.f("MOVQ pairs+16(FP), CX")
	constants()
	a.label("loop")
	for h := range 2 {
		a.f("VMOVUPS %d(DI), Y0", 32*h)
		a.f("VMOVUPS %d(DI)(DX*1), Y1", 32*h)
		round(0)
		round(1)
		a.f("VMOVUPS Y0, %d(DI)(DX*1)", 32*h)
		a.f("VMOVUPS Y1, %d(DI)", 32*h)
	}
	a.f("LEAQ (DI)(DX*2), DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()

	a.fn("roundRowWide", 24, "func roundRowWide(dst, src *float32, eights int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ src+8(FP), SI")
	a.f("MOVQ eights+16(FP), CX")
	constants()
	a.label("loop")
	a.f("VMOVUPS (SI), Y0")
	round(0)
	a.f("VPERMILPS $0xB1, Y0, Y0")
	a.f("VMOVUPS Y0, (DI)")
	a.f("ADDQ $32, SI")
	a.f("ADDQ $32, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// roundOne rounds vector z to bfloat16 and widens it again: VCVTNEPS2BF16 writes 16 words to the low half of t,
// which are then moved to the upper 16 bits of the lanes of z.
func (a *asm) roundOne(z, t int) {
	not := func(v, bit int) int { return v>>bit&1 ^ 1 }
	a.f("BYTE $0x62; BYTE $0x%02x; BYTE $0x7e; BYTE $0x48; BYTE $0x72; BYTE $0x%02x // VCVTNEPS2BF16 Z%d, Y%d",
		not(t, 3)<<7|not(z, 4)<<6|not(z, 3)<<5|not(t, 4)<<4|2, 3<<6|t&7<<3|z&7, z, t)
	a.f("VPMOVZXWD Y%d, Z%d", t, z)
	a.f("VPSLLD $16, Z%d, Z%d", z, z)
}

// swaps writes loops for processors with AVX-512 on which two fused multiply-adds are faster than VDPBF16PS. The
// rounded numbers stay float32, and the two of each pair are swapped. swapOfRows, swapOfColumns and swapOfRow pack
// operands, swapOfPairs widens packed pairs.
func (a *asm) swaps() {
	a.panelOfRows("swapOfRows", 1, func(z int) { a.roundOne(z, 16+z) })

	a.fn("swapOfColumns", 48, "func swapOfColumns(dst *float32, ldd int, src *float32, lds, rows, columns int)")
	a.f("MOVQ columns+40(FP), CX")
	a.mask()
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ ldd+8(FP), DX")
	a.f("MOVQ src+16(FP), SI")
	a.f("MOVQ lds+24(FP), R8")
	a.f("MOVQ rows+32(FP), CX")
	a.label("loop")
	a.f("CMPQ CX, $2")
	a.f("JLT tail")
	a.f("VMOVUPS.Z (SI), K1, Z0")
	a.f("VMOVUPS.Z (SI)(R8*1), K1, Z1")
	a.f("PREFETCHT0 96(SI)") // of the next columns
	a.f("PREFETCHT0 96(SI)(R8*1)")
	a.roundOne(0, 2)
	a.roundOne(1, 3)
	a.f("VMOVUPS Z1, (DI)")
	a.f("VMOVUPS Z0, (DI)(DX*1)")
	a.f("LEAQ (SI)(R8*2), SI")
	a.f("LEAQ (DI)(DX*2), DI")
	a.f("SUBQ $2, CX")
	a.f("JMP loop")
	a.label("tail")
	a.f("TESTQ CX, CX")
	a.f("JZ done")
	a.f("VMOVUPS.Z (SI), K1, Z0")
	a.roundOne(0, 2)
	a.f("VMOVUPS Z0, (DI)")
	a.label("done")
	a.end()

	a.fn("swapOfRow", 24, "func swapOfRow(dst, src *float32, sixteens int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ src+8(FP), SI")
	a.f("MOVQ sixteens+16(FP), CX")
	a.label("loop")
	a.f("VMOVUPS (SI), Z0")
	a.roundOne(0, 1)
	a.f("VPSHUFD $0xB1, Z0, Z0")
	a.f("VMOVUPS Z0, (DI)")
	a.f("ADDQ $64, SI")
	a.f("ADDQ $64, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()

	a.fn("swapOfPairs", 32, "func swapOfPairs(dst *float32, ldd int, src *byte, pairs int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ ldd+8(FP), DX")
	a.f("MOVQ src+16(FP), SI")
	a.f("MOVQ pairs+24(FP), CX")
	a.constant(0xffff0000, 31)
	a.label("loop")
	a.f("VMOVDQU32 (SI), Z0")
	a.f("VPANDD Z31, Z0, Z1")
	a.f("VPSLLD $16, Z0, Z0")
	a.f("VMOVUPS Z1, (DI)")
	a.f("VMOVUPS Z0, (DI)(DX*1)")
	a.f("LEAQ (DI)(DX*2), DI")
	a.f("ADDQ $64, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}
