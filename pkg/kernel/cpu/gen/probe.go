package main

import "fmt"

// probe writes loops that measure the peak rates of the machine: independent products of registers, and reads of
// memory.
func probe(a *asm) {
	const chains = 12
	write := func(name string, step func(i int)) {
		a.fn(name, 8, fmt.Sprintf("func %s(n int)", name))
		a.f("MOVQ n+0(FP), CX")
		for i := range chains + 2 {
			a.f("VPXOR X%d, X%d, X%d", i, i, i)
		}
		a.label("loop")
		for i := range chains {
			step(i)
		}
		a.f("DECQ CX")
		a.f("JNZ loop")
		a.end()
	}
	for _, v := range []struct{ name, reg string }{{"512", "Z"}, {"256", "Y"}} {
		write("probeFMA"+v.name, func(i int) { a.f("VFMADD231PS %s12, %s13, %s%d", v.reg, v.reg, v.reg, i) })
	}
	write("probeVNNI512", func(i int) { a.f("VPDPBUSD Z12, Z13, Z%d", i) })
	write("probeWords256", func(i int) {
		a.f("VPMADDWD Y12, Y13, Y14")
		a.f("VPADDD Y14, Y%d, Y%d", i, i)
	})
	for _, v := range []struct {
		name, reg, or string
		size          int
	}{{"512", "Z", "VPORD", 64}, {"256", "Y", "VPOR", 32}} {
		// each of four lines of 64 bytes
		a.fn("probeRead"+v.name, 16, fmt.Sprintf("func probeRead%s(p *byte, quads int)", v.name))
		a.f("MOVQ p+0(FP), SI")
		a.f("MOVQ quads+8(FP), CX")
		a.label("loop")
		for i := range 256 / v.size {
			a.f("%s %d(SI), %s%d, %s%d", v.or, i*v.size, v.reg, i, v.reg, i)
		}
		a.f("ADDQ $256, SI")
		a.f("DECQ CX")
		a.f("JNZ loop")
		a.end()
	}
	write("probePairs512", func(i int) { a.dotPairsRegister(12, 13, i) })
}

// dotPairsRegister is VDPBF16PS zmm(acc), zmm(w), zmm(x) for registers below 16.
func (a *asm) dotPairsRegister(x, w, acc int) {
	not := func(bit int) int { return bit&1 ^ 1 }
	a.f("BYTE $0x62; BYTE $0x%02x; BYTE $0x%02x; BYTE $0x48; BYTE $0x52; BYTE $0x%02x // VDPBF16PS Z%d, Z%d, Z%d",
		not(acc>>3)<<7|1<<6|not(x>>3)<<5|1<<4|2, (^w&15)<<3|1<<2|2, 3<<6|acc&7<<3|x&7, x, w, acc)
}
