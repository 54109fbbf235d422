package main

import (
	"fmt"
	"math"
)

// The exact GELU; gelu.go of package cpu says how it is computed.

// geluPoly are the coefficients of its polynomial, the highest power first.
var geluPoly = []float32{
	-0.02842718942, 0.1454878779, -0.2715697132, 0.1876176265, -0.03787003935, 0.1119045007, 0.1172138056, 0.1380239954,
	0.137619126,
}

const (
	geluScale = 0.345
	geluLimit = 14
)

// geluData defines its constants.
func (a *asm) geluData() {
	value := func(name string, v float32) { a.data(name, math.Float32bits(v)) }
	for i, c := range geluPoly {
		value(fmt.Sprintf("normalPoly%d", i), c)
	}
	value("normalScale", geluScale)
	value("normalLimit", geluLimit)
	value("minusHalf", -0.5)
	a.data("withoutSign", math.MaxInt32)
}

// geluExact sets r2 to the gate Φ(x) and r11 to exp(-x²/2), where x is in r4. r0, r1, r3 and r8 to r10 are overwritten.
func (w *wide) geluExact() {
	w.with("VANDPS", "withoutSign", 4, 8)
	w.f("VMOVUPS normalLimit<>(SB), %s", w.reg(0))
	w.op("VMINPS", 8, 0, 8) // NaN stays NaN
	w.op("VMULPS", 8, 8, 0)
	w.f("VMOVAPS %s, %s", w.reg(0), w.reg(10))
	w.op("VFMSUB231PS", 8, 8, 10) // what rounding the square has lost
	w.with("VMULPS", "minusHalf", 10, 10)
	w.with("VMULPS", "minusHalf", 0, 0)
	w.exp()
	w.f("VMOVAPS %s, %s", w.reg(2), w.reg(11))
	w.op("VFMADD231PS", 10, 2, 11)
	w.f("VMOVUPS expOne<>(SB), %s", w.reg(9))
	w.f("VMOVAPS %s, %s", w.reg(9), w.reg(0))
	w.with("VFMADD231PS", "normalScale", 8, 0)
	w.op("VDIVPS", 0, 9, 0)
	w.f("VMOVUPS normalPoly0<>(SB), %s", w.reg(1))
	for i := 1; i < len(geluPoly); i++ {
		w.with("VFMADD213PS", fmt.Sprintf("normalPoly%d", i), 0, 1)
	}
	w.op("VMULPS", 0, 1, 1)
	w.op("VMULPS", 11, 1, 1) // Φ(-|x|)
	w.op("VSUBPS", 1, 9, 2)  // Φ(|x|)
	if w.bits == 512 {
		w.f("VPMOVD2M Z4, K3")
		w.f("VMOVAPS Z1, K3, Z2")
		return
	}
	w.f("VBLENDVPS Y4, Y1, Y2, Y2")
}

// geluExactSlope sets r0 to the derivative Φ(x) + x·exp(-x²/2)/sqrt(2π), after geluExact.
func (w *wide) geluExactSlope() {
	w.op("VMULPS", 11, 4, 0)
	w.with("VMULPS", "normalDensity", 0, 0)
	w.op("VADDPS", 2, 0, 0)
}
