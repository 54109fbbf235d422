package model

import (
	"cmp"
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Gemma 2 and 3 normalize the input and the output of attention and feed-forward, by
// 1 + gain, scale embeddings, and have a sliding window in most layers. Gemma 2 also caps
// scores and logits. Gemma 3 normalizes the heads of queries and keys and has another
// rotation in layers with a window.
func gemma2() architecture {
	return architecture{
		name: "gemma2", modelTypes: []string{"gemma2"}, gguf: []string{"gemma2"}, class: "Gemma2ForCausalLM",
		init:      Initialization{Std: 0.02}, // as transformers
		addedGGUF: true,
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.gemma("gemma2", hfDefaults{headDim: 256, tied: true, ownAct: true}, every(2))
			s.Head.Softcap = h.gemmaCap("final_logit_softcapping", 30)
			bound := h.gemmaCap("attn_logit_softcapping", 50)
			for l := range s.Layers {
				s.Layers[l].Attention.Softcap = bound
			}
			return s, err
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			s, err := g.gemma("gemma2", 46, g.uint("attention.sliding_window", 4096), 2)
			s.Head.Softcap = g.float("final_logit_softcapping", 30)
			bound := g.float("attn_logit_softcapping", 50)
			for l := range s.Layers {
				s.Layers[l].Attention.Softcap = bound
			}
			return s, err
		},
		writeHF: func(s *Spec) map[string]any { return s.gemmaJSON("gemma2") },
	}
}

func gemma3() architecture {
	return architecture{
		name: "gemma3", modelTypes: []string{"gemma3_text"}, gguf: []string{"gemma3"}, class: "Gemma3ForCausalLM",
		init:      Initialization{Std: 0.02}, // as transformers
		addedGGUF: true,
		usual: map[string]int{
			"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
			"intermediate_size": 9216,
			"vocab_size":        262208, "max_position_embeddings": 131072,
		},
		readHF: func(h *hfFields) (Spec, error) {
			if h.bool("use_bidirectional_attention", false) {
				h.refuse("use_bidirectional_attention", "true", "causal attention")
			}
			s, err := h.gemma("gemma3", hfDefaults{headDim: 256, tied: true, ownAct: true, ownRope: true},
				every(h.int("sliding_window_pattern", 6)))
			if err != nil {
				return s, err
			}
			s.Head.Softcap = h.gemmaCap("final_logit_softcapping", 0)
			global, local := h.gemma3Ropes(s.Layers[0].Attention.HeadDim)
			for l := range s.Layers {
				a := &s.Layers[l].Attention
				if a.normHeads(l); a.Window > 0 {
					a.Rope = &local
				} else {
					a.Rope = &global
				}
				a.QNorm.OnePlus, a.KNorm.OnePlus = true, true
			}
			return s, h.err()
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			s, err := g.gemma("gemma3", 62, g.uint("attention.sliding_window", 0), 6)
			if err != nil {
				return s, err
			}
			s.Head.Softcap = g.float("final_logit_softcapping", 0)
			local := &Rope{Base: g.float("rope.freq_base_swa", 10000), Dims: s.Layers[0].Attention.Rope.Dims}
			for l := range s.Layers {
				if a := &s.Layers[l].Attention; a.Window > 0 {
					a.Rope = local
				}
			}
			return s, err
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.gemmaJSON("gemma3_text")
			out["rope_local_base_freq"] = out["rope_theta"]
			for l := range s.Layers {
				if a := &s.Layers[l].Attention; a.Window > 0 && a.Rope != nil {
					out["rope_local_base_freq"] = a.Rope.Base
				}
			}
			return out
		},
	}
}

// gemmaShape changes the layers to those of Gemma 2 and 3.
func (s *Spec) gemmaShape() {
	s.Embedding.Scale = float64(float32(math.Sqrt(float64(s.Width))))
	s.Norm.OnePlus = true
	for l := range s.Layers {
		a, f, name := &s.Layers[l].Attention, &s.Layers[l].FFN, layerNames("model.layers", l)
		a.Norm.OnePlus = true
		a.PostNorm, f.Norm, f.PostNorm = a.Norm, a.Norm, a.Norm
		a.PostNorm.Name = name("post_attention_layernorm", "post_attention_norm")
		f.Norm.Name, f.PostNorm.Name = name("pre_feedforward_layernorm", "ffn_norm"),
			name("post_feedforward_layernorm", "post_ffw_norm")
		a.QNorm.OnePlus, a.KNorm.OnePlus = a.QNorm.Kind != NoNorm, a.KNorm.Kind != NoNorm
	}
}

