package model_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestStage_RecomputedLayersHaveTheSameBits runs two micro-batches of packed documents, backward at once and
// in halves, with and without recomputing. Recomputing must hold less.
func TestStage_RecomputedLayersHaveTheSameBits(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for _, name := range brief(trainable, "gpt2", "gpt-oss", "qwen3", "gemma2") {
		files := open(t, shared(t, "models/tiny", name))
		ids := readExpectation(t, name).Cases[0].IDs[:32]
		for kernels, set := range map[string]kernel.Set[float32]{"float32": set, "bfloat16": set.BFloat16()} {
			t.Run(fmt.Sprintf("%s/%s", name, kernels), func(t *testing.T) {
				plain := recomputed(t, files, set, ids, false, false)
				for _, split := range []bool{false, true} {
					got := recomputed(t, files, set, ids, true, split)
					if !slices.Equal(got.losses, plain.losses) {
						t.Errorf("split %v: losses are %v, want %v", split, got.losses, plain.losses)
					}
					for param, g := range plain.grads {
						if !slices.Equal(got.grads[param], g) {
							t.Errorf("split %v: the gradient of %s differs", split, param)
						}
					}
					most := plain.bytes / 2
					if files.Spec.Layers[0].FFN.Experts != nil { // what they keep is not counted
						most = plain.bytes * 3 / 4
					}
					if !split && got.bytes > most {
						t.Errorf("%d bytes of activations, %d without recomputing", got.bytes, plain.bytes)
					}
				}
			})
		}
	}
}

type recomputeResult struct {
	losses []float64
	grads  map[string][]float32
	bytes  int
}

func recomputed(t *testing.T, files *model.Files, set kernel.Set[float32], ids []int32, on, split bool,
) (out recomputeResult) {
	tr := load(t, files, set, 1)
	s := tr.stages[0]
	s.RecomputeLayers(on)
	targets := slices.Clone(ids)
	slices.Reverse(targets)
	for range 2 { // the second time the memory is there
		var traces []*model.Trace[float32]
		for range 4 {
			trace, err := s.TrainForward(model.Micro[float32]{B: 2, T: 16, IDs: ids, Targets: targets,
				Documents: []int{7, 9, 16}, Scale: 0.25, ZLoss: 0.1})
			if err != nil {
				t.Fatal(err)
			}
			traces = append(traces, trace)
		}
		for _, trace := range traces {
			out.losses = append(out.losses, trace.Loss...)
			g, err := s.NewGrads(), error(nil)
			if split {
				if _, err = s.TrainBackwardInput(trace, nil); err == nil {
					err = s.TrainBackwardWeight(trace, g)
				}
			} else {
				_, err = s.TrainBackward(trace, nil, g)
			}
			if err != nil {
				t.Fatal(err)
			}
			tr.grads[0] = g
		}
	}
	out.grads, out.bytes = tr.merged(), s.ActivationBytes()
	return out
}
