package cuda_test

import (
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

func TestNormGrads_EqualTheReference(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	const rows, c, eps = 5, 300, 1e-5
	x, g, dy := normal(1, rows*c), normal(2, c), normal(3, rows*c)
	for i := range x {
		x[i] += 3 // a mean that matters
	}
	for _, name := range []string{"rmsnorm_grad", "layernorm_grad"} {
		dx, dg, db := normal(4, rows*c), normal(5, c), normal(6, c)
		atX, atG, atB, stats := r.floats(dx), r.floats(dg), r.floats(db), r.alloc(8*rows)
		r.launch(name, [3]int{rows, 1, 1}, 0, atX, stats, r.floats(dy), r.floats(x), r.floats(g), uint32(c),
			float32(eps))
		bias := atB
		if name == "rmsnorm_grad" {
			bias = 0
			set.RMSNormGrad(dx, dg, dy, x, g, eps, rows, c)
		} else {
			set.LayerNormGrad(dx, dg, db, dy, x, g, eps, rows, c)
		}
		r.launch("norm_grad_columns", over(c), 0, atG, bias, r.floats(dy), r.floats(x), stats, uint32(rows), uint32(c))
		near(t, name+" dx", r.read(atX, rows*c), dx, 2e-6)
		near(t, name+" dg", r.read(atG, c), dg, 2e-6)
		near(t, name+" db", r.read(atB, c), db, 1e-6)
		r.launch(name, [3]int{rows, 1, 1}, 0, uint64(0), r.alloc(8*rows), r.floats(dy), r.floats(x), r.floats(g),
			uint32(c), float32(eps))
	}
}

func TestZLossGrad_EqualsTheReference(t *testing.T) {
	r := newRig(t)
	const rows, v, z, scale = 3, 40, 0.01, 0.25
	logits, d := normal(1, rows*v), kernel.Buffer[float32](normal(2, rows*v))
	targets, loss := []int32{3, -1, 39}, []float64{1.5, 0, 2.5}
	var factors []float32
	for i, target := range targets {
		more := 0.0
		if target >= 0 {
			more = 2 * z * (loss[i] + float64(logits[i*v+int(target)]))
		}
		factors = append(factors, float32(1+more), float32(scale*more))
	}
	want := slices.Clone(d)
	ref.New[float32]().ZLossGrad(want, logits, loss, targets, z, scale, rows, v)
	at := r.floats(d)
	r.launch("zloss_grad", over(rows*v), 0, at, r.floats(factors), r.ints(targets), uint32(v), uint32(rows*v))
	equal(t, "z-loss gradient", r.read(at, rows*v), want)
}