// gemma reads what Gemma 2 and 3 share. full selects the layers with full attention if
// there is no setting layer_types.
func (h *hfFields) gemma(name string, o hfDefaults, full func(l int) bool) (Spec, error) {
	s, err := h.decoder(name, o)
	if err != nil {
		return s, err
	}
	s.gemmaShape()
	s.setAct(h.act("hidden_activation", "gelu_pytorch_tanh"))
	bias := h.bool("attention_bias", false)
	s.setBiases(bias, bias, false)
	if scalar := h.float("query_pre_attn_scalar", 256); scalar > 0 {
		for l := range s.Layers {
			s.Layers[l].Attention.Scale = 1 / math.Sqrt(scalar)
		}
	}
	h.setWindow(&s, h.window(4096), full)
	return s, h.err()
}

// gemmaCap reads a cap of scores or logits. null means none. If the setting is missing, it returns
// otherwise.
func (h *hfFields) gemmaCap(name string, otherwise float64) float64 {
	if h.has(name) {
		otherwise = 0
	}
	return h.float(name, otherwise)
}

// gemma3Ropes reads the rotation of layers with full attention (global) and of layers with a
// window (local). Settings of rope_parameters outside the two kinds of layers are ignored,
// as in transformers.
func (h *hfFields) gemma3Ropes(headDim int) (global, local Rope) {
	kinds := h.ropeFields("rope_parameters")
	if kinds == nil {
		kinds = &ropeFields{}
	}
	if old := h.ropeFields("rope_scaling"); !old.empty() {
		if kinds.full != nil && old.theta == nil {
			old.theta = kinds.full.theta
		}
		kinds.full = old
	}
	rope := func(p *ropeFields, base float64) Rope {
		original := 0
		if p != nil {
			p.truncate = true // transformers ignores the setting here
			original = cmp.Or(p.original, h.size("max_position_embeddings", 0))
		}
		return h.ropeOf(headDim, base, p, original)
	}
	return rope(kinds.full, h.float("rope_theta", 1e6)), rope(kinds.sliding, h.float("rope_local_base_freq", 10000))
}

// gemma reads what GGUF files of Gemma 2 and 3 share. The 27B models, which are recognized
// by their number of layers, have another scale of scores.
func (g *ggufFields) gemma(name string, largest, window, pattern int) (Spec, error) {
	s, err := g.decoder(name)
	if err != nil {
		return s, err
	}
	s.gemmaShape()
	s.setAct(kernel.GELUTanh)
	if len(s.Layers) == largest {
		for l := range s.Layers {
			a := &s.Layers[l].Attention
			a.Scale = 1 / math.Sqrt(float64(s.Width)/float64(a.Heads))
		}
	}
	s.setWindow(window, g.full(len(s.Layers), pattern))
	return s, nil
}

func (s *Spec) gemmaJSON(modelType string) map[string]any {
	out := s.decoderJSON(modelType)
	a, bound := &s.Layers[0].Attention, func(v float64) any {
		if v == 0 {
			return nil
		}
		return v
	}
	scale := a.heads().Scale
	scalar := math.Round(1e6/(scale*scale)) / 1e6
	out["hidden_activation"], out["query_pre_attn_scalar"] = activationName(s.Layers[0].FFN.Act), scalar
	if scalar == math.Trunc(scalar) {
		out["query_pre_attn_scalar"] = int(scalar) // transformers wants an integer
	}
	out["attn_logit_softcapping"], out["final_logit_softcapping"] = bound(a.Softcap), bound(s.Head.Softcap)
	out["attention_bias"], out["sliding_window"] = a.Q.Bias, s.windowJSON()
	if s.Window() > 0 {
		out["layer_types"] = s.layerTypes()
	}
	return out
}
