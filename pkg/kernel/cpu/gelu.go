package cpu

import "math"

// The exact GELU is x·Φ(x), where Φ is the distribution function of a normal variable. For a = |x|
//
//	Φ(-a) = exp(-a²/2) · t·P(t)   with t = 1/(1 + geluScale·a),
//
// and Φ(a) = 1 - Φ(-a). What exp leaves is nearly proportional to t, and P, a polynomial of degree 8, is within 2e-8
// of the rest (relative, a Remez fit up to a = 13.2, with Φ(0) = 0.5). Since nothing is subtracted for negative x, the
// tail keeps its relative precision: GELU is within 7 units in the last place down to -12.9. Below, Φ(x) is subnormal,
// and from -13.12 on zero.

// geluLimit bounds a, so that a² is finite; Φ(-a) is zero there.
const geluLimit = 14

// geluPoly are the coefficients of P, the highest power first. They and geluScale are also in gen/gelu.go.
var geluPoly = [...]float32{
	-0.02842718942, 0.1454878779, -0.2715697132, 0.1876176265, -0.03787003935, 0.1119045007, 0.1172138056, 0.1380239954,
	0.137619126,
}

const geluScale = 0.345

// normal32 returns Φ(x) and exp(-x²/2) as the assembly computes them.
func normal32(x float32) (phi, e float32) {
	a := min(float32(math.Abs(float64(x))), geluLimit)
	square := float32(a * a)
	lost := fma32(a, a, -square) // what rounding the square has lost, which exp would multiply
	e = exp32(float32(square * -0.5))
	e = fma32(float32(lost*-0.5), e, e)
	t := 1 / fma32(a, geluScale, 1)
	p := geluPoly[0]
	for _, c := range geluPoly[1:] {
		p = fma32(p, t, c)
	}
	phi = float32(float32(p*t) * e)
	if math.Signbit(float64(x)) {
		return phi, e
	}
	return 1 - phi, e
}
