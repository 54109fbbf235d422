package cpu

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

func TestOps_FamiliesAgree(t *testing.T) {
	all := families()
	want := all[len(all)-1]
	r := rand.New(rand.NewPCG(1, 2))
	for n := 1; n < 70; n++ {
		x, y := make([]float32, n), make([]float32, n)
		for i := range x {
			x[i], y[i] = float32(r.NormFloat64()*20), float32(r.NormFloat64())
		}
		run := func(o ops) []float32 {
			a, b, e := slices.Clone(y), slices.Clone(y), make([]float32, n)
			o.axpy(&a[0], &x[0], n, 0.3)
			o.add(&b[0], &x[0], n)
			o.exp(&e[0], &x[0], n, 1.7, 0.1)
			g, h, scaled, shifted, lo, hi := slices.Clone(y), slices.Clone(y), slices.Clone(y), slices.Clone(y),
				slices.Clone(x), slices.Clone(y)
			o.element.norm(&g[0], &x[0], &y[0], n, 0.7)
			o.element.scale(&scaled[0], &x[0], n, 0.7)
			o.element.shift(&shifted[0], &x[0], n, 0.7)
			o.element.rotate(&lo[0], &hi[0], &y[0], &x[0], n, -1)
			o.attend.join(&h[0], &x[0], n, 0.3, 0.9)
			all := slices.Concat(a, b, e, g, h, scaled, shifted, lo, hi)
			for act := kernel.SiLU; act < acts; act++ {
				alone, times := make([]float32, n), make([]float32, n)
				gated(&o, &alone[0], &x[0], nil, n, act)
				gated(&o, &times[0], &x[0], &y[0], n, act)
				if loop := o.element.act[act]; loop != nil {
					loop(&alone[0], &x[0], n)
				}
				if loop := o.element.glu[act]; loop != nil {
					loop(&times[0], &x[0], &y[0], n)
				}
				all = slices.Concat(all, alone, times)
			}
			weights := slices.Clone(x)
			best, sum := o.attend.weigh(&weights[0], n, 0.3)
			all = append(append(all, weights...), best, sum)
			return append(all, o.sum(&x[0], n), o.max(&x[0], n), o.dot(&x[0], &y[0], n))
		}
		for _, o := range all {
			if got, w := run(o), run(want); !slices.Equal(got, w) {
				for i := range got {
					if got[i] != w[i] {
						t.Fatalf("%s, %d elements: result %d is %v, want %v", o.name, n, i, got[i], w[i])
					}
				}
			}
		}
	}
}

func TestExp_IsWithinTwoUlps(t *testing.T) {
	var worst float64
	for x := -86.0; x < 88; x += 0.00131 {
		v := float32(x)
		want := math.Exp(float64(v))
		ulp := float64(math.Nextafter32(float32(want), math.MaxFloat32)) - float64(float32(want))
		worst = max(worst, math.Abs(float64(exp32(v))-want)/ulp)
	}
	t.Logf("largest error: %.2f units in the last place", worst)
	if worst > 2 {
		t.Errorf("off by %.2f units in the last place", worst)
	}
	for in, want := range map[float32]float32{-87: 0, float32(math.Inf(-1)): 0, 0: 1, 100: exp32(88),
		float32(math.Inf(1)): exp32(88)} {
		for _, o := range families() {
			var got float32
			if o.exp(&got, &in, 1, 1, 0); got != want {
				t.Errorf("%s: exp(%v) = %v, want %v", o.name, in, got, want)
			}
		}
	}
	for _, o := range families() {
		nan := float32(math.NaN())
		if o.exp(&nan, &nan, 1, 1, 0); nan == nan {
			t.Errorf("%s: exp of NaN is %v", o.name, nan)
		}
	}
}

func TestFMA32_RoundsOnce(t *testing.T) {
	x, y := float32(1+0x1p-12), float32(1+0x1p-12)
	// x·y = 1 + 2^-11 + 2^-24 is halfway between two float32, so the smallest addend decides the rounding.
	for z, want := range map[float32]float32{0: 1 + 0x1p-11, 0x1p-60: 1 + 0x1p-11 + 0x1p-23, -0x1p-60: 1 + 0x1p-11} {
		if got := fma32(x, y, z); got != want {
			t.Errorf("fma of %g is %v, want %v", z, got, want)
		}
	}
}
