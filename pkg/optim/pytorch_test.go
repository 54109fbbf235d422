package optim_test

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/optim"
)

// TestConfig_StepsLikePyTorch compares with figures of torch.optim, which testdata/pytorch.json holds.
func TestConfig_StepsLikePyTorch(t *testing.T) {
	text, err := os.ReadFile("testdata/pytorch.json")
	if err != nil {
		t.Fatal(err)
	}
	var facts struct {
		Cases []struct {
			Name                string
			Rows, Cols, Steps   int
			Nesterov, Match     bool
			Momentum, LR, Decay float64
			Weights             []float64
		}
	}
	if err := json.Unmarshal(text, &facts); err != nil {
		t.Fatal(err)
	}
	if len(facts.Cases) < 20 {
		t.Fatalf("%d cases", len(facts.Cases))
	}
	values := func(n int, from float64) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(math.Sin(from + 1.7*float64(i)))
		}
		return out
	}
	for kernels, set := range sets(t) {
		for _, f := range facts.Cases {
			c := config(f.Name)
			c.Decay, c.SGD = f.Decay, optim.SGD{Momentum: f.Momentum, Nesterov: f.Nesterov}
			c.Muon = optim.Muon{Momentum: f.Momentum, Nesterov: f.Nesterov, Iterations: 5, MatchAdamW: f.Match}
			group := c.For(optim.Parameter{Name: "w", Shape: []int{f.Rows, f.Cols}, Hidden: true})
			n := f.Rows * f.Cols
			p, m, v := values(n, 0.5), make([]float32, n), make([]float32, n)
			scratch := optim.NewScratch(set)
			for step := 1; step <= f.Steps; step++ {
				c.Step(scratch, group, p, m, v, values(n, 10*float64(step)), 1, f.LR, step)
			}
			if d := distance(p, f.Weights); !(d < 1e-5) {
				t.Errorf("%s: %s of %dx%d, %+v: weights are %g away", kernels, f.Name, f.Rows, f.Cols, f, d)
			}
		}
	}
}
