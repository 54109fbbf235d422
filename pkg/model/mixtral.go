package model

import "strings"

// Mixtral is a Mistral with experts in every layer. GGUF files call it llama.
func mixtral() architecture {
	return architecture{
		name: "mixtral", modelTypes: []string{"mixtral"}, class: "MixtralForCausalLM", interleavedGGUF: true,
		init: Initialization{Std: 0.02}, // as transformers
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("mixtral", hfDefaults{eps: 1e-5, base: 1e6})
			sizes := Experts{
				Count: h.int("num_local_experts", h.int("num_experts", 8)), TopK: h.int("num_experts_per_tok", 2),
				Width: h.int("intermediate_size", 0), Normalize: true,
			}
			for l := range s.Layers {
				s.Layers[l].FFN.route(l, sizes)
				mixtralNames(s.Layers[l].FFN.Experts)
			}
			s.setWindow(h.window(0), nil)
			return s, err
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("mixtral")
			out["sliding_window"] = s.windowJSON()
			if x := s.Layers[0].FFN.Experts; x != nil {
				out["num_local_experts"], out["num_experts_per_tok"] = x.Count, x.TopK
			}
			return out
		},
	}
}

// mixtralNames adds the names that Mixtral's files have for the experts' tensors.
func mixtralNames(x *Experts) {
	rename := strings.NewReplacer(".mlp.", ".block_sparse_moe.", ".gate_proj", ".w1", ".up_proj", ".w3", ".down_proj",
		".w2")
	for _, n := range []*Name{&x.Router.Name, &x.Gate, &x.Up, &x.Down} {
		n.HF = rename.Replace(n.Param)
	}
}
