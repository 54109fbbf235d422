package model

// Qwen2 is a llama with biases on queries, keys and values. It may have a sliding window in
// the layers from max_window_layers on. The language models of Qwen2-VL and Qwen2.5-VL have
// the same layers.
func qwen2() architecture {
	return architecture{
		name: "qwen2", modelTypes: []string{"qwen2", "qwen2_vl_text", "qwen2_5_vl_text"},
		gguf:  []string{"qwen2", "qwen2vl"},
		class: "Qwen2ForCausalLM",
		init:  Initialization{Std: 0.02}, // as transformers
		usual: map[string]int{
			"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 22016,
			"vocab_size": 151936, "max_position_embeddings": 32768,
		},
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("qwen2", hfDefaults{})
			s.setBiases(true, false, false)
			if h.bool("use_sliding_window", false) {
				h.setWindow(&s, h.window(4096), h.fullBelow())
			}
			return s, err
		},
		readGGUF: func(g *ggufFields) (Spec, error) { return g.decoder("qwen2") },
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("qwen2")
			s.qwenWindowJSON(out)
			return out
		},
	}
}

// qwenWindowJSON adds the settings of the sliding window in the form of Qwen's config.json.
func (s *Spec) qwenWindowJSON(out map[string]any) {
	out["sliding_window"], out["use_sliding_window"] = s.windowJSON(), s.Window() > 0
	if s.Window() > 0 {
		out["max_window_layers"], out["layer_types"] = 0, s.layerTypes()
	}
}
