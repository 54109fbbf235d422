package model_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// exactSteps makes the AdamW steps of a reference in float64, from weights that differ from those of the files by a
// share of about nudge. It returns the loss and the gradient norm before each step.
func exactSteps(t *testing.T, files *model.Files, want expectation, nudge float64, seed uint64) (loss, norm []float64) {
	t.Helper()
	set := kernel.Set[float64](ref.New[float64]())
	tr := load(t, files, set, 1)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, p := range tr.stages[0].Params().Tensors {
		for i := range p.Data {
			p.Data[i] *= 1 + nudge*r.NormFloat64()
		}
	}
	m, v := map[string][]float64{}, map[string][]float64{}
	for step := range want.AdamW.Loss {
		loss = append(loss, tr.step(t, want.Cases[0].IDs))
		grads := tr.merged()
		var squares float64
		for _, g := range grads {
			squares += optim.SumSquares(g)
		}
		norm = append(norm, math.Sqrt(squares))
		n := float64(step + 1)
		o := kernel.AdamW{Scale: optim.ClipScale(math.Sqrt(squares), 1), Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8,
			Keep: 1 - 1e-3*0.1, Size: 1e-3 / (1 - math.Pow(0.9, n)), Root: 1 / (1 - math.Pow(0.95, n))}
		for _, p := range tr.stages[0].Params().Tensors {
			if p.TiedTo != "" {
				continue
			}
			if m[p.Name] == nil {
				m[p.Name], v[p.Name] = make([]float64, len(p.Data)), make([]float64, len(p.Data))
			}
			set.AdamW(p.Data, m[p.Name], v[p.Name], grads[p.Name], o)
		}
	}
	return loss, norm
}

// TestStage_GPTOSSFollowsItsReferenceToTheEnd follows the references of partings through all twelve steps, in float64
// and from weights that differ from those of the files by less than float32 can tell (6e-8).
func TestStage_GPTOSSFollowsItsReferenceToTheEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("computes in float64 with reference kernels")
	}
	for _, c := range []struct {
		name string
		seed uint64  // one of those with which the router chooses as the reference's did
		late float64 // the largest relative difference of norms in the last two steps
	}{{"gpt-oss", 12, 1e-3}, {"gpt-oss-mxfp4", 16, 4e-3}} {
		want := readExpectation(t, c.name)
		loss, norm := exactSteps(t, open(t, shared(t, "models/tiny", c.name)), want, 3e-8, c.seed)
		for i := range loss {
			limit := 1e-3
			if i >= 10 {
				limit = c.late
			}
			l, n := math.Abs(loss[i]/want.AdamW.Loss[i]-1), math.Abs(norm[i]/want.AdamW.GradNorm[i]-1)
			if !(l <= 1e-3 && n <= limit) {
				t.Errorf("%s: before step %d loss and norm differ by %.2g and %.2g of the reference", c.name, i+1, l, n)
			}
		}
	}
}
