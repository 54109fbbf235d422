package model

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// GPT-2: LayerNorm with bias, learned positions, a fused query/key/value matrix,
// GELU, biases everywhere, the head tied to the embedding. Its Hugging Face
// matrices are Conv1D weights, [in, out]: transposed when read and written.

const gpt2EmbedName = "transformer.wte.weight"

func (h *hfConfig) gpt2() (Config, error) {
	c := Config{
		Layers: cmp.Or(h.NLayer, h.Layers), Width: cmp.Or(h.NEmbd, h.Width), Heads: cmp.Or(h.NHead, h.Heads),
		Vocab: h.Vocab, Context: cmp.Or(h.NPos, h.Context), NormEps: or(h.LNEps, 1e-5), LayerNorm: true, Learned: true,
		BiasQKV: true, BiasO: true, BiasMLP: true, TiedHead: or(h.Tied, true), ScaleByLayer: h.ByLayer,
	}
	c.KVHeads, c.FF = c.Heads, or(h.NInner, 4*c.Width)
	if !or(h.Scaled, true) {
		c.QueryScale = 1
	}
	if c.Heads < 1 || c.Width%c.Heads != 0 {
		return c, &FieldError{"n_head", fmt.Sprintf("%d does not divide n_embd %d", c.Heads, c.Width)}
	}
	c.HeadDim = c.Width / c.Heads
	var err error
	if c.Act, err = activation(cmp.Or(h.Function, "gelu_new")); h.Function == "" {
		c.Act = kernel.GELUTanh
	}
	return c, err
}

func gpt2Names(_ *Config, l int) blockNames {
	p := fmt.Sprintf("transformer.h.%d.", l)
	return blockNames{
		norm1: p + "ln_1", norm2: p + "ln_2", qkv: p + "attn.c_attn", o: p + "attn.c_proj", up: p + "mlp.c_fc", down: p + "mlp.c_proj",
	}
}

// conv1D reports whether a parameter lies transposed in a GPT-2 file.
func conv1D(name string) bool {
	return strings.HasSuffix(name, ".weight") && (strings.Contains(name, ".attn.c_") || strings.Contains(name, ".mlp.c_"))
}

// gpt2JSON is a config.json that Hugging Face's GPT2LMHeadModel loads.
func gpt2JSON(c Config) map[string]any {
	out := map[string]any{
		"architectures": []string{"GPT2LMHeadModel"}, "model_type": "gpt2",
		"n_embd": c.Width, "n_layer": c.Layers, "n_head": c.Heads, "n_inner": c.FF, "n_positions": c.Context, "n_ctx": c.Context,
		"vocab_size": c.Vocab, "layer_norm_epsilon": c.NormEps, "activation_function": activationName(c.Act),
		"tie_word_embeddings": c.TiedHead, "scale_attn_weights": c.QueryScale == 0, "scale_attn_by_inverse_layer_idx": c.ScaleByLayer, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0,
	}
	return out
}

// NewGPT2 completes the hyper-parameters of a GPT-2 to be trained from scratch.
func NewGPT2(c Config) Config {
	c.Architecture, c.LayerNorm, c.Learned, c.GLU, c.Act = "gpt2", true, true, false, kernel.GELUTanh
	c.BiasQKV, c.BiasO, c.BiasMLP, c.TiedHead = true, true, true, true
	c.KVHeads = c.Heads
	if c.Heads > 0 {
		c.HeadDim = c.Width / c.Heads
	}
	if c.FF == 0 {
		c.FF = 4 * c.Width
	}
	if c.NormEps == 0 {
		c.NormEps = 1e-5
	}
	return c
}
