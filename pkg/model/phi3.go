package model

import (
	"cmp"
	"math"
)

// Phi-3 is a llama with one matrix for queries, keys and values and one for gate and up. It
// may rotate only part of each head, and extends its context by LongRoPE.
func phi3() architecture {
	return architecture{
		name: "phi3", modelTypes: []string{"phi3"}, gguf: []string{"phi3"}, class: "Phi3ForCausalLM",
		init: Initialization{Std: 0.02}, // as transformers
		readHF: func(h *hfFields) (Spec, error) {
			s, err := h.decoder("phi3", hfDefaults{eps: 1e-5, ownRope: true})
			if err != nil {
				return s, err
			}
			rope := h.phi3Rope(s.Layers[0].Attention.HeadDim)
			for l := range s.Layers {
				s.Layers[l].Attention.Rope = &rope
			}
			s.fuse()
			s.setWindow(h.window(0), nil)
			return s, h.err()
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			s, err := g.decoder("phi3")
			s.fuse()
			return s, err
		},
		writeHF: func(s *Spec) map[string]any {
			out := s.decoderJSON("phi3")
			out["sliding_window"], out["original_max_position_embeddings"] = s.windowJSON(), s.Context
			if r := s.Rope(); r != nil && r.Original > 0 {
				out["original_max_position_embeddings"] = r.Original
			}
			return out
		},
	}
}

// fuse replaces the matrices of all layers by Phi-3's.
func (s *Spec) fuse() {
	for l := range s.Layers {
		a, f, name := &s.Layers[l].Attention, &s.Layers[l].FFN, layerNames("model.layers", l)
		a.QKV, f.GateUp = Linear{Name: name("self_attn.qkv_proj", "attn_qkv")},
			Linear{Name: name("mlp.gate_up_proj", "ffn_up")}
		a.Q, a.K, a.V, f.Gate, f.Up = Linear{}, Linear{}, Linear{}, Linear{}, Linear{}
	}
}

func (h *hfFields) phi3Rope(headDim int) Rope {
	partial, p := h.float("partial_rotary_factor", 1), h.ropeSettings()
	if p != nil {
		if p.partial != nil {
			partial = *p.partial
		}
		if p.kind == "yarn" { // an early name of LongRoPE
			p.kind = "longrope"
		}
	}
	r := h.ropeOf(headDim, h.float("rope_theta", 10000), p, cmp.Or(h.int("original_max_position_embeddings", 0), 4096))
	if !(partial > 0 && partial <= 1) {
		h.fail("partial_rotary_factor", "want a number above 0, at most 1, got %g", partial)
		return r
	}
	r.Dims = int(float64(headDim) * partial)
	if r.Dims%2 != 0 && r.Dims > 0 { // transformers rounds up, but computes the frequencies with the odd number
		r.Base = math.Pow(r.Base, float64(r.Dims+1)/float64(r.Dims))
		r.Dims++
	}
	return r
}
