package main

import "fmt"

// Elementwise loops, written once for both families. A pass has 16 elements, in one vector of AVX-512 or in two of
// AVX2, and reads constants from memory. The AVX2 loops take whole groups of 16; Go code with the same roundings
// processes the last elements.

// wide writes the passes of one loop for registers of a width.
type wide struct {
	*asm
	bits int
	half int  // AVX2: which 8 of the 16 elements
	mask bool // AVX-512: the pass over the last elements, under mask K1
}

// reg returns the name of vector r.
func (w *wide) reg(r int) string {
	if w.bits == 512 {
		return fmt.Sprintf("Z%d", r)
	}
	return fmt.Sprintf("Y%d", r)
}

// op writes an instruction with three registers.
func (w *wide) op(name string, a, b, out int) {
	w.f("%s %s, %s, %s", name, w.reg(a), w.reg(b), w.reg(out))
}

// with writes an instruction whose first operand is a constant in memory.
func (w *wide) with(name, constant string, b, out int) {
	w.f("%s %s<>(SB), %s, %s", name, constant, w.reg(b), w.reg(out))
}

// load loads a vector, store stores one.
func (w *wide) load(ptr string, r int) {
	if w.mask {
		w.f("VMOVUPS.Z (%s), K1, %s", ptr, w.reg(r))
		return
	}
	w.f("VMOVUPS %d(%s), %s", 32*w.half, ptr, w.reg(r))
}

func (w *wide) store(r int, ptr string) {
	if w.mask {
		w.f("VMOVUPS %s, K1, (%s)", w.reg(r), ptr)
		return
	}
	w.f("VMOVUPS %s, %d(%s)", w.reg(r), 32*w.half, ptr)
}

// exp sets r2 to exp(r0), as exp in main.go does. r0, r1 and r3 are overwritten.
func (w *wide) exp() {
	if w.bits == 512 {
		w.f("VCMPPS $5, expMin<>(SB), Z0, K2") // x >= the minimum, or NaN
	} else {
		w.f("VCMPPS $1, expMin<>(SB), Y0, Y3") // x < the minimum: the result is zero
	}
	w.f("VMOVUPS expMax<>(SB), %s", w.reg(1))
	w.op("VMINPS", 0, 1, 0)
	w.with("VMULPS", "expLog2", 0, 1)
	if w.bits == 512 {
		w.f("VRNDSCALEPS $8, Z1, Z1")
	} else {
		w.f("VROUNDPS $8, Y1, Y1")
	}
	w.with("VFNMADD231PS", "expLn2a", 1, 0)
	w.with("VFNMADD231PS", "expLn2b", 1, 0)
	w.f("VMOVUPS expPoly0<>(SB), %s", w.reg(2))
	for i := 1; i < 8; i++ {
		w.with("VFMADD213PS", fmt.Sprintf("expPoly%d", i), 0, 2)
	}
	w.f("VCVTPS2DQ %s, %s", w.reg(1), w.reg(1))
	w.f("VPSLLD $23, %s, %s", w.reg(1), w.reg(1))
	if w.bits == 512 {
		w.f("VPADDD.Z Z1, Z2, K2, Z2")
	} else {
		w.f("VPADDD Y1, Y2, Y2")
		w.f("VANDNPS Y2, Y3, Y2")
	}
}

// sigmoid sets r2 to 1/(1+exp(-a·x)), where x is in r0 and the constant is -a.
func (w *wide) sigmoid(minus string) {
	w.with("VMULPS", minus, 0, 0)
	w.exp()
	w.with("VADDPS", "expOne", 2, 2)
	w.f("VMOVUPS expOne<>(SB), %s", w.reg(1))
	w.op("VDIVPS", 2, 1, 2)
}

// silu and gelu set r2 to the gate act(x)/x, where x is in r4.
func (w *wide) silu() {
	w.f("VMOVAPS %s, %s", w.reg(4), w.reg(0))
	w.sigmoid("minusOne")
}

func (w *wide) gelu() {
	w.op("VMULPS", 4, 4, 0)
	w.with("VMULPS", "geluCube", 0, 0)
	w.with("VADDPS", "expOne", 0, 0)
	w.op("VMULPS", 4, 0, 0)
	w.sigmoid("minusGelu")
}

// data defines a constant that fills a vector of 16 lanes.
func (a *asm) data(name string, bits uint32) {
	for i := range 16 {
		fmt.Fprintf(a, "DATA %s<>+%d(SB)/4, $0x%08x\n", name, 4*i, bits)
	}
	fmt.Fprintf(a, "GLOBL %s<>(SB), RODATA|NOPTR, $64\n", name)
}

