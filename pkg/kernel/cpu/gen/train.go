package main

import (
	"fmt"
	"math"
)

// Loops that only training needs, written for both families as those of elementwise.go are.

// prefetchDistance is how many bytes ahead loops that stream through memory prefetch. The hardware prefetchers of some
// processors do not run far enough ahead along several streams.
const prefetchDistance = 2048

// training writes the loops of training.
func training(a *asm) {
	a.expData()
	a.geluData()
	a.data("normalDensity", math.Float32bits(float32(1/math.Sqrt(2*math.Pi))))
	a.data("geluSlope", 0x3e095d4f) // 3·0.044715
	a.data("geluTwice", 0x3fcc422a) // 2·sqrt(2/π)
	a.loop("scoreSlopes", []string{"dw", "w"}, []string{"scale", "lse", "delta"}, func(w *wide) {
		w.load("SI", 0)
		w.op("VMULPS", 12, 0, 0)
		w.op("VSUBPS", 13, 0, 0)
		w.exp()
		w.store(2, "SI")
		w.load("DI", 4)
		w.op("VSUBPS", 14, 4, 4)
		w.op("VMULPS", 2, 4, 4)
		w.op("VMULPS", 12, 4, 4)
		w.store(4, "DI")
	})
	for _, act := range []struct {
		name        string
		emit, slope func(w *wide)
	}{
		{"silu", (*wide).silu, (*wide).siluSlope}, {"gelu", (*wide).gelu, (*wide).geluSlope},
		{"geluExact", (*wide).geluExact, (*wide).geluExactSlope},
	} {
		a.loop(act.name+"Grad", []string{"dx", "y", "dy", "x"}, nil, func(w *wide) {
			w.load("R8", 4)
			act.emit(w)
			act.slope(w)
			w.load("DX", 5)
			w.op("VMULPS", 2, 4, 2)
			w.op("VMULPS", 5, 0, 0)
			w.store(2, "SI")
			w.store(0, "DI")
		})
		a.loop(act.name+"TimesGrad", []string{"dx", "dup", "y", "dy", "x", "up"}, nil, func(w *wide) {
			w.load("R9", 4)
			act.emit(w)
			act.slope(w)
			w.load("R8", 5)
			w.op("VMULPS", 2, 4, 7) // act(x)
			w.load("R10", 6)
			w.op("VMULPS", 6, 7, 2)
			w.op("VMULPS", 5, 7, 7)
			w.op("VMULPS", 5, 6, 6)
			w.op("VMULPS", 0, 6, 6)
			w.store(2, "DX")
			w.store(7, "SI")
			w.store(6, "DI")
		})
	}
	a.loop("normSlopes", []string{"dx", "x", "dy", "gain"}, []string{"mean", "inv", "meanE", "meanEN"}, func(w *wide) {
		w.load("SI", 0)
		w.op("VSUBPS", 12, 0, 0)
		w.op("VMULPS", 13, 0, 0)
		w.load("DX", 1)
		w.load("R8", 2)
		w.op("VMULPS", 2, 1, 1)
		w.op("VSUBPS", 14, 1, 1)
		w.op("VMULPS", 15, 0, 0)
		w.op("VSUBPS", 0, 1, 1)
		w.op("VMULPS", 13, 1, 1)
		w.load("DI", 0)
		w.op("VADDPS", 0, 1, 1)
		w.store(1, "DI")
	})
	a.rowDots()
	a.rowMoments()
	causalLoops(a)
	for _, bits := range []int{512, 256} {
		a.normMeans(bits)
		a.normColumns(bits)
		a.sumColumns(bits, 1)
		a.sumColumns(bits, 8)
		a.sumSquares(bits)
		a.adamw(bits)
	}
}

// siluSlope and geluSlope set r0 to the derivative of the activation at r4, whose gate is in r2.
func (w *wide) siluSlope() {
	w.f("VMOVUPS expOne<>(SB), %s", w.reg(0))
	w.op("VSUBPS", 2, 0, 0)
	w.op("VMULPS", 4, 0, 0)
	w.with("VADDPS", "expOne", 0, 0)
	w.op("VMULPS", 2, 0, 0)
}

func (w *wide) geluSlope() {
	w.op("VMULPS", 4, 4, 1)
	w.with("VMULPS", "geluSlope", 1, 1)
	w.with("VADDPS", "expOne", 1, 1)
	w.with("VMULPS", "geluTwice", 1, 1)
	w.f("VMOVUPS expOne<>(SB), %s", w.reg(0))
	w.op("VSUBPS", 2, 0, 0)
	w.op("VMULPS", 2, 0, 0)
	w.op("VMULPS", 4, 0, 0)
	w.op("VMULPS", 1, 0, 0)
	w.op("VADDPS", 2, 0, 0)
}

