package cpu

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// TestBFloat16_BothMethodsAgree compares VDPBF16PS with the two multiply-adds that replace it where they are faster. A
// set measures which is faster on the machine and uses it, so the other one must give the same bits.
func TestBFloat16_BothMethodsAgree(t *testing.T) {
	families := native()
	i := slices.IndexFunc(families, func(o ops) bool { return o.name == "avx512" })
	if i < 0 {
		t.Skip("the processor has no AVX-512")
	}
	const rows, n, k = 19, 70, 610
	rng := rand.New(rand.NewPCG(1, 2))
	draw := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
			if i%7 == 3 { // a subnormal number, which counts as zero
				x[i] = math.Float32frombits(rng.Uint32() & 0x807fffff)
			}
		}
		return x
	}
	x, w, dy := draw(rows*k), draw(n*k), draw(rows*n)
	for i := range dy { // their sums are subnormal
		if i/n%2 == 1 {
			dy[i] *= 1e-36
		}
	}
	raw := make([]byte, 2*n*k)
	for i, v := range w {
		h := tensor.BFloat16bits(v)
		raw[2*i], raw[2*i+1] = byte(h), byte(h>>8)
	}
	run := func(pairs gemmOps) []float32 {
		o := families[i]
		o.pairs = pairs
		s := newSet(2, o)
		defer s.Close()
		packed := &kernel.Matrix[float32]{Rows: n, Cols: k, DType: tensor.BF16, Raw: raw}
		s.Pack(packed)
		y, z, dx, dw := make([]float32, rows*n), make([]float32, rows*n), make([]float32, rows*k), make([]float32, n*k)
		s.MatMul(y, x, packed, nil, rows)
		dense := &kernel.Matrix[float32]{Rows: n, Cols: k, Dense: w}
		s.BFloat16().MatMul(z, x, dense, nil, rows)
		s.BFloat16().MatMulGrad(dx, x, rows, kernel.ProductGrad[float32]{DY: dy, W: dense, DW: dw})
		return slices.Concat(y, z, dx, dw)
	}
	pairs, swaps := run(pairsAVX512()), run(swapsAVX512())
	for i, v := range pairs {
		if math.Float32bits(v) != math.Float32bits(swaps[i]) {
			t.Fatalf("element %d of %d is %x with VDPBF16PS and %x with multiply-adds", i, len(pairs),
				math.Float32bits(v), math.Float32bits(swaps[i]))
		}
	}
}
