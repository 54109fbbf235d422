package model_test

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// bfloat16Specs have every kind of tensor that a trace keeps.
func bfloat16Specs(t *testing.T) map[string]model.Spec {
	t.Helper()
	out := map[string]model.Spec{"gpt2": model.NewGPT2(model.Shape{Layers: 3, Width: 48, Heads: 3, Vocab: 70,
		Context: 32})}
	for name, text := range map[string]string{
		"qwen3": `{"model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
			"intermediate_size": 80, "vocab_size": 70, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000, "hidden_act": "silu"}`,
		"gemma3": `{"model_type": "gemma3_text", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
			"intermediate_size": 80, "vocab_size": 70, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_local_base_freq": 1000,
			"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh"}`,
	} {
		c, err := model.ParseHF([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out[name] = c
	}
	return out
}

func drawn[F tensor.Float](t *testing.T, c model.Spec, set kernel.Set[F], stages int) *trainer[F] {
	t.Helper()
	tr := &trainer[F]{}
	for _, r := range model.Split(len(c.Layers), stages) {
		s, err := model.Init(c, r, set, 3)
		if err != nil {
			t.Fatal(err)
		}
		tr.stages = append(tr.stages, s)
		tr.grads = append(tr.grads, s.NewGrads())
	}
	return tr
}

// apart returns the distance of two gradients, divided by the length of the second.
func apart[F, G tensor.Float](a map[string][]F, b map[string][]G) float64 {
	var off, all float64
	for name, want := range b {
		for i, w := range want {
			d := float64(a[name][i]) - float64(w)
			off += d * d
			all += float64(w) * float64(w)
		}
	}
	return math.Sqrt(off / all)
}

func TestTrain_BFloat16IsNearFloat32(t *testing.T) {
	ids := []int32{5, 9, 2, 61, 33, 7, 7, 48, 20, 1, 69, 13, 40}
	fast := cpu.New(2)
	defer fast.Close()
	for name, c := range bfloat16Specs(t) {
		t.Run(name, func(t *testing.T) {
			full := drawn(t, c, ref.New[float64](), 1)
			want := full.step(t, ids)
			plain := drawn(t, c, ref.New[float64]().BFloat16(), 1)
			rounded := drawn(t, c, fast.BFloat16(), 1)
			loss, reference := rounded.step(t, ids), plain.step(t, ids)
			if d := apart(rounded.merged(), full.merged()); d == 0 || d > 0.05 || math.Abs(loss-want) > 1e-3 {
				t.Errorf("loss %.6f, want %.6f; gradients a distance of %.4f", loss, want, d)
			}
			if d := apart(rounded.merged(), plain.merged()); d > 0.01 || math.Abs(loss-reference) > 2e-4 {
				t.Errorf("loss %.6f, the reference has %.6f; gradients a distance of %.4f", loss, reference, d)
			}
		})
	}
}

func TestTrain_BFloat16HasOneResult(t *testing.T) {
	ids := []int32{5, 9, 2, 61, 33, 7, 7, 48, 20, 1, 69, 13, 40}
	for name, c := range bfloat16Specs(t) {
		var want map[string][]float32
		for _, instructions := range cpu.Instructions() {
			set, err := cpu.Open(2, instructions)
			if err != nil {
				t.Fatal(err)
			}
			for stages := 1; stages <= 3; stages++ {
				tr := drawn(t, c, set.BFloat16(), stages)
				tr.step(t, ids)
				tr.grads = nil
				for _, s := range tr.stages {
					tr.grads = append(tr.grads, s.NewGrads())
				}
				tr.step(t, ids) // over memory that an earlier step has used
				got := tr.merged()
				if want == nil {
					want = got
				}
				for tensor, w := range want {
					if !slices.Equal(got[tensor], w) {
						t.Errorf("%s: the gradient of %s has other bits with %s in %d stages", name, tensor,
							instructions, stages)
					}
				}
			}
			set.Close()
		}
	}
}
