package model

import "slices"

// Qwen3 is a llama that normalizes the heads of queries and keys. The language model of
// Qwen3-VL has the same layers. Qwen3 MoE has experts in some or all layers.
func qwen3() architecture {
	return architecture{
		name: "qwen3", modelTypes: []string{"qwen3", "qwen3_vl_text"}, gguf: []string{"qwen3", "qwen3vl"},
		class: "Qwen3ForCausalLM",
		init:  Initialization{Std: 0.02}, // as transformers
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.qwen3("qwen3", hfDefaults{headDim: 128})
			if h.bool("use_sliding_window", false) {
				h.setWindow(&s, h.window(4096), h.fullBelow())
			}
			return s, err
		},
		readGGUF: func(g *ggufFields) (Spec, error) { return g.decoder("qwen3") },
		writeHF:  func(s *Spec) map[string]any { return s.qwen3JSON("qwen3") },
	}
}

func qwen3MoE() architecture {
	return architecture{
		name: "qwen3_moe", modelTypes: []string{"qwen3_moe"}, gguf: []string{"qwen3moe"}, class: "Qwen3MoeForCausalLM",
		init: Initialization{Std: 0.02}, // as transformers
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.qwen3("qwen3_moe", hfDefaults{})
			sizes := Experts{
				Count: h.int("num_local_experts", h.int("num_experts", 128)), TopK: h.int("num_experts_per_tok", 8),
				Width: h.int("moe_intermediate_size", 768), Normalize: h.bool("norm_topk_prob", false),
			}
			step, dense := max(h.int("decoder_sparse_step", 1), 1), h.ints("mlp_only_layers")
			for l := range s.Layers {
				if (l+1)%step == 0 && !slices.Contains(dense, l) {
					s.Layers[l].FFN.route(l, sizes)
				}
			}
			if h.bool("use_sliding_window", false) {
				s.setWindow(h.window(4096), nil)
			}
			return s, err
		},
		readGGUF: func(g *ggufFields) (Spec, error) { return g.decoder("qwen3_moe") },
		writeHF: func(s *Spec) map[string]any {
			out := s.qwen3JSON("qwen3_moe")
			dense := []int{}
			for l := range s.Layers {
				x := s.Layers[l].FFN.Experts
				if x == nil {
					dense = append(dense, l)
					continue
				}
				out["num_experts"], out["num_experts_per_tok"] = x.Count, x.TopK
				out["moe_intermediate_size"], out["norm_topk_prob"] = x.Width, x.Normalize
			}
			out["decoder_sparse_step"], out["mlp_only_layers"] = 1, dense
			return out
		},
	}
}

func (h *hfFields) qwen3(name string, o hfDefaults) (Spec, error) {
	s, err := h.decoder(name, o)
	bias := h.bool("attention_bias", false)
	s.setBiases(bias, bias, false)
	for l := range s.Layers {
		s.Layers[l].Attention.normHeads(l)
	}
	return s, err
}

func (s *Spec) qwen3JSON(modelType string) map[string]any {
	out := s.decoderJSON(modelType)
	out["attention_bias"] = s.Layers[0].Attention.Q.Bias
	s.qwenWindowJSON(out)
	return out
}
