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
// adds a sliding window, Qwen2 biases on queries, keys and values, Qwen3 norms of
// queries' and keys' heads, SmolLM3 layers without positions; Phi-3 fuses matrices, and
// Gemma 2 and 3 have norms on both sides of a block's parts, gains counted from one and
// windows in most layers, Gemma 2 bounds of scores and logits as well.

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
	eps := 1e-6
	if slices.Contains([]string{"mixtral", "phi3", "gpt_oss"}, h.ModelType) {
		eps = 1e-5
	}
	c := Config{
		Layers: h.Layers, Width: h.Width, Heads: h.Heads, KVHeads: or(h.KVHeads, h.Heads), FF: h.FF,
		Vocab: h.Vocab, Context: h.Context, NormEps: or(h.RMSEps, eps), GLU: true,
		BiasQKV: or(h.AttnBias, false), BiasO: or(h.AttnBias, false), TiedHead: or(h.Tied, h.ModelType == "smollm3"),
	}
	if c.Heads < 1 || c.KVHeads < 1 {
		return c, &FieldError{"num_attention_heads", fmt.Sprintf("%d heads, %d key/value heads", c.Heads, c.KVHeads)}
	}
	c.HeadDim = or(h.HeadDim, c.Width/c.Heads)
	var err error
	switch h.ModelType {
	case "llama":
		c.BiasMLP = h.MLPBias
	case "mistral":
		c.BiasQKV, c.BiasO = false, false
		c.Window, err = h.window()
	case "qwen2":
		c.BiasQKV, c.BiasO = true, false
		if or(h.UseWindow, false) {
			c.Window, err = h.window()
			c.Full, err = h.fullLayers(c.Window, err)
		}
	case "gpt_oss":
		err = h.gptOSS(&c)
	case "mixtral":
		c.Experts, c.TopK, c.ExpertFF, c.NormTopK = or(h.Experts, or(h.OldExperts, 8)), or(h.TopK, 2), h.FF, true
		c.BiasQKV, c.BiasO = false, false
		if h.Window != nil {
			c.Window, err = h.window()
		}
	case "qwen3":
		c.QKNorm, c.HeadDim = true, or(h.HeadDim, 128)
		if or(h.UseWindow, false) {
			c.Window, err = h.window()
			c.Full, err = h.fullLayers(c.Window, err)
		}
	case "qwen3_moe":
		c.QKNorm = true
		h.sparse(&c)
		if or(h.UseWindow, false) { // in every layer
			c.Window, err = h.window()
		}
	case "smollm3":
		err = h.smolLM3(&c)
	case "phi3":
		c.BiasQKV, c.BiasO = false, false
		if h.Window != nil {
			c.Window, err = h.window()
		}
	case "gemma2", "gemma3", "gemma3_text":
		err = h.gemma(&c)
	}
	if err != nil {
		return c, err
	}
	act := cmp.Or(h.Act, "silu")
	switch {
	case c.GainFromOne:
		act = cmp.Or(h.Activation, "gelu_pytorch_tanh")
	case c.GLUAlpha != 0:
		act = "silu" // and more, whatever the file says
	}
	if c.Act, err = activation(act); err != nil {
		return c, err
	}
	c.Rope, c.LocalRope, err = h.ropes(c.HeadDim)
	return c, err
}

func (h *hfConfig) gemma3() bool { return strings.HasPrefix(h.ModelType, "gemma3") }

// gemma completes what Gemma 2 and 3 have beyond llama.
func (h *hfConfig) gemma(c *Config) error {
	c.PostNorms, c.GainFromOne, c.TiedHead, c.QKNorm = true, true, or(h.Tied, true), h.gemma3()
	c.EmbedScale = float64(float32(math.Sqrt(float64(c.Width))))
	if scalar := or(h.QueryScalar, 256); scalar > 0 {
		c.QueryScale = 1 / math.Sqrt(scalar)
	}
	c.HeadDim = or(h.HeadDim, 256)
	if h.gemma3() && or(h.Bidirectional, false) {
		return &UnsupportedError{"use_bidirectional_attention", "true", "causal attention is"}
	}
	c.AttnCap, c.LogitCap = h.caps()
	var err error
	if c.Window, err = h.window(); err != nil || c.Window == 0 {
		return err
	}
	pattern := 2
	if h.gemma3() {
		pattern = or(h.Pattern, 6)
	}
	if h.LayerTypes == nil && h.Layers > 0 && h.Layers <= maxLayers && pattern > 0 {
		for l := range h.Layers {
			kind := "sliding_attention"
			if (l+1)%pattern == 0 {
				kind = "full_attention"
			}
			h.LayerTypes = append(h.LayerTypes, kind)
		}
	}
	c.Full, err = h.fullLayers(c.Window, nil)
	return err
}