// loop writes a loop over slices for both families; body loads and stores them. The scalar arguments, which follow
// the count, are broadcast to vectors 12 and on.
func (a *asm) loop(name string, slices, scalars []string, body func(w *wide)) {
	regs := []string{"DI", "SI", "DX", "R8", "R9", "R10"}
	for _, bits := range []int{512, 256} {
		w := &wide{asm: a, bits: bits}
		full := name + suffix(bits)
		comment := "func " + full + "("
		for i, s := range slices {
			if i > 0 {
				comment += ", "
			}
			comment += s
		}
		comment += " *float32, n int"
		for _, s := range scalars {
			comment += ", " + s + " float32"
		}
		a.fn(full, 8*len(slices)+8+4*len(scalars), comment+")")
		for i, s := range slices {
			a.f("MOVQ %s+%d(FP), %s", s, 8*i, regs[i])
		}
		a.f("MOVQ n+%d(FP), CX", 8*len(slices))
		for i, s := range scalars {
			a.f("VBROADCASTSS %s+%d(FP), %s", s, 8*len(slices)+8+4*i, w.reg(12+i))
		}
		a.label("loop")
		a.f("CMPQ CX, $16")
		a.f("JLT tail")
		body(w)
		if bits == 256 {
			w.half = 1
			body(w)
		}
		for i := range slices {
			a.f("ADDQ $64, %s", regs[i])
		}
		a.f("SUBQ $16, CX")
		a.f("JMP loop")
		a.label("tail")
		if bits == 512 {
			a.f("TESTQ CX, CX")
			a.f("JZ done")
			a.f("MOVL $1, AX")
			a.f("SHLL CX, AX")
			a.f("DECL AX")
			a.f("KMOVW AX, K1")
			w.mask = true
			body(w)
			a.label("done")
		}
		a.end()
	}
}

// elementwise writes the loops of inference.
func elementwise(a *asm) {
	a.expData()
	a.geluData()
	for _, act := range []struct {
		name string
		emit func(w *wide)
	}{{"silu", (*wide).silu}, {"gelu", (*wide).gelu}, {"geluExact", (*wide).geluExact}} {
		a.loop(act.name+"Of", []string{"y", "x"}, nil, func(w *wide) {
			w.load("SI", 4)
			act.emit(w)
			w.op("VMULPS", 2, 4, 2)
			w.store(2, "DI")
		})
		a.loop(act.name+"Times", []string{"y", "x", "up"}, nil, func(w *wide) {
			w.load("SI", 4)
			act.emit(w)
			w.op("VMULPS", 2, 4, 2)
			w.load("DX", 5)
			w.op("VMULPS", 5, 2, 2)
			w.store(2, "DI")
		})
	}
	a.loop("scaleTimes", []string{"y", "x", "gain"}, []string{"s"}, func(w *wide) { // (x·s)·g
		w.load("SI", 0)
		w.op("VMULPS", 12, 0, 0)
		w.load("DX", 1)
		w.op("VMULPS", 1, 0, 0)
		w.store(0, "DI")
	})
	// ((x-mean)·inv)·g + b
	a.loop("centreTo", []string{"y", "x", "gain", "bias"}, []string{"mean", "inv"}, func(w *wide) {
		w.load("SI", 0)
		w.op("VSUBPS", 12, 0, 0)
		w.op("VMULPS", 13, 0, 0)
		w.load("DX", 1)
		w.op("VMULPS", 1, 0, 0)
		w.load("R8", 1)
		w.op("VADDPS", 1, 0, 0)
		w.store(0, "DI")
	})
	a.loop("shiftTo", []string{"y", "x"}, []string{"s"}, func(w *wide) { // x - s
		w.load("SI", 0)
		w.op("VSUBPS", 12, 0, 0)
		w.store(0, "DI")
	})
	a.loop("scaleTo", []string{"y", "x"}, []string{"s"}, func(w *wide) { // x·s
		w.load("SI", 0)
		w.op("VMULPS", 12, 0, 0)
		w.store(0, "DI")
	})
	a.loop("rotatePairs", []string{"lo", "hi", "sin", "cos"}, []string{"direction"}, func(w *wide) {
		w.load("DX", 0)
		w.op("VMULPS", 12, 0, 0)
		w.load("R8", 1)
		w.load("DI", 2)
		w.load("SI", 3)
		w.op("VMULPS", 1, 2, 4)
		w.op("VMULPS", 0, 3, 5)
		w.op("VSUBPS", 5, 4, 4) // lo·cos - hi·sin
		w.op("VMULPS", 0, 2, 6)
		w.op("VMULPS", 1, 3, 7)
		w.op("VADDPS", 7, 6, 6) // lo·sin + hi·cos
		w.store(4, "DI")
		w.store(6, "SI")
	})
}
