package model

// Llama has RMSNorm, rotary positions, grouped queries, SwiGLU and optional biases.
func llama() architecture {
	return architecture{
		name: "llama", modelTypes: []string{"llama"}, gguf: []string{"llama"}, class: "LlamaForCausalLM",
		init:            Initialization{Std: 0.02, DepthScaled: true}, // as torchtitan
		interleavedGGUF: true,
		usual: map[string]int{
			"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
			"vocab_size": 32000, "max_position_embeddings": 2048,
		},
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("llama", hfDefaults{})
			attention := h.bool("attention_bias", false)
			s.setBiases(attention, attention, h.bool("mlp_bias", false))
			return s, err
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			s, err := g.decoder("llama")
			if err == nil && g.uint("expert_count", 0) > 0 {
				s.Architecture = "mixtral"
				for l := range s.Layers {
					if x := s.Layers[l].FFN.Experts; x != nil {
						mixtralNames(x)
					}
				}
			}
			return s, err
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("llama")
			out["attention_bias"], out["mlp_bias"] = s.Layers[0].Attention.Q.Bias, s.Layers[0].FFN.Up.Bias
			return out
		},
	}
}
