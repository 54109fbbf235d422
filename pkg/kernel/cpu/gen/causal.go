package main

import (
	"fmt"
	"math"
)

// Loops over the rows of scores of causal attention in training, with AVX-512. Row r of a block is r elements longer
// than the first row. The loops write zeros past the end of a row, because tiles read whole vectors there. The other
// families process one row at a time.

// causalLoops writes the loops.
func causalLoops(a *asm) {
	a.causalWeights()
	a.causalSlopes()
	a.logs()
}

// rowTail sets K1 to the lanes of the last, partial vector of a row, and BX to the number of whole vectors. R9 is
// the length of the row.
func (a *asm) rowTail() {
	a.f("MOVQ R9, CX")
	a.f("ANDQ $15, CX")
	a.mask()
	a.f("MOVQ R9, BX")
	a.f("SHRQ $4, BX")
}

// wholeVectors writes a loop over the whole vectors of a row. It advances the pointers.
func (a *asm) wholeVectors(name string, pointers []string, body func()) {
	a.f("MOVQ BX, CX")
	a.f("TESTQ CX, CX")
	a.f("JZ %sRest", name)
	a.label(name)
	body()
	for _, p := range pointers {
		a.f("ADDQ $64, %s", p)
	}
	a.f("DECQ CX")
	a.f("JNZ %s", name)
	a.label(name + "Rest")
}

// clearTail stores a vector of zeros after the partial vector of a row. If the length is a multiple of 16, the pass
// with the empty mask has already stored them.
func (a *asm) clearTail(pointers ...string) {
	a.f("TESTQ $15, R9")
	a.f("JZ cleared")
	a.f("VPXORD Z5, Z5, Z5")
	for _, p := range pointers {
		a.f("VMOVUPS Z5, 64(%s)", p)
	}
	a.label("cleared")
}

// causalWeights writes causalWeights, which is weighScores for rows that are ldx bytes apart:
// x = exp(scale·x - best), where best is the maximum of scale·x in the row, and the sum in canonical lanes.
func (a *asm) causalWeights() {
	w := &wide{asm: a, bits: 512}
	a.fn("causalWeights", 52, "func causalWeights(x *float32, ldx, n, rows int, best, sum *float32, scale float32)")
	a.f("MOVQ x+0(FP), SI")
	a.f("MOVQ ldx+8(FP), R8")
	a.f("MOVQ n+16(FP), R9")
	a.f("MOVQ rows+24(FP), R11")
	a.f("MOVQ best+32(FP), R12")
	a.f("MOVQ sum+40(FP), R13")
	a.f("VBROADCASTSS scale+48(FP), Z8")
	a.label("row")
	a.rowTail()
	a.f("VBROADCASTSS (SI), Z9")
	a.f("MOVQ SI, DI")
	a.wholeVectors("max", []string{"DI"}, func() { a.f("VMAXPS (DI), Z9, Z9") })
	a.f("VMOVAPS Z9, Z0")
	a.f("VMOVUPS (DI), K1, Z0")
	a.f("VMAXPS Z0, Z9, Z9")
	a.foldMax(9)
	a.f("VMULPS Z8, Z9, Z9")
	a.f("VMOVSS X9, (R12)")
	a.f("VPXORD Z7, Z7, Z7")
	a.f("MOVQ SI, DI")
	weights := func() {
		w.load("DI", 0)
		w.op("VMULPS", 8, 0, 0)
		w.op("VSUBPS", 9, 0, 0)
		w.exp()
		if w.mask {
			a.f("VMOVAPS.Z Z2, K1, Z2")
		}
		a.f("VMOVUPS Z2, (DI)")
		w.op("VADDPS", 2, 7, 7)
	}
	a.wholeVectors("loop", []string{"DI"}, weights)
	w.mask = true
	weights()
	a.clearTail("DI")
	a.fold(7)
	a.f("VMOVSS X7, (R13)")
	a.f("ADDQ R8, SI")
	a.f("INCQ R9")
	a.f("ADDQ $4, R12")
	a.f("ADDQ $4, R13")
	a.f("DECQ R11")
	a.f("JNZ row")
	a.end()
}

