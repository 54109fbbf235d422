package cpu

import (
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// elementOps are the elementwise loops of one instruction family. Every operation is rounded as written.
type elementOps struct {
	act    [acts]func(y, x *float32, n int)                        // act(x); nil: computed from its gate
	glu    [acts]func(y, x, up *float32, n int)                    // act(x)·up; nil: computed from its gate
	norm   func(y, x, g *float32, n int, s float32)                // (x·s)·g
	shift  func(y, x *float32, n int, s float32)                   // x - s
	centre func(y, x, g, b *float32, n int, mean, inv float32)     // ((x-mean)·inv)·g + b
	scale  func(y, x *float32, n int, s float32)                   // x·s
	rotate func(lo, hi, sin, cos *float32, n int, forward float32) // rotates pairs by their angles; forward is 1 or -1
}

// acts is one more than the largest activation.
const acts = kernel.GELU + 1

// elementsPortable returns the loops in plain Go.
func elementsPortable() elementOps {
	return elementOps{
		norm: func(y, x, g *float32, n int, s float32) {
			out, gains := unsafe.Slice(y, n), unsafe.Slice(g, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] = float32(v*s) * gains[i]
			}
		},
		shift: func(y, x *float32, n int, s float32) {
			out := unsafe.Slice(y, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] = v - s
			}
		},
		centre: func(y, x, g, b *float32, n int, mean, inv float32) {
			out, gains, biases := unsafe.Slice(y, n), unsafe.Slice(g, n), unsafe.Slice(b, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] = float32(float32((v-mean)*inv)*gains[i]) + biases[i]
			}
		},
		scale: func(y, x *float32, n int, s float32) {
			out := unsafe.Slice(y, n)
			for i, v := range unsafe.Slice(x, n) {
				out[i] = v * s
			}
		},
		rotate: func(lo, hi, sin, cos *float32, n int, forward float32) {
			second, sines, cosines := unsafe.Slice(hi, n), unsafe.Slice(sin, n), unsafe.Slice(cos, n)
			first := unsafe.Slice(lo, n)
			for i, a := range first {
				b, s, c := second[i], sines[i]*forward, cosines[i]
				first[i], second[i] = float32(a*c)-float32(b*s), float32(a*s)+float32(b*c)
			}
		},
	}
}
