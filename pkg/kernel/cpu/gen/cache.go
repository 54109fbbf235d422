package main

import "fmt"

// Loops that convert between float32 and the types of KV caches, 16 elements at a time.

// caches writes the loops.
func caches(a *asm) {
	for _, bits := range []int{512, 256} {
		w := &wide{asm: a, bits: bits}
		w.pass("toFloat16", "dst *byte, src *float32, groups int", 32, 64, 0, func(half int) {
			w.f("VMOVUPS %d(SI), %s", 32*half, w.reg(0))
			w.f("VCVTPS2PH $0, %s, %d(DI)", w.reg(0), 16*half)
		})
		w.pass("fromFloat16", "dst *float32, src *byte, groups int", 64, 32, 0, func(half int) {
			w.f("VCVTPH2PS %d(SI), %s", 16*half, w.reg(0))
			w.f("VMOVUPS %s, %d(DI)", w.reg(0), 32*half)
		})
		w.pass("keysOfBytes", "dst *float32, src *byte, groups int, scales *float32", 64, 16, 64, func(half int) {
			w.f("VPMOVSXBD %d(SI), %s", 8*half, w.reg(0))
			w.f("VCVTDQ2PS %s, %s", w.reg(0), w.reg(0))
			w.op("VMULPS", 2+half, 0, 0)
			w.f("VMOVUPS %s, %d(DI)", w.reg(0), 32*half)
		})
		w.pass("valueOfBytes", "dst *float32, src *byte, groups int, scale *float32", 64, 16, 4, func(half int) {
			w.f("VPMOVSXBD %d(SI), %s", 8*half, w.reg(0))
			w.f("VCVTDQ2PS %s, %s", w.reg(0), w.reg(0))
			w.op("VMULPS", 2, 0, 0)
			w.f("VMOVUPS %s, %d(DI)", w.reg(0), 32*half)
		})
	}
}

// pass writes a loop over groups of 16 elements that advances by dst bytes of the destination and by src bytes of
// the source. scales is the size of the scales: 64 for one scale for each element, in vectors 2 and 3; 4 for a
// single one, in vector 2; 0 for none.
func (w *wide) pass(name, args string, dst, src, scales int, body func(half int)) {
	full, size := name+suffix(w.bits), 24
	if scales > 0 {
		size = 32
	}
	w.fn(full, size, fmt.Sprintf("func %s(%s)", full, args))
	w.f("MOVQ dst+0(FP), DI")
	w.f("MOVQ src+8(FP), SI")
	w.f("MOVQ groups+16(FP), CX")
	parts := 512 / w.bits
	switch scales {
	case 64:
		w.f("MOVQ scales+24(FP), DX")
		for h := range parts {
			w.f("VMOVUPS %d(DX), %s", 32*h, w.reg(2+h))
		}
	case 4:
		w.f("MOVQ scale+24(FP), DX")
		w.f("VBROADCASTSS (DX), %s", w.reg(2))
	}
	w.label("loop")
	for h := range parts {
		body(h)
	}
	w.f("ADDQ $%d, DI", dst)
	w.f("ADDQ $%d, SI", src)
	w.f("DECQ CX")
	w.f("JNZ loop")
	w.end()
}