// vectors calls body for each vector of a group of 16: one with AVX-512, two with AVX2.
func (w *wide) vectors(body func(h int)) {
	n := 1
	if w.bits == 256 {
		n = 2
	}
	for h := range n {
		w.half = h
		body(h)
	}
}

// rowDots writes rowDots: out[i] = a·b for rows that are lda and ldb bytes apart, summed in canonical lanes.
func (a *asm) rowDots() {
	a.fn("rowDots", 56, "func rowDots(out, a *float32, lda int, b *float32, ldb, n, rows int)")
	a.f("MOVQ n+40(FP), CX")
	a.f("MOVQ CX, R10")
	a.f("ANDQ $15, CX")
	a.mask() // the lanes of the last vector
	a.f("SHRQ $4, R10")
	a.f("MOVQ out+0(FP), DI")
	a.f("MOVQ a+8(FP), SI")
	a.f("MOVQ lda+16(FP), R8")
	a.f("MOVQ b+24(FP), BX")
	a.f("MOVQ ldb+32(FP), R9")
	a.f("MOVQ rows+48(FP), R11")
	a.label("row")
	a.f("XORQ AX, AX")
	a.f("MOVQ R10, CX")
	a.f("VPXORD Z1, Z1, Z1")
	a.f("TESTQ CX, CX")
	a.f("JZ tail")
	a.label("loop")
	a.f("VMOVUPS (SI)(AX*1), Z0")
	a.f("VFMADD231PS (BX)(AX*1), Z0, Z1")
	a.f("ADDQ $64, AX")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.label("tail")
	a.f("VMOVUPS.Z (SI)(AX*1), K1, Z0")
	a.f("VMOVUPS.Z (BX)(AX*1), K1, Z2")
	a.f("VFMADD231PS Z2, Z0, Z1")
	a.fold(1)
	a.f("VMOVSS X1, (DI)")
	a.f("ADDQ $4, DI")
	a.f("ADDQ R8, SI")
	a.f("ADDQ R9, BX")
	a.f("DECQ R11")
	a.f("JNZ row")
	a.end()
}

// rowMoments writes rowMoments: for rows that are ld bytes apart, pairs of the mean and of the sum of squared
// differences from it, summed in canonical lanes.
func (a *asm) rowMoments() {
	a.fn("rowMoments", 40, "func rowMoments(stats, x *float32, ld, n, rows int)")
	a.f("MOVQ stats+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ ld+16(FP), R8")
	a.f("MOVQ n+24(FP), CX")
	a.f("MOVQ rows+32(FP), R9")
	a.f("VXORPS X4, X4, X4")
	a.f("VCVTSI2SSQ CX, X4, X4")
	a.f("MOVQ CX, BX")
	a.f("SHRQ $4, BX")
	a.f("ANDQ $15, CX")
	a.mask() // the lanes of the last vector
	a.label("row")
	a.f("VPXORD Z1, Z1, Z1")
	a.f("MOVQ SI, DX")
	a.wholeVectors("sum", []string{"DX"}, func() {
		a.f("PREFETCHT0 %d(DX)", prefetchDistance)
		a.f("VADDPS (DX), Z1, Z1")
	})
	a.f("VMOVUPS.Z (DX), K1, Z0")
	a.f("VADDPS Z0, Z1, Z1")
	a.fold(1)
	a.f("VDIVSS X4, X1, X1")
	a.f("VMOVSS X1, (DI)")
	a.f("VBROADCASTSS X1, Z1")
	a.f("VPXORD Z2, Z2, Z2")
	a.f("MOVQ SI, DX")
	a.wholeVectors("squares", []string{"DX"}, func() {
		a.f("VMOVUPS (DX), Z0")
		a.f("VSUBPS Z1, Z0, Z0")
		a.f("VFMADD231PS Z0, Z0, Z2")
	})
	a.f("VMOVUPS.Z (DX), K1, Z0")
	a.f("VSUBPS.Z Z1, Z0, K1, Z0")
	a.f("VFMADD231PS Z0, Z0, Z2")
	a.fold(2)
	a.f("VMOVSS X2, 4(DI)")
	a.f("ADDQ $8, DI")
	a.f("ADDQ R8, SI")
	a.f("DECQ R9")
	a.f("JNZ row")
	a.end()
}

