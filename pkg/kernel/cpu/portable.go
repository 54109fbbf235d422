package cpu

import (
	"math"
	"unsafe"
)

// The loops in plain Go, with the lanes and the roundings of the assembly.

// lanes is the number of float32 in a vector of AVX-512, and the unit of every family's loops.
const lanes = 16

// portable returns the loops in plain Go.
func portable() ops {
	o := ops{
		name: "portable", probes: probes{read: readPortable}, quant: quantPortable(), pair: pairPortable(),
		dots4x4: plainDots(4, 4), dots1x4: plainDots(1, 4), dots1x1: plainDots(1, 1),
		axpy: func(y, x *float32, n int, s float32) {
			out := unsafe.Slice(y, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] = fma32(s, v, out[i])
			}
		},
		add: func(y, x *float32, n int) {
			out := unsafe.Slice(y, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] += v
			}
		},
		exp: func(dst, src *float32, n int, s, sub float32) {
			out := unsafe.Slice(dst, n)
			for i, v := range unsafe.Slice(src, n) {
				out[i] = exp32(float32(v*s) - sub)
			}
		},
		dot: func(a, b *float32, n int) float32 {
			var acc [lanes]float32
			y := unsafe.Slice(b, n)
			for i, v := range unsafe.Slice(a, n) {
				acc[i%lanes] = fma32(v, y[i], acc[i%lanes])
			}
			return fold(&acc)
		},
		sum: func(x *float32, n int) float32 {
			var acc [lanes]float32
			for i, v := range unsafe.Slice(x, n) {
				acc[i%lanes] += v
			}
			return fold(&acc)
		},
		max: func(x *float32, n int) float32 {
			best := *x
			for _, v := range unsafe.Slice(x, n) {
				best = max(best, v)
			}
			return best
		},
	}
	o.attend, o.element, o.gemm, o.train = attendPortable(), elementsPortable(), gemmPortable(), trainPortable()
	o.cache = cachePortable()
	o.pairs = pairsPortable()
	o.train.rowDots, o.train.moments = rowDotsOf(&o), momentsOf(&o)
	o.attend.weigh = weighOf(&o)
	return o
}

// fold adds the high half of the lanes to the low half until one is left.
func fold(acc *[lanes]float32) float32 {
	for half := lanes / 2; half > 0; half /= 2 {
		for i := range half {
			acc[i] += acc[i+half]
		}
	}
	return acc[0]
}

// plainDots returns out[t][n] = x·w for t rows of x and n rows of w.
func plainDots(t, n int) func(out, x *float32, ldx int, w *float32, ldw, k int) {
	return func(out, x *float32, ldx int, w *float32, ldw, k int) {
		results := unsafe.Slice(out, t*n)
		for i := range t {
			a := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(x), i*ldx)), k)
			for j := range n {
				b := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(w), j*ldw)), k)
				var acc [lanes]float32
				for p, v := range a {
					acc[p%lanes] = fma32(v, b[p], acc[p%lanes])
				}
				results[i*n+j] = fold(&acc)
			}
		}
	}
}

// exp32 computes the exponential as the assembly does: within 2 units in the last place, zero below
// -86, and exp(88) above 88.
func exp32(x float32) float32 {
	if x < -86 {
		return 0
	}
	x = min(x, 88)
	n := float32(math.RoundToEven(float64(x * math.Float32frombits(0x3fb8aa3b))))
	r := fma32(-n, math.Float32frombits(0x3f317200), x)
	r = fma32(-n, math.Float32frombits(0x35bfbe8e), r)
	p := math.Float32frombits(0x39500d01)
	for _, c := range [...]uint32{0x3ab60b61, 0x3c088889, 0x3d2aaaab, 0x3e2aaaab, 0x3f000000, 0x3f800000, 0x3f800000} {
		p = fma32(p, r, math.Float32frombits(c))
	}
	if n != n {
		return n
	}
	return math.Float32frombits(math.Float32bits(p) + uint32(int32(n))<<23)
}
