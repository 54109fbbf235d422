package model_test

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// documentSpecs have learned and rotary positions, normalized heads, a window, and frequencies that depend
// on the length of a document.
func documentSpecs(t *testing.T) map[string]model.Spec {
	t.Helper()
	out := bfloat16Specs(t)
	c, err := model.ParseHF([]byte(`{"model_type": "phi3", "hidden_size": 16, "num_hidden_layers": 2,
		"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "vocab_size": 70,
		"max_position_embeddings": 32, "original_max_position_embeddings": 8, "rms_norm_eps": 1e-6,
		"rope_theta": 10000, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
		"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 3, 4, 5]}}`))
	if err != nil {
		t.Fatal(err)
	}
	out["longrope"] = c
	return out
}

// TestStage_DocumentsOfASequenceAreIsolated packs documents into two sequences. Every row has the loss, bit
// for bit, that it has when its document is run alone, and the gradients are the sums of theirs.
func TestStage_DocumentsOfASequenceAreIsolated(t *testing.T) {
	lengths := []int{3, 9, 1, 7, 12, 8} // two sequences of 20
	var ids, targets []int32
	for i := range 40 {
		ids, targets = append(ids, int32(i*i*7+i)%70), append(targets, int32(i*11+5)%70)
	}
	targets[4], targets[39] = -1, -1
	fast := cpu.New(2)
	defer fast.Close()
	slow := ref.New[float32]()
	for kernels, set := range map[string]kernel.Set[float32]{"cpu": fast, "ref": slow, "cpu bfloat16": fast.BFloat16(),
		"ref bfloat16": slow.BFloat16()} {
		for name, c := range documentSpecs(t) {
			one, two := drawn(t, c, set, 1), drawn(t, c, set, 2)
			packed := one.documents(t, ids, targets, lengths, 2, 20)
			if split := two.documents(t, ids, targets, lengths, 2, 20); !slices.Equal(packed, split) ||
				apart(two.merged(), one.merged()) != 0 {
				t.Errorf("%s/%s: two stages differ from one", name, kernels)
			}
			got := one.merged()
			want, at := map[string][]float64{}, 0
			var losses []float64
			for _, n := range lengths {
				losses = append(losses, one.documents(t, ids[at:at+n], targets[at:at+n], nil, 1, n)...)
				for param, g := range one.merged() {
					if want[param] == nil {
						want[param] = make([]float64, len(g))
					}
					for i, v := range g {
						want[param][i] += float64(v)
					}
				}
				at += n
			}
			if !slices.Equal(packed, losses) {
				t.Errorf("%s/%s: losses of packed documents are\n%v\nalone they are\n%v", name, kernels, packed, losses)
			}
			if d := apart(got, want); !(d < 1e-6) {
				t.Errorf("%s/%s: gradients are a distance of %g from the sum of single documents", name, kernels, d)
			}
			if plain := one.documents(t, ids, targets, nil, 2, 20); slices.Equal(plain, packed) {
				t.Errorf("%s/%s: the documents change nothing", name, kernels)
			}
		}
	}
}

// documents runs a micro-batch forward and backward and returns the losses of its rows.
func (tr *trainer[F]) documents(t *testing.T, ids, targets []int32, lengths []int, b, n int) []float64 {
	t.Helper()
	micro := model.Micro[F]{B: b, T: n, IDs: ids, Targets: targets, Documents: lengths, Scale: 1.0 / 40}
	var traces []*model.Trace[F]
	for _, s := range tr.stages {
		trace, err := s.TrainForward(micro)
		if err != nil {
			t.Fatal(err)
		}
		traces, micro.Hidden = append(traces, trace), trace.Out
	}
	losses := slices.Clone(traces[len(traces)-1].Loss)
	var grad []F
	for i := len(tr.stages) - 1; i >= 0; i-- {
		var err error
		if grad, err = tr.stages[i].TrainBackward(traces[i], slices.Clone(grad), tr.grads[i]); err != nil {
			t.Fatal(err)
		}
	}
	return losses
}

func TestStage_DocumentsFillSequences(t *testing.T) {
	c := model.NewGPT2(model.Shape{Layers: 1, Width: 8, Heads: 1, Vocab: 9, Context: 8})
	tr := drawn(t, c, ref.New[float32](), 1)
	for name, lengths := range map[string][]int{
		"none": {}, "too few rows": {4, 3}, "too many rows": {4, 4, 1}, "an empty one": {4, 0, 4},
		"one across sequences": {3, 2, 3}, "a negative one": {4, 5, -1}, "an overflow": {4, math.MaxInt, 1},
	} {
		_, err := tr.stages[0].TrainForward(model.Micro[float32]{B: 2, T: 4, IDs: make([]int32, 8),
			Targets: make([]int32, 8), Documents: lengths})
		if fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