// caps are the bounds of scores and logits: Gemma 2's own where the file says nothing,
// none where it says null. Gemma 3 has one of logits at most.
func (h *hfConfig) caps() (attention, logits float64) {
	read := func(raw json.RawMessage, otherwise float64) float64 {
		if raw == nil {
			return otherwise
		}
		var v *float64
		if json.Unmarshal(raw, &v) != nil || v == nil {
			return 0
		}
		return *v
	}
	if h.gemma3() {
		return 0, read(h.LogitCap, 0)
	}
	return read(h.AttnCap, 50), read(h.LogitCap, 30)
}

// sparse completes what Qwen3's mixtures have.
func (h *hfConfig) sparse(c *Config) {
	c.Experts, c.TopK, c.ExpertFF, c.NormTopK = or(h.Experts, or(h.OldExperts, 128)), or(h.TopK, 8), or(h.ExpertFF, 768), or(h.NormTopK, false)
	if h.Layers < 1 || h.Layers > maxLayers {
		return
	}
	plain := make([]bool, h.Layers)
	for l := range plain {
		plain[l] = (l+1)%max(or(h.SparseStep, 1), 1) != 0 || slices.Contains(h.MLPOnly, l)
	}
	if slices.Contains(plain, true) {
		c.DenseFF = plain
	}
}

// gptOSS completes what GPT-OSS has: sinks, biases everywhere, a clamped gate, and a window
// in every other layer.
func (h *hfConfig) gptOSS(c *Config) error {
	c.Experts, c.TopK, c.ExpertFF, c.NormTopK = or(h.Experts, or(h.OldExperts, 128)), or(h.TopK, 4), h.FF, true
	c.Sinks, c.BiasQKV, c.BiasO = true, or(h.AttnBias, true), or(h.AttnBias, true)
	c.HeadDim = or(h.HeadDim, 64)
	c.GLUAlpha, c.GLULimit = or(h.GLUAlpha, 1.702), or(h.GLULimit, 7)
	w := 128
	if h.Window != nil {
		var err error
		if w, err = h.window(); err != nil {
			return err
		}
	}
	if c.Window = w; w == 0 {
		return nil
	}
	if h.LayerTypes == nil && h.Layers > 0 && h.Layers <= maxLayers {
		for l := range h.Layers {
			h.LayerTypes = append(h.LayerTypes, []string{"sliding_attention", "full_attention"}[l%2])
		}
	}
	var err error
	c.Full, err = h.fullLayers(c.Window, nil)
	return err
}

// smolLM3 completes what SmolLM3 has: layers without positions, which are those with a
// window if there is one, unless layer_types says which are.
func (h *hfConfig) smolLM3(c *Config) error {
	c.BiasMLP = h.MLPBias
	var err error
	if c.NoRope, err = h.unrotated(); err != nil || h.Window == nil || h.LayerTypes == nil && !or(h.UseWindow, false) {
		return err
	}
	if c.Window, err = h.window(); err != nil {
		return err
	}
	if h.LayerTypes == nil {
		for _, none := range c.NoRope {
			kind := "full_attention"
			if none {
				kind = "sliding_attention"
			}
			h.LayerTypes = append(h.LayerTypes, kind)
		}
	}
	c.Full, err = h.fullLayers(c.Window, nil)
	return err
}

