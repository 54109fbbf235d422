package cpu

import "github.com/lamina-mesh/lamina/pkg/tensor"

// ops are the inner loops of one instruction family. Pointers point to rows of the stated number of
// elements; strides are in bytes.
type ops struct {
	name    string
	dots4x4 func(out, x *float32, ldx int, w *float32, ldw, k int)
	dots1x4 func(out, x *float32, ldx int, w *float32, ldw, k int)
	dots1x1 func(out, x *float32, ldx int, w *float32, ldw, k int)
	axpy    func(y, x *float32, n int, s float32)
	dot     func(a, b *float32, n int) float32
	add     func(y, x *float32, n int)
	exp     func(dst, src *float32, n int, s, sub float32)
	sum     func(x *float32, n int) float32
	max     func(x *float32, n int) float32
	decode  map[tensor.DType]decoder
	quant   quantOps
	attend  attendOps
	element elementOps
	cache   cacheOps
	pair    pairOps
	gemm    gemmOps
	pairs   gemmOps // with operands rounded to bfloat16
	train   trainOps
	probes  probes
}

// decoder decodes groups of elements of a type to float32.
type decoder struct {
	group int // elements
	bytes int // of a group
	run   func(dst *float32, src *byte, groups int)
}
