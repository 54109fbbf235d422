package main

import "math"

// Functions of one value. They use correctly rounded operations only and none of the approximate instructions
// (ex2.approx, rcp.approx and their like), whose results differ between generations of cards and cannot be computed
// anywhere else. So a value has the same bits on every card and in the simulator.

// rounder is 1.5·2^23: a float32 of this size has no fraction bits, so adding it rounds to an integer, which is then in
// the low bits of the sum.
const rounder = 1<<23 + 1<<22

// Exp returns the exponential, with the operations of the CPU set's: within 2 units in the last place, zero below -86
// and exp(88) above 88.
func (k *Kernel) Exp(x F32) F32 {
	small := k.CmpF("lt", x, F(-86))
	none := k.pred("setp.nan.f32", x, x)
	v := k.FMin(x, F(88))
	shifted := k.FAdd(k.FMul(v, Fbits(0x3fb8aa3b)), F(rounder)) // 1/ln 2
	n := k.FNeg(k.FSub(shifted, F(rounder)))
	r := k.FMA(n, Fbits(0x3f317200), v) // ln 2 in two parts
	r = k.FMA(n, Fbits(0x35bfbe8e), r)
	p := k.NewF(Fbits(0x39500d01))
	for _, c := range []uint32{0x3ab60b61, 0x3c088889, 0x3d2aaaab, 0x3e2aaaab, 0x3f000000, 0x3f800000, 0x3f800000} {
		p = k.FMA(p, r, Fbits(c))
	}
	y := k.FromBits(k.Add(k.Bits(p), k.Shl(k.Bits(shifted), 23)))
	return k.SelectF(none, x, k.SelectF(small, F(0), y))
}

// Log returns the natural logarithm of a normal number, by Cephes' polynomial: within 2 units in the last place.
func (k *Kernel) Log(x F32) F32 {
	// x = 2^e·(1+f) with 1+f from sqrt(1/2) on.
	bits := k.Add(k.Bits(x), X(0x3f800000-0x3f3504f3))
	e := k.FromS(k.Sub(k.Shr(bits, 23), N(127)))
	f := k.FSub(k.FromBits(k.Add(k.And(bits, X(0x007fffff)), X(0x3f3504f3))), F(1))
	square := k.FMul(f, f)
	y := k.NewF(F(logarithm[0]))
	for _, c := range logarithm[1:] {
		y = k.FMA(y, f, F(c))
	}
	y = k.FMul(k.FMul(y, f), square)
	y = k.FMA(e, F(-2.12194440e-4), y)
	y = k.FMA(square, F(-0.5), y)
	return k.FMA(e, F(0.693359375), k.FAdd(f, y))
}

var logarithm = []float64{7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
	-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1}

// Sigmoid returns 1/(1+exp(-x)).
func (k *Kernel) Sigmoid(x F32) F32 { return k.FDiv(F(1), k.FAdd(F(1), k.Exp(k.FNeg(x)))) }

// Tanh returns the hyperbolic tangent: a polynomial near zero, else 1 - 2/(1+exp(2|x|)) with the sign of x.
func (k *Kernel) Tanh(x F32) F32 {
	size, square := k.FAbs(x), k.FMul(x, x)
	far := k.FSub(F(1), k.FDiv(F(2), k.FAdd(F(1), k.Exp(k.FAdd(size, size)))))
	near := k.NewF(F(tanhNear[0]))
	for _, c := range tanhNear[1:] {
		near = k.FMA(near, square, F(c))
	}
	near = k.FMA(k.FMul(near, square), x, x)
	return k.SelectF(k.CmpF("gt", size, F(tanhFrom)), k.withSign(far, x), near)
}

// tanhNear are the coefficients of (tanh(x)/x - 1)/x² in powers of x², the highest first, for |x| <= tanhFrom. It is a
// fit at the Chebyshev nodes in float64, as are those of erf(x)/x in powers of x² and of log(erfc(x))/x in powers of x.
var tanhNear = []float64{-0.006615746503, 0.02131273892, -0.05391006525, 0.1333311761, -0.3333333204}

const tanhFrom = 0.55

var erfNear = []float64{8.392181549e-05, -0.0008148385682, 0.005201581343, -0.02685964336, 0.1128370046, -0.376126341,
	1.128379167}

var erfFar = []float64{-1.5386519e-07, 3.712411436e-06, -3.776336782e-05, 0.0001958359123, -0.0003532628892,
	-0.002268340659, 0.02200922585, -0.1048741462, -0.635740773, -1.128539837}

const erfFrom = 0.92

// withSign returns size with the sign of x.
func (k *Kernel) withSign(size, x F32) F32 {
	return k.FromBits(k.Or(k.Bits(size), k.And(k.Bits(x), X(0x80000000))))
}

// Erf returns the error function: a polynomial near zero, else 1 - exp(a polynomial), with the sign of x.
func (k *Kernel) Erf(x F32) F32 {
	size, square := k.FAbs(x), k.FMul(x, x)
	bounded := k.FMin(size, F(4)) // erf(4) rounds to 1
	far := k.NewF(F(erfFar[0]))
	for _, c := range erfFar[1:] {
		far = k.FMA(far, bounded, F(c))
	}
	far = k.FSub(F(1), k.Exp(k.FMA(far, bounded, F(0))))
	near := k.NewF(F(erfNear[0]))
	for _, c := range erfNear[1:] {
		near = k.FMA(near, square, F(c))
	}
	near = k.FMul(near, x)
	y := k.SelectF(k.CmpF("gt", size, F(erfFrom)), k.withSign(far, x), near)
	return k.SelectF(k.pred("setp.nan.f32", x, x), x, y)
}

// Act returns an activation, named as in package kernel.
func (k *Kernel) Act(name string, x F32) F32 {
	switch name {
	case "silu":
		return k.FMul(x, k.Sigmoid(x))
	case "gelu_tanh": // 0.5·(1+tanh u) is sigmoid(2u)
		inner := k.FMul(x, k.FAdd(F(1), k.FMul(F(0.044715), k.FMul(x, x))))
		return k.FMul(x, k.Sigmoid(k.FMul(inner, F(2*math.Sqrt(2/math.Pi)))))
	}
	return k.FMul(x, k.FMul(F(0.5), k.FAdd(F(1), k.Erf(k.FMul(x, F(math.Sqrt2/2))))))
}