// normMeans writes normMeans: lanes += e and lanes[16:] += e·n over groups of 16, where
// e = dy·g and n = (x - mean)·inv.
func (a *asm) normMeans(bits int) {
	w := &wide{asm: a, bits: bits}
	name := "normMeans" + suffix(bits)
	a.fn(name, 48, "func "+name+"(lanes, x, dy, gain *float32, groups int, mean, inv float32)")
	a.f("MOVQ lanes+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ dy+16(FP), DX")
	a.f("MOVQ gain+24(FP), R8")
	a.f("MOVQ groups+32(FP), CX")
	a.f("VBROADCASTSS mean+40(FP), %s", w.reg(12))
	a.f("VBROADCASTSS inv+44(FP), %s", w.reg(13))
	w.vectors(func(h int) {
		a.f("VMOVUPS %d(DI), %s", 32*h, w.reg(8+h))
		a.f("VMOVUPS %d(DI), %s", 64+32*h, w.reg(10+h))
	})
	a.label("loop")
	w.vectors(func(h int) {
		w.load("SI", 0)
		w.op("VSUBPS", 12, 0, 0)
		w.op("VMULPS", 13, 0, 0)
		w.load("DX", 1)
		w.load("R8", 2)
		w.op("VMULPS", 2, 1, 1)
		w.op("VADDPS", 1, 8+h, 8+h)
		w.op("VFMADD231PS", 0, 1, 10+h)
	})
	for _, r := range []string{"SI", "DX", "R8"} {
		a.f("ADDQ $64, %s", r)
	}
	a.f("DECQ CX")
	a.f("JNZ loop")
	w.vectors(func(h int) {
		a.f("VMOVUPS %s, %d(DI)", w.reg(8+h), 32*h)
		a.f("VMOVUPS %s, %d(DI)", w.reg(10+h), 64+32*h)
	})
	a.end()
}

// normColumns writes normColumns: dg += dy·n and db += dy for 16 columns of rows that are ld bytes apart. stats has
// pairs of the mean and the inverse standard deviation of each row.
func (a *asm) normColumns(bits int) {
	w := &wide{asm: a, bits: bits}
	name := "normColumns" + suffix(bits)
	a.fn(name, 56, "func "+name+"(dg, db, x, dy *float32, ld, rows int, stats *float32)")
	a.f("MOVQ x+16(FP), SI")
	a.f("MOVQ dy+24(FP), DX")
	a.f("MOVQ ld+32(FP), R8")
	a.f("MOVQ rows+40(FP), CX")
	a.f("MOVQ stats+48(FP), R9")
	a.f("MOVQ dg+0(FP), DI")
	a.f("MOVQ db+8(FP), BX")
	w.vectors(func(h int) {
		w.load("DI", 8+h)
		w.load("BX", 10+h)
	})
	a.label("loop")
	a.f("VBROADCASTSS (R9), %s", w.reg(12))
	a.f("VBROADCASTSS 4(R9), %s", w.reg(13))
	w.vectors(func(h int) {
		w.load("SI", 0)
		w.op("VSUBPS", 12, 0, 0)
		w.op("VMULPS", 13, 0, 0)
		w.load("DX", 1)
		w.op("VFMADD231PS", 0, 1, 8+h)
		w.op("VADDPS", 1, 10+h, 10+h)
	})
	a.f("ADDQ R8, SI")
	a.f("ADDQ R8, DX")
	a.f("ADDQ $8, R9")
	a.f("DECQ CX")
	a.f("JNZ loop")
	w.vectors(func(h int) {
		w.store(8+h, "DI")
		w.store(10+h, "BX")
	})
	a.end()
}

// sumColumns writes sumColumns<columns>: y += x for groups of 16 columns of rows that are ld bytes apart. Eight groups
// are read contiguously, which suits the hardware prefetcher.
func (a *asm) sumColumns(bits, groups int) {
	w := &wide{asm: a, bits: bits}
	name := fmt.Sprintf("sumColumns%d%s", 16*groups, suffix(bits))
	a.fn(name, 32, "func "+name+"(y, x *float32, ld, rows int)")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ ld+16(FP), R8")
	a.f("MOVQ rows+24(FP), CX")
	vectors := 16 * groups * 32 / bits
	for v := range vectors {
		a.f("VMOVUPS %d(DI), %s", bits/8*v, w.reg(v))
	}
	a.label("loop")
	for v := range vectors {
		a.f("VADDPS %d(SI), %s, %s", bits/8*v, w.reg(v), w.reg(v))
	}
	a.f("ADDQ R8, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	for v := range vectors {
		a.f("VMOVUPS %s, %d(DI)", w.reg(v), bits/8*v)
	}
	a.end()
}

