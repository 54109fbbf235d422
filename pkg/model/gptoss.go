package model

// GPT-OSS has experts with a clamped activation in every layer, biases on all matrices, an
// attention sink for each head, and a sliding window in every other layer.
func gptOSS() architecture {
	return architecture{
		name: "gpt-oss", modelTypes: []string{"gpt_oss"}, gguf: []string{"gpt-oss"}, class: "GptOssForCausalLM",
		init: Initialization{Std: 0.02}, // as transformers
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("gpt-oss", hfDefaults{eps: 1e-5, headDim: 64, ownRope: true, ownAct: true})
			if err != nil {
				return s, err
			}
			bias := h.bool("attention_bias", true)
			s.setBiases(bias, bias, false)
			s.gptOSSLayers(Experts{
				Count: h.int("num_local_experts", h.int("num_experts", 128)), TopK: h.int("num_experts_per_tok", 4),
				Width: h.int("intermediate_size", 0), Normalize: true, Bias: true, Router: Linear{Bias: true},
				Alpha: h.float("swiglu_alpha", 1.702), Limit: h.float("swiglu_limit", 7), InterleavedHF: true,
			})
			p := h.ropeSettings()
			if p.empty() { // transformers assumes the YaRN that the model is published with
				p = &ropeFields{kind: "yarn", factor: 32, original: 4096, truncate: false}
			}
			rope := h.ropeOf(s.Layers[0].Attention.HeadDim, h.float("rope_theta", 150000), p, h.originalContext(p))
			for l := range s.Layers {
				s.Layers[l].Attention.Rope = &rope
			}
			h.setWindow(&s, h.window(128), every(2))
			return s, h.err()
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			s, err := g.decoder("gpt-oss")
			if err != nil {
				return s, err
			}
			sinks := g.has("blk.0.attn_sinks.weight")
			s.gptOSSLayers(Experts{
				Count: g.uint("expert_count", 0), TopK: g.uint("expert_used_count", 0),
				Width:     g.uint("expert_feed_forward_length", s.Layers[0].FFN.Width),
				Normalize: true, Bias: true, Router: Linear{Bias: true}, Alpha: 1.702, Limit: 7, InterleavedHF: true,
			})
			for l := range s.Layers {
				a := &s.Layers[l].Attention
				// KeepRamp: as published; the metadata does not say so
				if a.Rope.KeepRamp = a.Rope.Type == "yarn"; !sinks {
					a.Sinks = Name{}
				}
			}
			s.setWindow(g.uint("attention.sliding_window", 0), g.full(len(s.Layers), 2))
			return s, nil
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("gpt_oss")
			if r := s.Rope(); r != nil && r.Type == "" { // without the setting, transformers assumes YaRN
				out["rope_scaling"] = map[string]any{"rope_type": "default"}
			}
			out["attention_bias"], out["sliding_window"] = s.Layers[0].Attention.Q.Bias, s.windowJSON()
			out["layer_types"] = s.layerTypes()
			if x := s.Layers[0].FFN.Experts; x != nil {
				out["num_local_experts"], out["num_experts_per_tok"] = x.Count, x.TopK
				out["swiglu_alpha"], out["swiglu_limit"] = x.Alpha, x.Limit
			}
			return out
		},
	}
}

// gptOSSLayers changes the layers to those of GPT-OSS.
func (s *Spec) gptOSSLayers(sizes Experts) {
	for l := range s.Layers {
		a, f, name := &s.Layers[l].Attention, &s.Layers[l].FFN, layerNames("model.layers", l)
		a.Sinks = name("self_attn.sinks", "attn_sinks.weight")
		f.Norm.GGUF = name("", "post_attention_norm").GGUF
		f.route(l, sizes)
		f.Experts.Router.Name = name("mlp.router", "ffn_gate_inp")
	}
}
