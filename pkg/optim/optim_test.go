package optim_test

import (
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

func TestAdamW_FollowsThePaperInFloat64(t *testing.T) {
	a := optim.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, Decay: 0.1}
	p, m, v := []float32{1, -2, 0.5}, make([]float32, 3), make([]float32, 3)
	want, wm, wv := []float64{1, -2, 0.5}, make([]float64, 3), make([]float64, 3)
	for step := 1; step <= 20; step++ {
		g := []float32{float32(step), -1, float32(math.Sin(float64(step)))}
		a.Step(ref.New[float32](), p, m, v, g, 0.5, 0.01, step, true)
		for i := range want {
			x := float64(g[i]) * 0.5
			wm[i] = 0.9*wm[i] + 0.1*x
			wv[i] = 0.95*wv[i] + 0.05*x*x
			mh, vh := wm[i]/(1-math.Pow(0.9, float64(step))), wv[i]/(1-math.Pow(0.95, float64(step)))
			want[i] -= 0.01*0.1*want[i] + 0.01*mh/(math.Sqrt(vh)+1e-8)
		}
	}
	for i := range want {
		if math.Abs(float64(p[i])-want[i]) > 2e-6 {
			t.Errorf("weight %d is %v, want %v", i, p[i], want[i])
		}
	}
}
