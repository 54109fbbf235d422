package model

// SmolLM3 is a llama in which some layers do not rotate queries and keys: every fourth one
// by default. If there is a sliding window, it is in those layers.
func smolLM3() architecture {
	return architecture{
		name: "smollm3", modelTypes: []string{"smollm3"}, gguf: []string{"smollm3"}, class: "SmolLM3ForCausalLM",
		init:            Initialization{Std: 0.02}, // as transformers
		interleavedGGUF: true,
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("smollm3", hfDefaults{base: 2e6, tied: true})
			if err != nil {
				return s, err
			}
			bias := h.bool("attention_bias", false)
			s.setBiases(bias, bias, h.bool("mlp_bias", false))
			rotates := h.smolLM3Rotates(len(s.Layers))
			s.unrotate(func(l int) bool { return !rotates[l] })
			if h.has("sliding_window") && (h.values["layer_types"] != nil || h.bool("use_sliding_window", false)) {
				h.setWindow(&s, h.window(0), func(l int) bool { return rotates[l] })
			}
			return s, h.err()
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			s, err := g.decoder("smollm3")
			s.unrotate(every(4))
			return s, err
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("smollm3")
			out["attention_bias"], out["mlp_bias"] = s.Layers[0].Attention.Q.Bias, s.Layers[0].FFN.Up.Bias
			rotates := make([]int, len(s.Layers))
			for l := range rotates {
				if s.Layers[l].Attention.Rope != nil {
					rotates[l] = 1
				}
			}
			out["no_rope_layers"] = rotates
			s.qwenWindowJSON(out)
			return out
		},
	}
}

// smolLM3Rotates says which layers rotate. no_rope_layers may be longer than the model.
func (h *hfFields) smolLM3Rotates(layers int) []bool {
	none, out := every(max(h.int("no_rope_layer_interval", 4), 1)), make([]bool, layers)
	for l := range out {
		out[l] = !none(l)
	}
	marks := h.ints("no_rope_layers")
	if marks == nil {
		return out
	}
	if len(marks) < layers {
		h.fail("no_rope_layers", "%d of %d layers", len(marks), layers)
		return out
	}
	for l := range out {
		out[l] = marks[l] != 0
	}
	return out
}

// unrotate removes the rotation of the layers for which none reports true.
func (s *Spec) unrotate(none func(l int) bool) {
	for l := range s.Layers {
		if none(l) {
			s.Layers[l].Attention.Rope = nil
		}
	}
}
