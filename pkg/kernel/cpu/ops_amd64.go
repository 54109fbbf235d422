package cpu

import (
	"math"
	"time"

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

// native returns the loops that the machine can run, the fastest first.
func native() []ops {
	var out []ops
	x := &cpu.X86
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasAVX512VNNI && x.HasAVX512BF16 &&
		x.HasFMA {
		if x.HasAMXTile && x.HasAMXInt8 && grantTiles() {
			out = append(out, amx())
		}
		out = append(out, avx512())
	}
	if x.HasAVX2 && x.HasFMA && x.HasAVX { // every such processor has F16C
		out = append(out, avx2())
	}
	return out
}

// avx512 returns the loops for processors with AVX-512, VNNI and BF16.
func avx512() ops {
	o := ops{
		name: "avx512", quant: quantAVX512(), pair: pairAVX512(),
		probes:  probes{probeFMA512, probeVNNI512, probePairs512, 12 * 16 * 2, 12 * 64 * 2, 12 * 32 * 2, probeRead512},
		dots4x4: dots4x4, dots1x4: dots1x4, dots1x1: dots1x1, axpy: axpy, add: addTo,
		dot: func(a, b *float32, n int) float32 {
			var out float32
			dots1x1(&out, a, 0, b, 0, n)
			return out
		},
		exp: expScaled, sum: sumOf, max: maxOf,
		decode: map[tensor.DType]decoder{
			tensor.Q4_0: {32, 18, decodeQ4_0}, tensor.Q4_1: {32, 20, decodeQ4_1}, tensor.Q8_0: {32, 34, decodeQ8_0},
			tensor.F16: {16, 32, decodeF16}, tensor.BF16: {16, 32, decodeBF16},
		},
	}
	o.attend, o.element, o.gemm, o.train = attendAVX512(), elementsAVX512(), gemmAVX512(), trainAVX512()
	o.pairs = pairsAVX512()
	if swapsAreFaster() {
		o.pairs = swapsAVX512()
	}
	o.cache = cacheOps{toFloat16, fromFloat16, keysOfBytes, valueOfBytes}
	o.attend.weigh, o.attend.join = weighScores, joinSums
	return o
}

// swapsAreFaster reports whether two fused multiply-adds are faster than the VDPBF16PS that they replace.
// Processors differ; the bits are the same. The measurement takes some microseconds.
func swapsAreFaster() bool {
	const rounds = 256
	swaps, pairs := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	for range 8 {
		start := time.Now()
		probeFMA512(2 * rounds)
		middle := time.Now()
		probePairs512(rounds)
		swaps, pairs = min(swaps, middle.Sub(start)), min(pairs, time.Since(middle))
	}
	return swaps < pairs
}

// amx returns the loops of avx512 with AMX tiles for quantised products of many rows.
func amx() ops {
	o := avx512()
	o.name, o.quant = "amx", quantAMX()
	return o
}

// avx2 returns the loops for processors with AVX2 and FMA.
func avx2() ops {
	o := portable()
	o.name, o.quant, o.pair = "avx2", quantAVX2(), pairAVX2()
	vectorAVX2(&o)
	o.attend, o.element, o.gemm, o.train = attendAVX2(), elementsAVX2(&o), gemmAVX2(), trainAVX2(&o)
	o.cache = cacheOps{toFloat16Wide, fromFloat16Wide, keysOfBytesWide, valueOfBytesWide}
	o.pairs = pairsAVX2()
	o.attend.weigh, o.attend.join = weighOf(&o), joinAVX2
	o.probes = probes{float32: probeFMA256, int8: probeWords256, floats: 12 * 8 * 2, bytes: 12 * 16 * 2,
		read: probeRead256}
	return o
}
