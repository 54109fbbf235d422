package model_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// TestStage_PartsAreFinalWhenTheyAreDone copies the gradients of a part when the backward pass says that they are
// final, and compares them with those after the pass.
func TestStage_PartsAreFinalWhenTheyAreDone(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2", "gpt-oss", "gemma2") {
		files := open(t, shared(t, "models/tiny", name))
		ids := readExpectation(t, name).Cases[0].IDs[:16]
		for _, stages := range []int{1, 2} {
			for _, split := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s over %d, split %v", name, stages, split), func(t *testing.T) {
					tr := load(t, files, set, stages)
					var hidden []float32
					var traces []*model.Trace[float32]
					for _, s := range tr.stages {
						trace, err := s.TrainForward(model.Micro[float32]{B: 1, T: len(ids), IDs: ids, Hidden: hidden,
							Targets: ids, Scale: 0.25})
						if err != nil {
							t.Fatal(err)
						}
						traces, hidden = append(traces, trace), slices.Clone(trace.Out)
					}
					var d []float32
					for i := len(tr.stages) - 1; i >= 0; i-- {
						d = slices.Clone(backwardInParts(t, tr.stages[i], traces[i], d, split))
					}
				})
			}
		}
	}
}

func backwardInParts(t *testing.T, s *model.Stage[float32], trace *model.Trace[float32], d []float32,
	split bool) []float32 {
	t.Helper()
	g := s.NewGrads()
	early := map[string][]float32{}
	done := func(part int) {
		for _, p := range g.Tensors {
			if s.Spec.PartOf(p.Name) != part {
				continue
			}
			if early[p.Name] != nil {
				t.Errorf("part %d is done twice", part)
			}
			early[p.Name] = slices.Clone(p.Data)
		}
	}
	var in []float32
	var err error
	if split {
		if in, err = s.TrainBackwardInput(trace, d); err == nil {
			in = slices.Clone(in)
			err = s.TrainBackwardWeightInParts(trace, g, done)
		}
	} else {
		in, err = s.TrainBackwardInParts(trace, d, g, done)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range g.Tensors {
		if !slices.Equal(early[p.Name], p.Data) {
			t.Errorf("the gradient of %s was not final when its part was done", p.Name)
		}
	}
	return in
}

// TestStage_BFloat16StorageComputesWithRoundedMatrices compares a stage whose matrices are stored in bfloat16 with
// one whose matrices have been rounded by hand.
func TestStage_BFloat16StorageComputesWithRoundedMatrices(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2", "gpt-oss", "phi3") {
		files := open(t, shared(t, "models/tiny", name))
		ids := readExpectation(t, name).Cases[0].IDs[:16]
		for _, lean := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, recomputed %v", name, lean), func(t *testing.T) {
				stored, byHand := load(t, files, set, 1), load(t, files, set, 1)
				s := stored.stages[0]
				s.StoreBF16()
				s.RecomputeLayers(lean)
				full := 4 * s.StorageBytes() / 2
				for round := range 2 {
					for i, p := range s.Params().Tensors {
						rounded := byHand.stages[0].Params().Tensors[i].Data
						if round > 0 { // a step of the optimizer
							for k := range p.Data {
								p.Data[k] += 1e-3 * float32(k%5-2)
							}
						}
						copy(rounded, p.Data)
						if s.Spec.Hidden(p.Name) && (len(p.Shape) == 3 || len(p.Shape) == 2 && !isExpertBias(p)) {
							for k, v := range rounded {
								rounded[k] = tensor.BFloat16(tensor.BFloat16bits(v))
							}
						}
					}
					s.RoundWeights()
					if a, b := stored.step(t, ids), byHand.step(t, ids); a != b {
						t.Errorf("round %d: the loss is %v, with matrices rounded by hand %v", round, a, b)
					}
					want := byHand.merged()
					for param, g := range stored.merged() {
						if !slices.Equal(g, want[param]) {
							t.Errorf("round %d: the gradient of %s differs", round, param)
						}
					}
				}
				if got := load(t, files, set, 1).stages[0].StorageBytes(); got != full {
					t.Errorf("%d bytes in bfloat16, %d in float32", s.StorageBytes(), got)
				}
			})
		}
	}
}

// isExpertBias reports whether a parameter has the biases of all experts.
func isExpertBias(p model.Param[float32]) bool {
	return len(p.Name) > 5 && p.Name[len(p.Name)-5:] == "_bias"
}