// unrotated lists SmolLM3's layers without positions. The file may describe more layers
// than there are.
func (h *hfConfig) unrotated() ([]bool, error) {
	if h.Layers < 1 || h.Layers > maxLayers {
		return nil, nil
	}
	out := make([]bool, h.Layers)
	for l := range out {
		out[l] = (l+1)%max(or(h.NoRopeEvery, 4), 1) == 0
	}
	if h.NoRope != nil {
		if len(h.NoRope) < h.Layers {
			return nil, &FieldError{"no_rope_layers", fmt.Sprintf("%d of %d layers", len(h.NoRope), h.Layers)}
		}
		for l := range out {
			out[l] = h.NoRope[l] == 0
		}
	}
	return out, nil
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
func llamaNames(c *Config, l int) blockNames {
	p := fmt.Sprintf("model.layers.%d.", l)
	n := blockNames{
		norm1: p + "input_layernorm", norm2: p + "post_attention_layernorm",
		q: p + "self_attn.q_proj", k: p + "self_attn.k_proj", v: p + "self_attn.v_proj", o: p + "self_attn.o_proj",
		gate: p + "mlp.gate_proj", up: p + "mlp.up_proj", down: p + "mlp.down_proj",
		router: p + "mlp.gate", experts: p + "mlp.experts",
		qNorm: p + "self_attn.q_norm", kNorm: p + "self_attn.k_norm",
	}
	if c.Architecture == "gpt-oss" {
		n.router, n.sinks = p+"mlp.router", p+"self_attn.sinks"
	}
	if c.Architecture == "phi3" {
		n.qkv, n.gateUp = p+"self_attn.qkv_proj", p+"mlp.gate_up_proj"
	}
	if c.PostNorms {
		n.post1, n.norm2, n.post2 = n.norm2, p+"pre_feedforward_layernorm", p+"post_feedforward_layernorm"
	}
	return n
}

// llamaClasses are Hugging Face's classes of the family.
var llamaClasses = map[string]string{
	"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
	"gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
	"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
}

// llamaJSON is a config.json that the family's class of Hugging Face loads.
func llamaJSON(c Config) (map[string]any, error) {
	kind := c.Architecture
	if kind == "llama" && c.Window > 0 {
		kind = "mistral" // as GGUF files name it
	}
	out := map[string]any{
		"architectures": []string{llamaClasses[kind]}, "model_type": kind,
		"hidden_size": c.Width, "num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads,
		"head_dim": c.HeadDim, "intermediate_size": c.FF, "vocab_size": c.Vocab, "max_position_embeddings": c.Context,
		"rms_norm_eps": c.NormEps, "hidden_act": activationName(c.Act), "tie_word_embeddings": c.TiedHead, "rope_theta": c.Rope.Base,
	}
	if c.Rope.Dims != c.HeadDim {
		out["partial_rotary_factor"] = float64(c.Rope.Dims) / float64(c.HeadDim)
		if kind != "phi3" {
			return nil, &UnsupportedError{"rotated dimensions to write", fmt.Sprintf("%d of %d", c.Rope.Dims, c.HeadDim), "whole heads and phi3's are"}
		}
	}
	if c.Rope.Type != "" {
		out["rope_scaling"] = c.Rope.json()
	}
	biased, layered := c.BiasQKV || c.BiasO || c.BiasMLP, false
	switch kind {
	case "llama":
		out["attention_bias"], out["mlp_bias"] = c.BiasQKV, c.BiasMLP
		biased = c.BiasQKV != c.BiasO
	case "mistral", "mixtral":
		out["sliding_window"] = nil
		if c.Window > 0 {
			out["sliding_window"] = c.Window
		}
		if kind == "mixtral" {
			out["num_local_experts"], out["num_experts_per_tok"] = c.Experts, c.TopK
		}
	case "qwen2":
		biased, layered = !c.BiasQKV || c.BiasO || c.BiasMLP, true
	case "qwen3", "qwen3_moe", "smollm3":
		if kind == "qwen3_moe" {
			out["num_experts"], out["num_experts_per_tok"], out["moe_intermediate_size"], out["norm_topk_prob"] = c.Experts, c.TopK, c.ExpertFF, c.NormTopK
			plain := []int{}
			for l := range c.Layers {
				if !c.routes(l) {
					plain = append(plain, l)
				}
			}
			out["decoder_sparse_step"], out["mlp_only_layers"] = 1, plain
		}
		out["attention_bias"], layered = c.BiasQKV, true
		biased = c.BiasQKV != c.BiasO || c.BiasMLP && kind != "smollm3"
		if kind == "smollm3" {
			out["mlp_bias"] = c.BiasMLP
			turned := make([]int, c.Layers)
			for l := range turned {
				if c.NoRope == nil || !c.NoRope[l] {
					turned[l] = 1
				}
			}
			out["no_rope_layers"] = turned
		}
	case "phi3":
		out["sliding_window"], out["original_max_position_embeddings"] = nil, c.Context
		if c.Window > 0 {
			out["sliding_window"] = c.Window
		}
		if c.Rope.Original > 0 {
			out["original_max_position_embeddings"] = c.Rope.Original
		}
	case "gemma2", "gemma3":
		c.gemmaJSON(out)
		layered = true
	}
	if layered && c.Window > 0 {
		types := make([]string, c.Layers)
		for l := range types {
			types[l] = "sliding_attention"
			if c.Full != nil && c.Full[l] {
				types[l] = "full_attention"
			}
		}
		out["sliding_window"], out["max_window_layers"], out["layer_types"] = c.Window, 0, types
	}
	if layered && !c.PostNorms {
		out["use_sliding_window"] = c.Window > 0
	}
	if layered && c.Window == 0 {
		out["sliding_window"] = nil
	}
	switch {
	case c.Rope.Interleaved || c.Rope.Factors != nil && c.Rope.Type != "longrope":
		return nil, &UnsupportedError{"rope to write", "interleaved or with factors", "half-split ones without factors or by longrope are"}
	case biased || !layered && c.Full != nil:
		return nil, &UnsupportedError{"blocks to write", kind, "biases and windows as that architecture has them are"}
	}
	return out, nil
}

// gemmaJSON adds what Gemma 2 and 3 have beyond llama.
func (c *Config) gemmaJSON(out map[string]any) {
	scale := c.QueryScale
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(c.HeadDim))
	}
	out["hidden_activation"], out["query_pre_attn_scalar"] = activationName(c.Act), math.Round(1e6/(scale*scale))/1e6
	out["attn_logit_softcapping"], out["final_logit_softcapping"] = nil, nil
	if c.AttnCap > 0 {
		out["attn_logit_softcapping"] = c.AttnCap
	}
	if c.LogitCap > 0 {
		out["final_logit_softcapping"] = c.LogitCap
	}
	if c.Architecture == "gemma3" {
		out["model_type"] = "gemma3_text"
		out["rope_local_base_freq"] = c.Rope.Base
		if c.LocalRope != nil {
			out["rope_local_base_freq"] = c.LocalRope.Base
		}
	}
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
	return c
}
