package model

// Mistral is a llama with a sliding window in every layer. GGUF files call it llama.
func mistral() architecture {
	return architecture{
		name: "mistral", modelTypes: []string{"mistral"}, class: "MistralForCausalLM",
		init: Initialization{Std: 0.02}, // as transformers
		usual: map[string]int{
			"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
			"intermediate_size": 14336,
			"vocab_size":        32000, "max_position_embeddings": 131072,
		},
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("mistral", hfDefaults{})
			s.setWindow(h.window(4096), nil)
			return s, err
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("mistral")
			out["sliding_window"] = s.windowJSON()
			return out
		},
	}
}
