package main

// Loops over rows with AVX2. They take whole groups of 16 elements; Go code with the same roundings processes the last
// ones. Reductions keep 16 lanes in two registers, which correspond to one register of AVX-512.

// vectors writes the loops.
func vectors(a *asm) {
	groups := func(name, comment string, args int, slices []string, prepare, body func()) {
		a.fn(name, args, "func "+name+comment)
		regs := []string{"DI", "SI", "DX"}
		for i, s := range slices {
			a.f("MOVQ %s+%d(FP), %s", s, 8*i, regs[i])
		}
		a.f("MOVQ groups+%d(FP), CX", 8*len(slices))
		prepare()
		a.label("loop")
		body()
		for i := range slices {
			a.f("ADDQ $64, %s", regs[i])
		}
		a.f("DECQ CX")
		a.f("JNZ loop")
	}
	groups("axpyWide", "(y, x *float32, groups int, s float32)", 28, []string{"y", "x"}, func() {
		a.f("VBROADCASTSS s+24(FP), Y4")
	}, func() {
		for h := range 2 {
			a.f("VMOVUPS %d(DI), Y%d", 32*h, h)
			a.f("VFMADD231PS %d(SI), Y4, Y%d", 32*h, h)
			a.f("VMOVUPS Y%d, %d(DI)", h, 32*h)
		}
	})
	a.end()
	groups("addWide", "(y, x *float32, groups int)", 24, []string{"y", "x"}, func() {}, func() {
		for h := range 2 {
			a.f("VMOVUPS %d(DI), Y%d", 32*h, h)
			a.f("VADDPS %d(SI), Y%d, Y%d", 32*h, h, h)
			a.f("VMOVUPS Y%d, %d(DI)", h, 32*h)
		}
	})
	a.end()
	a.fn("dotWide", 32, "func dotWide(lanes, a, b *float32, groups int): adds to lanes[16]")
	a.f("MOVQ lanes+0(FP), DI")
	a.f("MOVQ a+8(FP), SI")
	a.f("MOVQ b+16(FP), DX")
	a.f("MOVQ groups+24(FP), CX")
	a.f("VMOVUPS (DI), Y0")
	a.f("VMOVUPS 32(DI), Y1")
	a.label("loop")
	for h := range 2 {
		a.f("VMOVUPS %d(SI), Y%d", 32*h, 2+h)
		a.f("VFMADD231PS %d(DX), Y%d, Y%d", 32*h, 2+h, h)
	}
	a.f("ADDQ $64, SI")
	a.f("ADDQ $64, DX")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.f("VMOVUPS Y0, (DI)")
	a.f("VMOVUPS Y1, 32(DI)")
	a.end()
	for _, r := range []struct{ name, op string }{{"sumWide", "VADDPS"}, {"maxWide", "VMAXPS"}} {
		a.fn(r.name, 24, "func "+r.name+"(lanes, x *float32, groups int): reduces into lanes[16]")
		a.f("MOVQ lanes+0(FP), DI")
		a.f("MOVQ x+8(FP), SI")
		a.f("MOVQ groups+16(FP), CX")
		a.f("VMOVUPS (DI), Y0")
		a.f("VMOVUPS 32(DI), Y1")
		a.label("loop")
		for h := range 2 {
			a.f("%s %d(SI), Y%d, Y%d", r.op, 32*h, h, h)
		}
		a.f("ADDQ $64, SI")
		a.f("DECQ CX")
		a.f("JNZ loop")
		a.f("VMOVUPS Y0, (DI)")
		a.f("VMOVUPS Y1, 32(DI)")
		a.end()
	}
	groups("expWide", "(dst, src *float32, groups int, s, sub float32)", 32, []string{"dst", "src"}, func() {
		a.f("VBROADCASTSS s+24(FP), Y14")
		a.f("VBROADCASTSS sub+28(FP), Y15")
		for i, c := range expConstants[:8] {
			a.constant256(c, 6+i)
		}
	}, func() {
		for h := range 2 {
			a.f("VMULPS %d(SI), Y14, Y0", 32*h)
			a.f("VSUBPS Y15, Y0, Y0")
			a.constant256(expMin, 5)
			a.f("VCMPPS $1, Y5, Y0, Y4") // x < the minimum: the result is zero
			a.constant256(expMax, 5)
			a.f("VMINPS Y0, Y5, Y0")
			a.f("VMULPS Y6, Y0, Y1")
			a.f("VROUNDPS $8, Y1, Y1")
			a.f("VFNMADD231PS Y7, Y1, Y0")
			a.f("VFNMADD231PS Y8, Y1, Y0")
			a.f("VMOVAPS Y9, Y2")
			for c := 10; c <= 13; c++ {
				a.f("VFMADD213PS Y%d, Y0, Y2", c)
			}
			for _, c := range expConstants[8:] {
				a.constant256(c, 5)
				a.f("VFMADD213PS Y5, Y0, Y2")
			}
			a.f("VCVTPS2DQ Y1, Y1")
			a.f("VPSLLD $23, Y1, Y1")
			a.f("VPADDD Y1, Y2, Y2")
			a.f("VANDNPS Y2, Y4, Y2")
			a.f("VMOVUPS Y2, %d(DI)", 32*h)
		}
	})
	a.end()
}

// expConstants are log2 e, ln 2 in two parts, and the coefficients of the polynomial from 1/5040 to 1, 1.
var expConstants = []uint32{
	0x3fb8aa3b, 0x3f317200, 0x35bfbe8e,
	0x39500d01, 0x3ab60b61, 0x3c088889, 0x3d2aaaab, 0x3e2aaaab, 0x3f000000, 0x3f800000, 0x3f800000,
}

// Bounds of the argument of the exponential. Below expMin the result is zero, so that no result is subnormal. Above
// expMax it is that of expMax, so that no result is infinite.
const (
	expMin = 0xc2ac0000 // -86
	expMax = 0x42b00000 // 88
)
