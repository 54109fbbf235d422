package model_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestStage_HalvesOfABackwardPassHaveItsBits runs two micro-batches forward, then backward in halves
// and in the order of a zero-bubble schedule, and compares with whole backward passes.
func TestStage_HalvesOfABackwardPassHaveItsBits(t *testing.T) {
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2", "gpt-oss", "qwen3", "gemma2") {
		files := open(t, shared(t, "models/tiny", name))
		ids := readExpectation(t, name).Cases[0].IDs[:16]
		other := slices.Clone(ids)
		slices.Reverse(other)
		all := sets(t)
		set := cpu.New(2)
		t.Cleanup(set.Close)
		all["bfloat16"] = set.BFloat16()
		for kernels, set := range all {
			t.Run(fmt.Sprintf("%s/%s", name, kernels), func(t *testing.T) {
				halves(t, files, set, [][]int32{ids, other})
			})
		}
	}
}

func halves(t *testing.T, files *model.Files, set kernel.Set[float32], micro [][]int32) {
	tr := load(t, files, set, 2)
	forward := func(ids []int32) (traces []*model.Trace[float32]) {
		var hidden []float32
		for _, s := range tr.stages {
			trace, err := s.TrainForward(model.Micro[float32]{B: 1, T: len(ids), IDs: ids, Hidden: hidden,
				Targets: ids, Scale: 0.25})
			if err != nil {
				t.Fatal(err)
			}
			traces, hidden = append(traces, trace), slices.Clone(trace.Out)
		}
		return traces
	}
	var want [][]*model.Params[float32]
	var wantIn [][]float32
	for _, ids := range micro {
		traces := forward(ids)
		var grads []*model.Params[float32]
		var d []float32
		for i := len(tr.stages) - 1; i >= 0; i-- {
			g := tr.stages[i].NewGrads()
			in, err := tr.stages[i].TrainBackward(traces[i], d, g)
			if err != nil {
				t.Fatal(err)
			}
			d = slices.Clone(in)
			if i > 0 {
				wantIn = append(wantIn, d)
			}
			grads = append([]*model.Params[float32]{g}, grads...)
		}
		want = append(want, grads)
	}
	var all [][]*model.Trace[float32]
	for _, ids := range micro {
		all = append(all, forward(ids))
	}
	for m, traces := range all { // both input passes first
		var d []float32
		for i := len(tr.stages) - 1; i >= 0; i-- {
			in, err := tr.stages[i].TrainBackwardInput(traces[i], d)
			if err != nil {
				t.Fatal(err)
			}
			d = slices.Clone(in)
			if i > 0 && !slices.Equal(d, wantIn[m]) {
				t.Errorf("micro-batch %d: the gradient of the input differs", m)
			}
		}
	}
	for m, traces := range all {
		for i, s := range tr.stages {
			g := s.NewGrads()
			for _, p := range g.Tensors { // what was there before must not matter
				for e := range p.Data {
					p.Data[e] = 7
				}
			}
			if err := s.TrainBackwardWeight(traces[i], g); err != nil {
				t.Fatal(err)
			}
			for e, p := range g.Tensors {
				if !slices.Equal(p.Data, want[m][i].Tensors[e].Data) {
					t.Errorf("micro-batch %d: the gradient of %s differs", m, p.Name)
				}
			}
		}
	}
}

func TestStage_HalvesOfABackwardPassHaveAnOrder(t *testing.T) {
	files := open(t, shared(t, "models/tiny", "llama"))
	s := load(t, files, sets(t)["ref"], 1).stages[0]
	ids := []int32{1, 2, 3}
	trace, err := s.TrainForward(model.Micro[float32]{B: 1, T: 3, IDs: ids, Targets: ids, Scale: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.TrainBackwardWeight(trace, s.NewGrads()); err == nil {
		t.Error("the second half is accepted before the first")
	}
	if _, err := s.TrainBackwardInput(trace, nil); err != nil {
		t.Error(err)
	}
	if _, err := s.TrainBackwardInput(trace, nil); err == nil {
		t.Error("the first half is accepted twice")
	}
}

// TestStage_FrozenParametersChangeNoOtherGradient freezes every other parameter, in both ways to run
// backward.
func TestStage_FrozenParametersChangeNoOtherGradient(t *testing.T) {
	for _, name := range brief(trainable, "llama-linear-bias", "gpt2", "gpt-oss", "qwen3", "gemma2") {
		files := open(t, shared(t, "models/tiny", name))
		ids := readExpectation(t, name).Cases[0].IDs[:12]
		for kernels, set := range sets(t) {
			s := load(t, files, set, 1).stages[0]
			trace := func() *model.Trace[float32] {
				tr, err := s.TrainForward(model.Micro[float32]{B: 1, T: len(ids), IDs: ids, Targets: ids, Scale: 1})
				if err != nil {
					t.Fatal(err)
				}
				return tr
			}
			want := s.NewGrads()
			if _, err := s.TrainBackward(trace(), nil, want); err != nil {
				t.Fatal(err)
			}
			for odd := range 2 {
				for _, split := range []bool{false, true} {
					g, tr := s.NewGrads(), trace()
					for i := range g.Tensors {
						if i%2 == odd {
							g.Tensors[i].Data = nil
						}
					}
					var err error
					if split {
						if _, err = s.TrainBackwardInput(tr, nil); err == nil {
							err = s.TrainBackwardWeight(tr, g)
						}
					} else {
						_, err = s.TrainBackward(tr, nil, g)
					}
					if err != nil {
						t.Fatal(err)
					}
					for i, p := range g.Tensors {
						if i%2 != odd && !slices.Equal(p.Data, want.Tensors[i].Data) || i%2 == odd && p.Data != nil {
							t.Errorf("%s/%s: the gradient of %s is wrong", name, kernels, p.Name)
						}
					}
				}
			}
		}
	}
}