// causalSlopes writes causalSlopes, which is scoreSlopes for rows that are ld bytes apart. The log-sum-exps of the
// rows are step bytes apart.
func (a *asm) causalSlopes() {
	w := &wide{asm: a, bits: 512}
	a.fn("causalSlopes", 68,
		"func causalSlopes(dw, w *float32, ld, n, rows int, lse *float32, step int, delta *float32, scale float32)")
	a.f("MOVQ dw+0(FP), R12")
	a.f("MOVQ w+8(FP), R13")
	a.f("MOVQ ld+16(FP), R8")
	a.f("MOVQ n+24(FP), R9")
	a.f("MOVQ rows+32(FP), R11")
	a.f("MOVQ lse+40(FP), R10")
	a.f("MOVQ step+48(FP), R15")
	a.f("MOVQ delta+56(FP), AX")
	a.f("VBROADCASTSS scale+64(FP), Z12")
	a.label("row")
	a.rowTail()
	a.f("VBROADCASTSS (R10), Z13")
	a.f("VBROADCASTSS (AX), Z14")
	a.f("MOVQ R12, DI")
	a.f("MOVQ R13, SI")
	slopes := func() {
		w.load("SI", 0)
		w.op("VMULPS", 12, 0, 0)
		w.op("VSUBPS", 13, 0, 0)
		w.exp()
		w.load("DI", 4)
		w.op("VSUBPS", 14, 4, 4)
		w.op("VMULPS", 2, 4, 4)
		w.op("VMULPS", 12, 4, 4)
		if w.mask {
			a.f("VMOVAPS.Z Z2, K1, Z2")
			a.f("VMOVAPS.Z Z4, K1, Z4")
		}
		a.f("VMOVUPS Z2, (SI)")
		a.f("VMOVUPS Z4, (DI)")
	}
	a.wholeVectors("loop", []string{"DI", "SI"}, slopes)
	w.mask = true
	slopes()
	a.clearTail("DI", "SI")
	a.f("ADDQ R8, R12")
	a.f("ADDQ R8, R13")
	a.f("INCQ R9")
	a.f("ADDQ R15, R10")
	a.f("ADDQ $4, AX")
	a.f("DECQ R11")
	a.f("JNZ row")
	a.end()
}

// logs writes logsOf: the natural logarithms of positive normal numbers, computed as logOf in f32attend.go does:
// x is split into 2^e·m with m between sqrt(1/2) and sqrt(2), and log m is a series in (m-1)/(m+1).
func (a *asm) logs() {
	a.data64("logSqrtHalf", 0x3fe6a09e667f3bcd)
	a.data64("logOne", math.Float64bits(1))
	a.data64("logLn2", math.Float64bits(math.Ln2))
	a.data64("logTwo", math.Float64bits(2))
	odd := []int{15, 13, 11, 9, 7, 5, 3, 1}
	for _, n := range odd {
		a.data64(fmt.Sprintf("logPart%d", n), math.Float64bits(1/float64(n)))
	}
	a.fn("logsOf", 24, "func logsOf(y, x *float32, n int)")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ n+16(FP), R9")
	a.label("loop")
	a.f("MOVQ R9, CX")
	a.f("CMPQ CX, $8")
	a.f("JLE some")
	a.f("MOVQ $8, CX")
	a.label("some")
	a.mask()
	a.f("VMOVUPS.Z (SI), K1, Y0")
	a.f("VCVTPS2PD Y0, Z0")
	a.f("VPSUBQ logSqrtHalf<>(SB), Z0, Z1")
	a.f("VPSRAQ $52, Z1, Z1")
	a.f("VPSLLQ $52, Z1, Z2")
	a.f("VPSUBQ Z2, Z0, Z2") // m
	a.f("VCVTQQ2PD Z1, Z1")
	a.f("VSUBPD logOne<>(SB), Z2, Z3")
	a.f("VADDPD logOne<>(SB), Z2, Z4")
	a.f("VDIVPD Z4, Z3, Z3")
	a.f("VMULPD Z3, Z3, Z4")
	a.f("VMOVUPD logPart%d<>(SB), Z5", odd[0])
	for _, n := range odd[1:] {
		a.f("VMULPD Z4, Z5, Z5")
		a.f("VADDPD logPart%d<>(SB), Z5, Z5", n)
	}
	a.f("VMULPD logTwo<>(SB), Z3, Z3")
	a.f("VMULPD Z5, Z3, Z3")
	a.f("VMULPD logLn2<>(SB), Z1, Z1")
	a.f("VADDPD Z3, Z1, Z1")
	a.f("VCVTPD2PS Z1, Y1")
	a.f("VMOVUPS Y1, K1, (DI)")
	a.f("ADDQ $32, SI")
	a.f("ADDQ $32, DI")
	a.f("SUBQ $8, R9")
	a.f("JG loop")
	a.end()
}

// data64 defines a constant that fills a vector of eight lanes.
func (a *asm) data64(name string, bits uint64) {
	for i := range 8 {
		fmt.Fprintf(a, "DATA %s<>+%d(SB)/8, $0x%016x\n", name, 8*i, bits)
	}
	fmt.Fprintf(a, "GLOBL %s<>(SB), RODATA|NOPTR, $64\n", name)
}
