package model

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// decoder returns the model that the llama family shares: RMSNorm before attention and
// before a gated feed-forward part, rotary positions, no biases. Architectures start from it
// and change its layers.
func decoder(architecture string, d Shape) Spec {
	s := Spec{
		Architecture: architecture, Width: d.Width, Vocab: d.Vocab, Context: d.Context,
		Embedding: Embedding{Tokens: Name{Param: "model.embed_tokens", GGUF: "token_embd"}},
		Norm:      Norm{Name: Name{Param: "model.norm", GGUF: "output_norm"}, Kind: RMSNorm, Eps: d.NormEps},
		Head:      Head{Name: Name{Param: "lm_head", GGUF: "output"}, Tied: d.TiedHead},
	}
	rope := &d.Rope
	for l := range min(d.Layers, maxLayers+1) { // Validate refuses more
		name := layerNames("model.layers", l)
		linear := func(hf, gguf string) Linear { return Linear{Name: name(hf, gguf)} }
		norm := func(hf, gguf string) Norm { return Norm{Name: name(hf, gguf), Kind: RMSNorm, Eps: d.NormEps} }
		s.Layers = append(s.Layers, Layer{
			Attention: Attention{
				Norm:  norm("input_layernorm", "attn_norm"),
				Heads: d.Heads, KVHeads: d.KVHeads, HeadDim: d.HeadDim, Rope: rope,
				Q: linear("self_attn.q_proj", "attn_q"), K: linear("self_attn.k_proj", "attn_k"),
				V: linear("self_attn.v_proj", "attn_v"), O: linear("self_attn.o_proj", "attn_output"),
			},
			FFN: FeedForward{
				Norm:  norm("post_attention_layernorm", "ffn_norm"),
				Width: d.FF, Act: kernel.SiLU,
				Gate: linear("mlp.gate_proj", "ffn_gate"), Up: linear("mlp.up_proj", "ffn_up"),
				Down: linear("mlp.down_proj", "ffn_down"),
			},
		})
	}
	return s
}

// layerNames returns a function that names the tensors of layer l. prefix is that of all
// layers in Hugging Face's files.
func layerNames(prefix string, l int) func(hf, gguf string) Name {
	return func(hf, gguf string) Name {
		return Name{Param: fmt.Sprintf("%s.%d.%s", prefix, l, hf), GGUF: fmt.Sprintf("blk.%d.%s", l, gguf)}
	}
}

// normHeads adds norms of the heads of queries and keys in layer l.
func (a *Attention) normHeads(l int) {
	name := layerNames("model.layers", l)
	a.QNorm = Norm{Name: name("self_attn.q_norm", "attn_q_norm"), Kind: RMSNorm, Eps: a.Norm.Eps}
	a.KNorm = Norm{Name: name("self_attn.k_norm", "attn_k_norm"), Kind: RMSNorm, Eps: a.Norm.Eps}
}

// route replaces the matrices of layer l by experts with the given settings.
func (f *FeedForward) route(l int, sizes Experts) {
	name := layerNames("model.layers", l)
	x := sizes
	x.Router = Linear{Name: name("mlp.gate", "ffn_gate_inp"), Bias: sizes.Router.Bias}
	x.Stack = name("mlp.experts", "").Param
	x.Gate, x.Up = name("mlp.experts.%d.gate_proj", "ffn_gate_exps"), name("mlp.experts.%d.up_proj", "ffn_up_exps")
	x.Down = name("mlp.experts.%d.down_proj", "ffn_down_exps")
	f.Experts, f.Gate, f.Up, f.Down = &x, Linear{}, Linear{}, Linear{}
}

// setBiases says which matrices of every layer have biases.
func (s *Spec) setBiases(qkv, o, ffn bool) {
	for i := range s.Layers {
		a, f := &s.Layers[i].Attention, &s.Layers[i].FFN
		a.Q.Bias, a.K.Bias, a.V.Bias, a.O.Bias = qkv, qkv, qkv, o
		f.Gate.Bias, f.Up.Bias, f.Down.Bias = ffn, ffn, ffn
	}
}

// setWindow gives a sliding window to every layer for which full does not report true.
func (s *Spec) setWindow(window int, full func(l int) bool) {
	for l := range s.Layers {
		if s.Layers[l].Attention.Window = window; full != nil && full(l) {
			s.Layers[l].Attention.Window = 0
		}
	}
}

// setAct sets the activation of every layer.
func (s *Spec) setAct(act kernel.Act) {
	for l := range s.Layers {
		s.Layers[l].FFN.Act = act
	}
}