// sumSquares writes sumSquares: x² of groups of 16 elements is added to 16 lanes of float64.
func (a *asm) sumSquares(bits int) {
	w := &wide{asm: a, bits: bits}
	name := "sumSquares" + suffix(bits)
	a.fn(name, 24, "func "+name+"(lanes *float64, x *float32, groups int)")
	a.f("MOVQ lanes+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ groups+16(FP), CX")
	vectors, size, part := 2, 64, "Y"
	if bits == 256 {
		vectors, size, part = 4, 32, "X"
	}
	for v := range vectors {
		a.f("VMOVUPD %d(DI), %s", size*v, w.reg(v))
	}
	a.label("loop")
	a.f("PREFETCHT0 %d(SI)", prefetchDistance)
	for v := range vectors {
		a.f("VMOVUPS %d(SI), %s%d", size/2*v, part, 4+v)
		a.f("VCVTPS2PD %s%d, %s", part, 4+v, w.reg(4+v))
		w.op("VFMADD231PD", 4+v, 4+v, v)
	}
	a.f("ADDQ $64, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	for v := range vectors {
		a.f("VMOVUPD %s, %d(DI)", w.reg(v), size*v)
	}
	a.end()
}

// adamw writes adamwStep, which updates groups of 16 weights. Each constant is repeated 16 times: the scale of the
// gradient, beta1, 1-beta1, beta2, 1-beta2, the step size, the factor of the second moment under the root, epsilon,
// and the factor of the weight (one minus its decay).
func (a *asm) adamw(bits int) {
	w := &wide{asm: a, bits: bits}
	name := "adamwStep" + suffix(bits)
	a.fn(name, 48, "func "+name+"(p, m, v, grad *float32, groups int, constants *[9][16]float32)")
	for i, r := range []string{"DI", "SI", "DX", "R8"} {
		a.f("MOVQ %s+%d(FP), %s", []string{"p", "m", "v", "grad"}[i], 8*i, r)
	}
	a.f("MOVQ groups+32(FP), CX")
	a.f("MOVQ constants+40(FP), R9")
	constant := func(op string, i, b, out int) {
		a.f("%s %d(R9), %s, %s", op, 64*i, w.reg(b), w.reg(out))
	}
	a.label("loop")
	for _, r := range []string{"DI", "SI", "DX", "R8"} {
		a.f("PREFETCHT0 %d(%s)", prefetchDistance, r)
	}
	w.vectors(func(int) {
		w.load("R8", 0)
		constant("VMULPS", 0, 0, 0)
		w.load("SI", 1)
		constant("VMULPS", 1, 1, 1)
		constant("VMULPS", 2, 0, 2)
		w.op("VADDPS", 2, 1, 1)
		w.store(1, "SI")
		w.load("DX", 3)
		constant("VMULPS", 3, 3, 3)
		constant("VMULPS", 4, 0, 2)
		w.op("VMULPS", 0, 2, 2)
		w.op("VADDPS", 2, 3, 3)
		w.store(3, "DX")
		constant("VMULPS", 6, 3, 3)
		w.f("VSQRTPS %s, %s", w.reg(3), w.reg(3))
		constant("VADDPS", 7, 3, 3)
		constant("VMULPS", 5, 1, 1)
		w.op("VDIVPS", 3, 1, 1)
		w.load("DI", 4)
		constant("VMULPS", 8, 4, 4)
		w.op("VSUBPS", 1, 4, 4)
		w.store(4, "DI")
	})
	for _, r := range []string{"DI", "SI", "DX", "R8"} {
		a.f("ADDQ $64, %s", r)
	}
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// expData defines the constants of the exponential and of the activations.
func (a *asm) expData() {
	names := []string{"expLog2", "expLn2a", "expLn2b"}
	for i, c := range expConstants {
		if i < 3 {
			a.data(names[i], c)
			continue
		}
		a.data(fmt.Sprintf("expPoly%d", i-3), c)
	}
	a.data("expMin", expMin)
	a.data("expMax", expMax)
	a.data("expOne", 0x3f800000)
	a.data("minusOne", 0xbf800000)
	a.data("geluCube", 0x3d372713)
	a.data("minusGelu", 0xbfcc422a)
}
