package optim_test

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/optim"
)

// TestOuter_StepIsNesterovSGD compares with PyTorch's formula in float64: buf = mu*buf + g; w -= lr*(g + mu*buf).
func TestOuter_StepIsNesterovSGD(t *testing.T) {
	o := optim.Outer{Rate: 0.7, Momentum: 0.9}
	w, m := []float32{1, -2, 0.5}, make([]float32, 3)
	want, buffer := []float64{1, -2, 0.5}, make([]float64, 3)
	for step := range 5 {
		sum := []float32{0.4, -0.2 * float32(step), 0.04}
		for i, d := range sum {
			g := float64(d) / 4
			buffer[i] = 0.9*buffer[i] + g
			want[i] -= 0.7 * (g + 0.9*buffer[i])
		}
		o.Step(w, m, sum, 4)
	}
	for i := range w {
		if math.Abs(float64(w[i])-want[i]) > 1e-6 {
			t.Errorf("weight %d is %v, want %v", i, w[i], want[i])
		}
	}
	// Without momentum and with rate 1 the common weights become the mean of the workers'.
	w = []float32{1}
	optim.Outer{Rate: 1}.Step(w, []float32{0}, []float32{(1 - 3) + (1 - 5)}, 2)
	if w[0] != 4 {
		t.Errorf("the mean of 3 and 5 is %v", w[0])
	}
}

func TestMix_KeepsAShareOfTheWorkersOwn(t *testing.T) {
	for share, want := range map[float64][]float32{0: {10, 20}, 0.5: {6, 12}, 1: {2, 4}} {
		own := []float32{2, 4}
		if optim.Mix(own, []float32{10, 20}, share); !slices.Equal(own, want) {
			t.Errorf("share %v: got %v, want %v", share, own, want)
		}
	}
}
