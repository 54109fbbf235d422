package kerneltest

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// activationElements compares activations and their gradients over a whole buffer with those of parts of it, of many
// lengths and alignments, and checks what becomes of special values.
func activationElements(t *testing.T, set Set) {
	inf := float32(math.Inf(1))
	values := slices.Concat([]float32{0, float32(math.Copysign(0, -1)), 0x1p-149, -0x1p-130, 0x1p-126, 13.1, -13.1,
		14, -15, 1e30, -1e30, math.MaxFloat32, inf, float32(math.NaN())}, source(44)(57))
	for i := 14; i < len(values); i += 3 {
		values[i] *= 6
	}
	n := len(values)
	x, up, dy := upload(set, values), inputs(set, 45)(n), inputs(set, 46)(n)
	for _, act := range []kernel.Act{kernel.SiLU, kernel.GELUTanh, kernel.GELU} {
		run := func(lo, hi int) [][]float32 {
			y, gated, dx := set.Alloc(hi-lo), set.Alloc(hi-lo), set.Alloc(hi-lo)
			set.Activate(y, x[lo:hi], act)
			set.GLU(gated, x[lo:hi], up[lo:hi], act)
			set.ActivateGrad(dx, nil, dy[lo:hi], x[lo:hi], act)
			return results(set, y, gated, dx)
		}
		whole := run(0, n)
		for _, length := range []int{1, 7, 16, 17, 33, n - 5} {
			for lo := 0; lo+length <= n; lo += max(1, (n-length)/3) {
				for i, part := range run(lo, lo+length) {
					for j, v := range part {
						want, nan := whole[i][lo+j], v != v
						if math.Float32bits(v) != math.Float32bits(want) && !(nan && want != want) {
							t.Fatalf("activation %d of %v: result %d is %v alone in %d elements, and %v among all", act,
								values[lo+j], i, v, length, want)
						}
					}
				}
			}
		}
		y := whole[0]
		if y[0] != 0 || math.Signbit(float64(y[0])) || y[1] != 0 || !math.Signbit(float64(y[1])) {
			t.Errorf("activation %d of 0 and -0 is %v and %v", act, y[0], y[1])
		}
		if y[12] != inf || y[13] == y[13] {
			t.Errorf("activation %d of +Inf and NaN is %v and %v", act, y[12], y[13])
		}
		if y[9] != values[9] || y[11] != values[11] {
			t.Errorf("activation %d of %v and %v is %v and %v", act, values[9], values[11], y[9], y[11])
		}
	}
}
