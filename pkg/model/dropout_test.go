package model_test

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// dropped runs a micro-batch of two sequences forward and backward with dropout, in halves if split is set.
func (tr *trainer[F]) dropped(t *testing.T, ids []int32, d model.Dropout, split bool) float64 {
	t.Helper()
	micro := model.Micro[F]{B: 2, T: len(ids) / 2, IDs: ids, Targets: ids, Scale: 1, Dropout: d}
	var traces []*model.Trace[F]
	for _, s := range tr.stages {
		trace, err := s.TrainForward(micro)
		if err != nil {
			t.Fatal(err)
		}
		traces, micro.Hidden = append(traces, trace), trace.Out
	}
	var loss float64
	for _, l := range traces[len(traces)-1].Loss {
		loss += l
	}
	var grad []F
	for i := len(tr.stages) - 1; i >= 0; i-- {
		var err error
		if grad = slices.Clone(grad); split {
			if grad, err = tr.stages[i].TrainBackwardInput(traces[i], grad); err == nil {
				grad = slices.Clone(grad)
				err = tr.stages[i].TrainBackwardWeight(traces[i], tr.grads[i])
			}
		} else {
			grad, err = tr.stages[i].TrainBackward(traces[i], grad, tr.grads[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return loss
}

func dropoutModels() []string { return []string{"gpt2", "gemma2", "gpt-oss", "qwen3-moe", "llama"} }

var allDropout = model.Dropout{Attention: 0.2, Residual: 0.3, Embedding: 0.25, Key: model.DropoutKey(1, 2, 3)}

// TestStage_DropoutHasTheSameBits over stages, with recomputed layers and in halves of a backward pass.
func TestStage_DropoutHasTheSameBits(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for _, name := range dropoutModels() {
		files, ids := open(t, shared(t, "models/tiny", name)), readExpectation(t, name).Cases[0].IDs[:40]
		for kernels, set := range map[string]kernel.Set[float32]{"float32": set, "bfloat16": set.BFloat16()} {
			one := load(t, files, set, 1)
			loss := one.dropped(t, ids, allDropout, false)
			want := one.merged()
			for _, stages := range []int{1, 2, 4} {
				for _, split := range []bool{false, true} {
					tr := load(t, files, set, stages)
					for _, s := range tr.stages {
						s.RecomputeLayers(stages > 1)
					}
					if got := tr.dropped(t, ids, allDropout, split); got != loss {
						t.Errorf("%s/%s over %d stages: loss %v, want %v", name, kernels, stages, got, loss)
					}
					for param, g := range tr.merged() {
						if !slices.Equal(g, want[param]) {
							t.Errorf(
								"%s/%s over %d stages, split %v: the gradient of %s differs",
								name,
								kernels,
								stages,
								split,
								param,
							)
						}
					}
				}
			}
			other := allDropout
			for what, change := range map[string]func(){
				"seed": func() { other.Key = model.DropoutKey(2, 2, 3) },
				"step": func() { other.Key = model.DropoutKey(1, 3, 3) },
				"slot": func() { other.Key = model.DropoutKey(1, 2, 4) },
				"none": func() { other = model.Dropout{} },
			} {
				if change(); one.dropped(t, ids, other, false) == loss {
					t.Errorf("%s/%s: another %s has the same loss", name, kernels, what)
				}
			}
		}
	}
}

// TestStage_DropoutDerivative compares the gradient with differences of the loss along a random direction, in
// float64: the masks stay the same.
func TestStage_DropoutDerivative(t *testing.T) {
	for _, name := range dropoutModels() {
		files, ids := open(t, shared(t, "models/tiny", name)), readExpectation(t, name).Cases[0].IDs[:24]
		tr := load(t, files, kernel.Set[float64](ref.New[float64]()), 1)
		tr.dropped(t, ids, allDropout, false)
		along, size := 0.0, 0.0
		grads := tr.merged()
		source := uint64(1)
		direction := map[string][]float64{}
		for _, p := range tr.stages[0].Params().Tensors {
			if p.TiedTo != "" {
				continue
			}
			d := make([]float64, len(p.Data))
			for i := range d {
				source = source*6364136223846793005 + 1442695040888963407
				d[i] = float64(source>>11)/(1<<53) - 0.5
				along += d[i] * grads[p.Name][i]
				size += d[i] * d[i]
			}
			direction[p.Name] = d
		}
		loss := func(by float64) float64 {
			shift := func(by float64) {
				for _, p := range tr.stages[0].Params().Tensors {
					for i, d := range direction[p.Name] {
						p.Data[i] += by * d
					}
				}
			}
			shift(by)
			defer shift(-by)
			return tr.dropped(t, ids, allDropout, false)
		}
		h := 1e-3 / math.Sqrt(size)
		wide, narrow := (loss(2*h)-loss(-2*h))/(4*h), (loss(h)-loss(-h))/(2*h)
		if numeric := (4*narrow - wide) / 3; math.Abs(numeric/along-1) > 1e-6 {
			t.Errorf("%s: derivative %.12g, by differences %.12g", name, along, numeric)
		}
	}
}

// TestDropout_KeepsItsShare counts what is dropped, and compares the mean of what is left.
func TestDropout_KeepsItsShare(t *testing.T) {
	for _, rate := range []float64{0.1, 0.5, 0.9} {
		x := make([]float32, 1<<20)
		for i := range x {
			x[i] = 1
		}
		ref.New[float32]().Dropout(x, kernel.Dropout{Rate: rate, Key: 9}, 1<<10, 1<<10)
		dropped, sum := 0, 0.0
		for _, v := range x {
			if sum += float64(v); v == 0 {
				dropped++
			}
		}
		n := float64(len(x))
		if share := float64(dropped) / n; math.Abs(share-rate) > 5*math.Sqrt(rate*(1-rate)/n) {
			t.Errorf("rate %v drops a share of %v", rate, share)
		}
		if mean := sum / n; math.Abs(mean-1) > 5*math.Sqrt(rate/(1-rate)/n) {
			t.Errorf("rate %v leaves a mean of %v", rate, mean)
		}
	}
}

func TestStage_DropoutIsOffInEvaluation(t *testing.T) {
	files := open(t, shared(t, "models/tiny", "gpt2"))
	s := load(t, files, kernel.Set[float32](ref.New[float32]()), 1).stages[0]
	ids := []int32{1, 2, 3, 4}
	run := func(d model.Dropout) []float64 {
		tr, err := s.TrainForward(
			model.Micro[float32]{B: 1, T: 4, IDs: ids, Targets: ids, Dropout: d, ForwardOnly: true},
		)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Drop(tr)
		return slices.Clone(tr.Loss)
	}
	if !slices.Equal(run(allDropout), run(model.Dropout{})) {
		t.Error("dropout changes an evaluation")
	}
	for _, rate := range []float64{1, -0.1, math.NaN()} {
		if _, err := s.TrainForward(model.Micro[float32]{B: 1, T: 4, IDs: ids, Targets: ids,
			Dropout: model.Dropout{Residual: rate}}); err == nil {
			t.Errorf("a rate of %v is accepted", rate)
		}
	}
}
