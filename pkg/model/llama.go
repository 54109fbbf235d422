package model

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// The llama family: RMSNorm, rotary positions, grouped queries, SwiGLU. Mistral
// adds a sliding window, Qwen2 biases on queries, keys and values.

const headName = "lm_head.weight"

func yarnScale(factor, m float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*m*math.Log(factor) + 1
}

func (h *hfConfig) llama() (Config, error) {
	c := Config{
		Layers: h.Layers, Width: h.Width, Heads: h.Heads, KVHeads: or(h.KVHeads, h.Heads), FF: h.FF,
		Vocab: h.Vocab, Context: h.Context, NormEps: or(h.RMSEps, 1e-6), GLU: true,
		BiasQKV: h.AttnBias, BiasO: h.AttnBias, BiasMLP: h.MLPBias, TiedHead: or(h.Tied, false),
	}
	if c.Heads < 1 || c.KVHeads < 1 {
		return c, &FieldError{"num_attention_heads", fmt.Sprintf("%d heads, %d key/value heads", c.Heads, c.KVHeads)}
	}
	c.HeadDim = or(h.HeadDim, c.Width/c.Heads)
	switch h.ModelType {
	case "mistral":
		c.Window = or(h.Window, 0)
	case "qwen2":
		c.BiasQKV, c.BiasO = true, false
		if or(h.UseWindow, false) {
			return c, &UnsupportedError{"use_sliding_window", "true", "false is"}
		}
	}
	var err error
	if c.Act, err = activation(h.Act); err != nil {
		return c, err
	}
	c.Rope, err = h.rope(c.HeadDim)
	return c, err
}

// llamaNames names the tensors of layer l.
func llamaNames(l int) blockNames {
	p := fmt.Sprintf("model.layers.%d.", l)
	return blockNames{
		norm1: p + "input_layernorm", norm2: p + "post_attention_layernorm",
		q: p + "self_attn.q_proj", k: p + "self_attn.k_proj", v: p + "self_attn.v_proj", o: p + "self_attn.o_proj",
		gate: p + "mlp.gate_proj", up: p + "mlp.up_proj", down: p + "mlp.down_proj",
	}
}

// llamaJSON is a config.json that Hugging Face's LlamaForCausalLM loads.
func llamaJSON(c Config) map[string]any {
	out := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama",
		"hidden_size": c.Width, "num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads,
		"head_dim": c.HeadDim, "intermediate_size": c.FF, "vocab_size": c.Vocab, "max_position_embeddings": c.Context,
		"rms_norm_eps": c.NormEps, "hidden_act": "silu", "attention_bias": c.BiasQKV, "mlp_bias": c.BiasMLP,
		"tie_word_embeddings": c.TiedHead, "rope_theta": c.Rope.Base,
	}
	return out
}

// NewLlama completes the hyper-parameters of a llama to be trained from scratch.
func NewLlama(c Config) Config {
	c.Architecture, c.GLU, c.Act = "llama", true, kernel.SiLU
	if c.HeadDim == 0 && c.Heads > 0 {
		c.HeadDim = c.Width / c.Heads
	}
	if c.KVHeads == 0 {
		c.KVHeads = c.Heads
	}
	if c.NormEps == 0 {
		c.NormEps = 1e-5
	}
	if c.Rope.Base == 0 {
		c.Rope.Base = 10000
	}
	c.Rope.Dims = c.HeadDim
	c.BOS, c.EOS = -1, -1
	return c
}
