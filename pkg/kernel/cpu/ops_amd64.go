package cpu

import (
	"golang.org/x/sys/cpu"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

//go:noescape
func dots4x4(out, x *float32, ldx int, w *float32, ldw, k int)

//go:noescape
func dots1x4(out, x *float32, ldx int, w *float32, ldw, k int)

//go:noescape
func dots1x1(out, x *float32, ldx int, w *float32, ldw, k int)

//go:noescape
func axpy(y, x *float32, n int, s float32)

//go:noescape
func addTo(y, x *float32, n int)

//go:noescape
func expScaled(dst, src *float32, n int, s, sub float32)

//go:noescape
func sumOf(x *float32, n int) float32

//go:noescape
func maxOf(x *float32, n int) float32

//go:noescape
func decodeQ4_0(dst *float32, src *byte, blocks int)

//go:noescape
func decodeQ4_1(dst *float32, src *byte, blocks int)

//go:noescape
func decodeQ8_0(dst *float32, src *byte, blocks int)

//go:noescape
func decodeF16(dst *float32, src *byte, blocks int)

//go:noescape
func decodeBF16(dst *float32, src *byte, blocks int)

// native returns the machine's own loops, or false.
func native() (ops, bool) {
	if !(cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512VNNI && cpu.X86.HasAVX512BF16 && cpu.X86.HasFMA) {
		return ops{}, false
	}
	return ops{
		name: "avx512", quant: quantAVX512(), pair: pairAVX512(), dots4x4: dots4x4, dots1x4: dots1x4, dots1x1: dots1x1, axpy: axpy, add: addTo, exp: expScaled, sum: sumOf, max: maxOf,
		decode: map[tensor.DType]decoder{
			tensor.Q4_0: {32, 18, decodeQ4_0}, tensor.Q4_1: {32, 20, decodeQ4_1}, tensor.Q8_0: {32, 34, decodeQ8_0},
			tensor.F16: {16, 32, decodeF16}, tensor.BF16: {16, 32, decodeBF16},
		},
	}, true
}
