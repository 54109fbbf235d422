package cpu

import (
	"math"
	"unsafe"
)

// Plain Go with the lanes of the assembly. Products and sums are rounded apart
// where the assembly fuses them, so the bits are a class of their own.

const lanes = 16

func portable() ops {
	return ops{
		name: "portable", quant: quantPortable(), pair: pairPortable(), dots4x4: plainDots(4, 4), dots1x4: plainDots(1, 4), dots1x1: plainDots(1, 1),
		axpy: func(y, x *float32, n int, s float32) {
			out := unsafe.Slice(y, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] += float32(s * v)
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
				out[i] = float32(math.Exp(float64(float32(v*s) - sub)))
			}
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
}

// fold adds lanes 16 to 8 to 4 to 2 to 1.
func fold(acc *[lanes]float32) float32 {
	for half := lanes / 2; half > 0; half /= 2 {
		for i := range half {
			acc[i] += acc[i+half]
		}
	}
	return acc[0]
}

func plainDots(t, n int) func(out, x *float32, ldx int, w *float32, ldw, k int) {
	return func(out, x *float32, ldx int, w *float32, ldw, k int) {
		results := unsafe.Slice(out, t*n)
		for i := range t {
			a := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(x), i*ldx)), k)
			for j := range n {
				b := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(w), j*ldw)), k)
				var acc [lanes]float32
				for p, v := range a {
					acc[p%lanes] += float32(v * b[p])
				}
				results[i*n+j] = fold(&acc)
			}
		}
	}
}
