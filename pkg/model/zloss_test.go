package model_test

import (
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestStage_ZLossIsInTheGradient checks in float64, for a model without and one with a soft cap, that the
// z-loss is part of all gradients, in proportion to its coefficient, and not of the loss.
func TestStage_ZLossIsInTheGradient(t *testing.T) {
	for _, name := range []string{"llama", "gemma2"} {
		files := open(t, shared(t, "models/tiny", name))
		s, err := model.Load(files, model.Range{Hi: len(files.Spec.Layers)}, ref.New[float64](),
			model.LoadOptions{Dense: true})
		if err != nil {
			t.Fatal(err)
		}
		ids := []int32{5, 9, 2, 7}
		const scale = 0.5
		z := 0.0
		run := func() *model.Trace[float64] {
			tr, err := s.TrainForward(model.Micro[float64]{B: 1, T: 4, IDs: ids, Targets: []int32{9, 2, -1, 3},
				Scale: scale, ZLoss: z})
			if err != nil {
				t.Fatal(err)
			}
			return tr
		}
		grad := func(coefficient float64) (*model.Params[float64], []float64) {
			z = coefficient
			tr, g := run(), s.NewGrads()
			loss := append([]float64(nil), tr.Loss...)
			if _, err := s.TrainBackward(tr, nil, g); err != nil {
				t.Fatal(err)
			}
			return g, loss
		}
		plain, loss := grad(0)
		small, _ := grad(1e-3)
		large, same := grad(2e-3)
		moved := 0.0
		for i, p := range plain.Tensors {
			for e, v := range p.Data {
				// the z-loss's part of the gradient is proportional to its coefficient
				one, two := small.Tensors[i].Data[e]-v, large.Tensors[i].Data[e]-v
				if math.Abs(two-2*one) > 1e-12+1e-6*math.Abs(one) {
					t.Fatalf("%s: %s[%d] moves by %g and %g", name, p.Name, e, one, two)
				}
				moved = max(moved, math.Abs(one))
			}
		}
		if moved < 1e-7 {
			t.Errorf("%s: the z-loss moves no gradient", name)
		}
		for i := range loss {
			if loss[i] != same[i] {
				t.Errorf("%s: the loss that is reported contains the z-loss", name)
			}
		}
	}
}
