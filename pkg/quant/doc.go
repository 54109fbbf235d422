// Package quant quantises float32 weights to the block types of GGUF. It is the inverse of the decoders in
// pkg/tensor.
//
// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 have a defined result: the bytes that the Python package gguf (quants.py of
// llama.cpp) writes. For Q4_K, Q5_K and Q6_K the format fixes only how a super-block is decoded, so this package
// searches for the scales that minimise the squared error. The search is deterministic and gives the same bytes on
// every machine.
//
// An importance, if there is one, is the mean square of the activation that each column is multiplied by, as
// llama.cpp's importance matrices hold it. The search then minimises the error of the products instead of the error
// of the weights.
//
// The package is pure: it computes one row at a time and starts no goroutines. pkg/export runs it over whole models
// on all processors and writes the files. Sources of the layouts: ggml-common.h of llama.cpp.
package quant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Types lists the element types that Quantize writes.
func Types() []tensor.DType {
	return []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.Q8_0, tensor.Q4_0, tensor.Q4_1, tensor.Q5_0,
		tensor.Q5_1, tensor.Q4_K, tensor.Q5_K, tensor.Q6_K}
}

// Quantize encodes src as elements of type d. dst has exactly the bytes of len(src) elements, and len(src) is a
// multiple of the block length. importance has a weight of at least 0 for each element of src, or is nil; the plain
// float types and Q8_0 ignore it. The elements of src are finite: other values give bytes without meaning. Quantize
// panics on other lengths and on a type that Types does not list.
func Quantize(dst []byte, src []float32, d tensor.DType, importance []float32) {
	if !d.Valid() || len(src)%d.BlockLen() != 0 || len(dst) != d.RowBytes(len(src)) {
		panic(fmt.Sprintf("quantize to %v: %d bytes for %d elements", d, len(dst), len(src)))
	}
	if importance != nil && len(importance) != len(src) {
		panic(fmt.Sprintf("quantize to %v: %d importances for %d elements", d, len(importance), len(src)))
	}
	switch d {
	case tensor.F32, tensor.F16, tensor.BF16:
		tensor.Encode(dst, src, d)
		return
	}
	block := encoderOf(d)
	if block == nil {
		panic(fmt.Sprintf("quantize to %v: the type is only decoded", d))
	}
	n, size := d.BlockLen(), d.BlockBytes()
	for ; len(src) > 0; src, dst = src[n:], dst[size:] {
		var w []float32
		if importance != nil {
			w, importance = importance[:n], importance[n:]
			if !useful(w) {
				w = nil
			}
		}
		block(dst[:size], src[:n], w)
	}
}

// encoderOf returns the encoder of one block, or nil. Its w holds the importances of the block, or is nil.
func encoderOf(d tensor.DType) func(dst []byte, x, w []float32) {
	switch d {
	case tensor.Q8_0:
		return func(dst []byte, x, _ []float32) { q8_0(dst, x) }
	case tensor.Q4_0:
		return q4_0
	case tensor.Q4_1:
		return q4_1
	case tensor.Q5_0:
		return q5_0
	case tensor.Q5_1:
		return q5_1
	case tensor.Q4_K:
		return func(dst []byte, x, w []float32) { affineSuper(dst, x, w, 15) }
	case tensor.Q5_K:
		return func(dst []byte, x, w []float32) { affineSuper(dst, x, w, 31) }
	case tensor.Q6_K:
		return q6_K
	}
	return nil
}

// useful reports whether importances tell elements apart: all are finite and not negative, and one is positive.
func useful(w []float32) bool {
	some := false
	for _, v := range w {
		if !(v >= 0) || math.IsInf(float64(v), 0) {
			return false
		}
		some = some || v > 0
	}
	return some
}

// putFloat16 writes the float16 that is nearest to x.
func putFloat16(b []byte, x float32) { binary.LittleEndian.PutUint16(b, tensor.Float16bits(x)) }

// finite16 rounds x to the nearest finite float16.
func finite16(x float64) float32 {
	const largest = 65504
	return tensor.Float16(tensor.Float16bits(float32(min(max(x, -largest), largest))))
}
