package model_test

import (
	"math"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// TestInit_IsTheUsualOne checks the deviation of every kind of tensor of every architecture, against
// what transformers' classes (llama: torchtitan; GPT-2: its report) start from.
func TestInit_IsTheUsualOne(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	for _, name := range tiny {
		spec := open(t, shared(t, "models/tiny", name)).Spec
		spec.Init.Std *= 2
		stage, err := model.Init(spec, whole(spec), set, 7)
		if err != nil {
			t.Fatal(err)
		}
		scaled := spec.Architecture == "llama" || spec.Architecture == "gpt2"
		for _, p := range stage.Params().Tensors {
			want, residual := 0.04, strings.HasSuffix(p.Name, "o_proj.weight") ||
				strings.HasSuffix(p.Name, "down_proj.weight") || strings.HasSuffix(p.Name, ".c_proj.weight")
			switch {
			case strings.HasSuffix(p.Name, "bias"):
				want = 0
			case len(p.Shape) == 1 && !strings.HasSuffix(p.Name, "sinks"): // norms
				if want = 1; strings.HasPrefix(spec.Architecture, "gemma") {
					want = 0
				}
			case residual && scaled:
				want /= math.Sqrt(2 * float64(len(spec.Layers)))
			}
			rms := math.Sqrt(optim.SumSquares(p.Data) / float64(len(p.Data)))
			// Four deviations of the estimate; sinks are few.
			if slack := 4 * want / math.Sqrt(2*float64(len(p.Data))); math.Abs(rms-want) > slack {
				t.Errorf("%s: %s has root mean square %.4f, want %.4f", name, p.Name, rms, want)
			}
		}
	}
}
