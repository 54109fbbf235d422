package model

import (
	"cmp"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// GPT-2: LayerNorm with bias, learned positions, one matrix for queries, keys and values,
// GELU, biases everywhere, the head tied to the embedding. Hugging Face's files hold
// matrices as Conv1D weights, [in, out]: they are transposed when read and written.
func gpt2() architecture {
	return architecture{
		name: "gpt2", modelTypes: []string{"gpt2"}, gguf: []string{"gpt2"}, class: "GPT2LMHeadModel",
		init: Initialization{Std: 0.02, DepthScaled: true}, // as GPT-2 and nanoGPT
		readHF: func(h *hfFields) (Spec, error) {
			d := Shape{
				Layers: cmp.Or(h.int("n_layer", 0), h.int("num_hidden_layers", 0)),
				Width:  cmp.Or(h.int("n_embd", 0), h.int("hidden_size", 0)),
				Heads:  cmp.Or(h.int("n_head", 0), h.int("num_attention_heads", 0)), Vocab: h.need("vocab_size"),
				Context:  cmp.Or(h.int("n_positions", 0), h.int("max_position_embeddings", 0)),
				NormEps:  h.float("layer_norm_epsilon", 1e-5),
				TiedHead: h.tied(true),
			}
			d.FF = h.int("n_inner", 4*d.Width)
			if d.Heads < 1 || d.Width%d.Heads != 0 {
				h.fail("n_head", "%d does not divide n_embd %d", d.Heads, d.Width)
				return Spec{}, h.err()
			}
			d.KVHeads, d.HeadDim = d.Heads, d.Width/d.Heads
			if err := d.check(); err != nil {
				return Spec{}, err
			}
			s := gpt2Spec(d)
			s.setAct(h.act("activation_function", "gelu_new"))
			plain, byLayer := !h.bool("scale_attn_weights", true), h.bool("scale_attn_by_inverse_layer_idx", false)
			for l := range s.Layers {
				a := &s.Layers[l].Attention
				if plain {
					a.Scale = 1
				}
				if byLayer {
					a.Scale = a.heads().Scale / float64(l+1)
				}
			}
			return s, h.err()
		},
		readGGUF: func(g *ggufFields) (Spec, error) {
			d, err := g.shape()
			if err != nil {
				return Spec{}, err
			}
			d.NormEps = g.float("attention.layer_norm_epsilon", 1e-5)
			if up, ok := g.file.Info("blk.0.ffn_up.weight"); ok && len(up.Shape) == 2 {
				d.FF = up.Shape[0] // the metadata says 4C even if n_inner was another size
			}
			return gpt2Spec(d), d.check()
		},
		writeHF: func(s *Spec) map[string]any {
			a, f, byLayer := &s.Layers[0].Attention, &s.Layers[0].FFN, false
			if len(s.Layers) > 1 {
				byLayer = s.Layers[1].Attention.heads().Scale != a.heads().Scale
			}
			return map[string]any{
				"model_type": "gpt2",
				"n_embd":     s.Width, "n_layer": len(s.Layers), "n_head": a.Heads, "n_inner": f.Width,
				"n_positions": s.Context,
				"n_ctx":       s.Context,
				"vocab_size":  s.Vocab, "layer_norm_epsilon": s.Norm.Eps, "activation_function": activationName(f.Act),
				"tie_word_embeddings": s.Head.Tied, "scale_attn_weights": a.Scale != 1,
				"scale_attn_by_inverse_layer_idx": byLayer,
				"attn_pdrop":                      0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
			}
		},
	}
}

func gpt2Spec(d Shape) Spec {
	s := Spec{
		Architecture: "gpt2", Width: d.Width, Vocab: d.Vocab, Context: d.Context,
		Embedding: Embedding{
			Tokens:    Name{Param: "transformer.wte", GGUF: "token_embd"},
			Positions: Name{Param: "transformer.wpe", GGUF: "position_embd"},
		},
		Norm: Norm{Name: Name{Param: "transformer.ln_f", GGUF: "output_norm"}, Kind: LayerNorm, Eps: d.NormEps},
		Head: Head{Name: Name{Param: "lm_head", GGUF: "output"}, Tied: d.TiedHead},
	}
	for l := range min(d.Layers, maxLayers+1) { // Validate refuses more
		name := layerNames("transformer.h", l)
		linear := func(hf, gguf string) Linear { return Linear{Name: name(hf, gguf), Bias: true, Conv1D: true} }
		norm := func(hf, gguf string) Norm { return Norm{Name: name(hf, gguf), Kind: LayerNorm, Eps: d.NormEps} }
		s.Layers = append(s.Layers, Layer{
			Attention: Attention{
				Norm: norm("ln_1", "attn_norm"), Heads: d.Heads, KVHeads: d.KVHeads, HeadDim: d.HeadDim,
				QKV: linear("attn.c_attn", "attn_qkv"), O: linear("attn.c_proj", "attn_output"),
			},
			FFN: FeedForward{
				Norm: norm("ln_2", "ffn_norm"), Width: d.FF, Act: kernel.GELUTanh,
				Up: linear("mlp.c_fc", "ffn_up"), Down: linear("mlp.c_proj", "ffn_down"),
			},
		})
	}
	return s
}

// NewGPT2 describes a GPT-2 to train from scratch. Sizes that are 0 in d are derived from the
// others.
func NewGPT2(d Shape) Spec {
	d.KVHeads, d.TiedHead = d.Heads, true
	if d.Heads > 0 {
		d.HeadDim = d.Width / d.Heads
	}
	if d.FF == 0 {
		d.FF = 4 * d.Width
	}
	if d.NormEps == 0 {
		d.NormEps = 1e-5
	}
	s := gpt2Spec(d)
	s.Init = gpt2().init
	return s
}
