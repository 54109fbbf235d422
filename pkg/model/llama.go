package model

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// The llama family: RMSNorm, rotary positions, grouped queries, SwiGLU. Mistral
// adds a sliding window, Qwen2 biases on queries, keys and values.

const (
	embedName = "model.embed_tokens.weight"
	headName  = "lm_head.weight"
)

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
	var err error
	switch h.ModelType {
	case "mistral":
		c.Window, err = h.window()
	case "qwen2":
		c.BiasQKV, c.BiasO = true, false
		if or(h.UseWindow, false) {
			c.Window, err = h.window()
			c.Full, err = h.fullLayers(c.Window, err)
		}
	}
	if err != nil {
		return c, err
	}
	if c.Act, err = activation(cmp.Or(h.Act, "silu")); err != nil {
		return c, err
	}
	c.Rope, err = h.rope(c.HeadDim)
	return c, err
}

// window is the sliding window: none where the file says null, the architecture's
// 4096 where it says nothing.
func (h *hfConfig) window() (int, error) {
	w := 4096
	if h.Window == nil {
		return w, nil
	}
	if string(h.Window) == "null" {
		return 0, nil
	}
	if json.Unmarshal(h.Window, &w) != nil || w < 1 || w > maxSize {
		return 0, &FieldError{"sliding_window", fmt.Sprintf("%s is no length", h.Window)}
	}
	return w, nil
}

// fullLayers lists Qwen2's layers without the window: those below
// max_window_layers, or what layer_types says. It is nil where all have it.
func (h *hfConfig) fullLayers(window int, err error) ([]bool, error) {
	if err != nil || window == 0 || h.Layers < 1 || h.Layers > maxLayers {
		return nil, err
	}
	full := make([]bool, h.Layers)
	for l := range full {
		full[l] = l < or(h.MaxWindow, 28)
	}
	if h.LayerTypes != nil {
		if len(h.LayerTypes) != h.Layers {
			return nil, &FieldError{"layer_types", fmt.Sprintf("%d of %d layers", len(h.LayerTypes), h.Layers)}
		}
		for l, kind := range h.LayerTypes {
			full[l] = kind == "full_attention"
		}
	}
	if !slices.Contains(full, true) {
		return nil, nil
	}
	return full, nil
}

// rotated reports whether a parameter's rows are rotated.
func rotated(name string) bool {
	return strings.Contains(name, ".self_attn.q_proj.") || strings.Contains(name, ".self_attn.k_proj.")
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

// llamaJSON is a config.json that Hugging Face's LlamaForCausalLM, or
// MistralForCausalLM or Qwen2ForCausalLM where the blocks ask for it, loads.
func llamaJSON(c Config) (map[string]any, error) {
	kind := c.Architecture
	if kind == "llama" && c.Window > 0 {
		kind = "mistral" // as GGUF files name it
	}
	class := map[string]string{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]
	out := map[string]any{
		"architectures": []string{class}, "model_type": kind,
		"hidden_size": c.Width, "num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads,
		"head_dim": c.HeadDim, "intermediate_size": c.FF, "vocab_size": c.Vocab, "max_position_embeddings": c.Context,
		"rms_norm_eps": c.NormEps, "hidden_act": activationName(c.Act), "tie_word_embeddings": c.TiedHead, "rope_theta": c.Rope.Base,
	}
	if c.Rope.Dims != c.HeadDim {
		out["partial_rotary_factor"] = float64(c.Rope.Dims) / float64(c.HeadDim)
	}
	if c.Rope.Type != "" {
		out["rope_scaling"] = c.Rope.json()
	}
	biased := c.BiasQKV || c.BiasO || c.BiasMLP
	switch kind {
	case "llama":
		out["attention_bias"], out["mlp_bias"] = c.BiasQKV, c.BiasMLP
		biased = c.BiasQKV != c.BiasO
	case "mistral":
		out["sliding_window"] = nil
		if c.Window > 0 {
			out["sliding_window"] = c.Window
		}
	case "qwen2":
		biased = !c.BiasQKV || c.BiasO || c.BiasMLP
		out["use_sliding_window"], out["sliding_window"] = c.Window > 0, nil
		if c.Window > 0 {
			types := make([]string, c.Layers)
			for l := range types {
				types[l] = "sliding_attention"
				if c.Full != nil && c.Full[l] {
					types[l] = "full_attention"
				}
			}
			out["sliding_window"], out["max_window_layers"], out["layer_types"] = c.Window, 0, types
		}
	}
	switch {
	case c.Rope.Interleaved || c.Rope.Factors != nil:
		return nil, &UnsupportedError{"rope to write", "interleaved or with factors", "half-split default, linear, llama3 and yarn are"}
	case biased || kind != "qwen2" && c.Full != nil:
		return nil, &UnsupportedError{"blocks to write", kind, "biases and windows as that architecture has them are"}
	}
	return out, nil
}

// json is rope_scaling, in the classic spelling.
func (r *Rope) json() map[string]any {
	out := map[string]any{"rope_type": r.Type, "factor": r.Factor}
	switch r.Type {
	case "llama3":
		out["low_freq_factor"], out["high_freq_factor"], out["original_max_position_embeddings"] = r.LowFreq, r.HighFreq, r.Original
	case "yarn":
		out["beta_fast"], out["beta_slow"], out["original_max_position_embeddings"] = r.BetaFast, r.BetaSlow, r.Original
		out["truncate"] = !r.KeepRamp
		if r.Attention != 0 {
			out["attention_factor"] = r.Attention
		}
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
