package cpu

import (
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// geluEnd is the magnitude from which GELU is exactly x or zero in every family, and -geluTail where Φ(x) becomes
// subnormal and loses precision.
const (
	geluEnd  = 16
	geluTail = 12.9
)

// geluErrors compares GELU over the float32 with the bits from..to-1 in steps, and of both signs, with the reference in
// float64, and the families with each other. It returns the largest error in units in the last place of the exact
// result, outside the tail, and the largest absolute error.
func geluErrors(t *testing.T, all []ops, from, to, step uint32) (ulps, absolute float64) {
	const block = 1 << 12
	x, wide := make([]float32, 0, block), make([]float64, block)
	want, got, other := make([]float64, block), make([]float32, block), make([]float32, block)
	flush := func() {
		n := len(x)
		for i, v := range x {
			wide[i] = float64(v)
		}
		ref.New[float64]().Activate(want[:n], wide[:n], kernel.GELU)
		for f, o := range all {
			out := got[:n]
			if f > 0 {
				out = other[:n]
			}
			activate(&o, out, x, kernel.GELU)
			if f > 0 && !slices.Equal(got[:n], out) {
				t.Errorf("%s and %s differ from %v on", o.name, all[0].name, x[0])
			}
		}
		for i, v := range x {
			off := math.Abs(float64(got[i]) - want[i])
			absolute = max(absolute, off)
			if v > -geluTail {
				size := float32(math.Abs(want[i]))
				ulps = max(ulps, off/(float64(math.Nextafter32(size, math.MaxFloat32))-float64(size)))
			}
		}
		x = x[:0]
	}
	for b := uint64(from); b < uint64(to); b += uint64(step) {
		v := math.Float32frombits(uint32(b))
		if x = append(x, v, -v); len(x) == block {
			flush()
		}
	}
	if flush(); t.Failed() {
		t.FailNow()
	}
	return ulps, absolute
}

// activate computes an activation with a family's loop, or from its gate if it has none.
func activate(o *ops, y, x []float32, act kernel.Act) {
	if len(x) == 0 {
		return
	}
	if loop := o.element.act[act]; loop != nil {
		loop(&y[0], &x[0], len(x))
		return
	}
	gated(o, &y[0], &x[0], nil, len(x), act)
}

// checkGELU fails unless GELU is as accurate as gelu.go says.
func checkGELU(t *testing.T, ulps, absolute float64) {
	t.Helper()
	t.Logf("largest error: %.2f units in the last place, %.3g absolute", ulps, absolute)
	if !(ulps <= 7 && absolute <= 4e-7) {
		t.Errorf("GELU is off by %.2f units in the last place and %.3g", ulps, absolute)
	}
}

func TestGELU_IsWithinSevenUlps(t *testing.T) {
	ulps, absolute := geluErrors(t, families(), 0, math.Float32bits(geluEnd), 40009)
	checkGELU(t, ulps, absolute)
}

// TestGELU_EveryFloat looks at all 2^32 float32 with the fastest family.
func TestGELU_EveryFloat(t *testing.T) {
	if os.Getenv("LAMINA_SLOW") == "" {
		t.Skip("takes some minutes; LAMINA_SLOW=1 runs it")
	}
	o, end := families()[0], math.Float32bits(geluEnd)
	const parts = 64
	var ulps, absolute [parts]float64
	var work sync.WaitGroup
	for w := range 2 {
		work.Go(func() {
			for i := w; i < parts; i += 2 {
				part := end / parts // a whole number
				ulps[i], absolute[i] = geluErrors(t, []ops{o}, uint32(i)*part, uint32(i+1)*part, 1)
			}
		})
	}
	work.Wait()
	checkGELU(t, slices.Max(ulps[:]), slices.Max(absolute[:]))
	x, y := make([]float32, 1<<12), make([]float32, 1<<12)
	for b := uint64(end); b < math.MaxUint32; b += uint64(len(x)) {
		for i := range x {
			x[i] = math.Float32frombits(uint32(b) + uint32(i))
		}
		if x[0] < 0 && x[len(x)-1] > -geluEnd { // looked at above
			continue
		}
		activate(&o, y, x, kernel.GELU)
		for i, v := range x {
			if err := beyondGELU(v, y[i]); v > geluEnd || v <= -geluEnd || v != v {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// beyondGELU returns an error unless y is GELU(x) of a magnitude above geluEnd or of NaN. As in the reference and in
// PyTorch, the result of -Inf is NaN: -Inf times zero.
func beyondGELU(x, y float32) error {
	want := x
	switch {
	case math.IsInf(float64(x), -1) || x != x:
		want = float32(math.NaN())
	case x < 0:
		want = float32(math.Copysign(0, -1))
	}
	if math.Float32bits(y) != math.Float32bits(want) && (y == y || want == want) {
		return fmt.Errorf("GELU(%v) is %v, want %v", x, y, want)
	}
	return nil
}

func TestGELU_SpecialValues(t *testing.T) {
	inf, zero := float32(math.Inf(1)), float32(math.Copysign(0, -1))
	for _, o := range families() {
		for _, x := range []float32{inf, -inf, float32(math.NaN()), math.MaxFloat32, -math.MaxFloat32, 1e30, -1e30,
			geluEnd, -geluEnd} {
			var y [1]float32
			activate(&o, y[:], []float32{x}, kernel.GELU)
			if err := beyondGELU(x, y[0]); err != nil {
				t.Errorf("%s: %v", o.name, err)
			}
		}
		for x, want := range map[float32]float32{0: 0, 0x1p-149: 0, 0x1p-148: 0x1p-149, 0x1p-130: 0x1p-131,
			-0x1p-130: -0x1p-131, 0x1p-126: 0x1p-127} {
			var y [1]float32
			if activate(&o, y[:], []float32{x}, kernel.GELU); y[0] != want {
				t.Errorf("%s: GELU(%g) is %g, want %g", o.name, x, y[0], want)
			}
		}
		var y [1]float32
		if activate(&o, y[:], []float32{zero}, kernel.GELU); math.Float32bits(y[0]) != math.Float32bits(zero) {
			t.Errorf("%s: GELU(-0) is %v", o.name, y[0])
		}
		if phi, e := normal32(0); phi != 0.5 || e != 1 {
			t.Errorf("the distribution function of 0 is %v and the exponential %v", phi, e)
		}
	}
}
