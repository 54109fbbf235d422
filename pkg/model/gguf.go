package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ggufFields reads metadata under the architecture's prefix; the first missing
// field stays as the error.
type ggufFields struct {
	meta weights.Meta
	arch string
	err  error
}

func (f *ggufFields) need(key string) int {
	v, ok := f.meta.Uint(f.arch + "." + key)
	if (!ok || v > maxSize) && f.err == nil {
		f.err = &FieldError{f.arch + "." + key, "is missing or no small integer"}
	}
	return int(min(v, maxSize))
}

func (f *ggufFields) uint(key string, otherwise int) int {
	if v, ok := f.meta.Uint(f.arch + "." + key); ok && v <= maxSize {
		return int(v)
	}
	return otherwise
}

func (f *ggufFields) float(key string, otherwise float64) float64 {
	if v, ok := f.meta.Float(f.arch + "." + key); ok {
		return v
	}
	return otherwise
}

// ggufConfig reads the hyper-parameters of a GGUF file.
func ggufConfig(g *weights.GGUF) (Config, error) {
	meta := g.Meta()
	arch, _ := meta.String("general.architecture")
	if !slices.Contains([]string{"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "qwen3moe", "gpt-oss", "gpt2"}, arch) {
		return Config{}, &UnsupportedError{"general.architecture", arch, supported}
	}
	f := &ggufFields{meta: meta, arch: arch}
	c := Config{
		Architecture: arch, Layers: f.need("block_count"), Width: f.need("embedding_length"), Heads: f.need("attention.head_count"),
		FF: f.need("feed_forward_length"), Context: f.need("context_length"),
	}
	if f.err != nil {
		return c, f.err
	}
	if c.Heads < 1 {
		return c, &FieldError{arch + ".attention.head_count", "is zero"}
	}
	c.KVHeads = f.uint("attention.head_count_kv", c.Heads)
	c.HeadDim = f.uint("attention.key_length", c.Width/c.Heads)
	embedding, ok := g.Info("token_embd.weight")
	if !ok || len(embedding.Shape) != 2 {
		return c, &FieldError{"token_embd.weight", "is missing or no matrix"}
	}
	c.Vocab = embedding.Shape[0]
	_, head := g.Info("output.weight")
	c.TiedHead = !head
	c.BOS = ggufIDs(meta, c.Vocab, "bos")
	c.EOS = ggufIDs(meta, c.Vocab, "eos", "eot", "eom")
	has := func(name string) bool { _, ok := g.Info(name); return ok }
	if arch == "gpt2" {
		c.NormEps, c.LayerNorm, c.Learned, c.Act = f.float("attention.layer_norm_epsilon", 1e-5), true, true, kernel.GELUTanh
		c.BiasQKV, c.BiasO, c.BiasMLP = true, true, true
		if up, ok := g.Info("blk.0.ffn_up.weight"); ok && len(up.Shape) == 2 {
			c.FF = up.Shape[0] // files say 4C, whatever n_inner was
		}
		return c, c.Validate()
	}
	c.NormEps, c.GLU, c.Act = f.float("attention.layer_norm_rms_epsilon", 1e-5), true, kernel.SiLU
	c.BiasQKV, c.BiasO, c.BiasMLP = has("blk.0.attn_q.bias"), has("blk.0.attn_output.bias"), has("blk.0.ffn_up.bias")
	c.Window = f.uint("attention.sliding_window", 0)
	c.QKNorm = has("blk.0.attn_q_norm.weight")
	switch arch {
	case "smollm3":
		c.NoRope = make([]bool, min(c.Layers, maxLayers))
		for l := range c.NoRope {
			c.NoRope[l] = (l+1)%4 == 0
		}
	case "gemma2", "gemma3":
		ggufGemma(f, &c)
	case "gpt-oss":
		c.Sinks, c.GLUAlpha, c.GLULimit = has("blk.0.attn_sinks.weight"), 1.702, 7
		c.Full = f.full(&c, 2)
	}
	var err error
	if c.Rope, err = ggufRope(g, f, c); err != nil {
		return c, err
	}
	if arch == "gemma3" {
		c.LocalRope = &Rope{Base: f.float("rope.freq_base_swa", 10000), Dims: c.Rope.Dims}
	}
	if c.Experts = f.uint("expert_count", 0); c.Experts > 0 {
		c.TopK, c.ExpertFF, c.NormTopK = f.uint("expert_used_count", 0), f.uint("expert_feed_forward_length", c.FF), true
		plain := make([]bool, min(c.Layers, maxLayers))
		for l := range plain {
			plain[l] = !has(fmt.Sprintf("blk.%d.ffn_gate_inp.weight", l))
		}
		if slices.Contains(plain, true) {
			c.DenseFF = plain
		}
		if arch == "llama" {
			c.Architecture = "mixtral"
		}
	}
	if arch == "qwen3moe" {
		c.Architecture = "qwen3_moe"
	}
	return c, c.Validate()
}

// ggufIDs reads the token ids of the given keys, without repetition.
func ggufIDs(meta weights.Meta, vocab int, keys ...string) []int32 {
	var ids []int32
	for _, key := range keys {
		v, ok := meta.Uint("tokenizer.ggml." + key + "_token_id")
		if ok && v < uint64(vocab) && !slices.Contains(ids, int32(v)) {
			ids = append(ids, int32(v))
		}
	}
	return ids
}

// ggufGemma completes what Gemma 2 and 3 have beyond llama. Files hold gains with their
// one added.
func ggufGemma(f *ggufFields, c *Config) {
	c.PostNorms, c.Act, c.EmbedScale = true, kernel.GELUTanh, float64(float32(math.Sqrt(float64(c.Width))))
	pattern, largest := 2, 46
	if f.arch == "gemma3" {
		pattern, largest = 6, 62
		c.LogitCap = f.float("final_logit_softcapping", 0)
	} else {
		c.AttnCap, c.LogitCap = f.float("attn_logit_softcapping", 50), f.float("final_logit_softcapping", 30)
		c.Window = f.uint("attention.sliding_window", 4096)
	}
	if c.Layers == largest { // of the 27B, whose heads do not make up its width
		c.QueryScale = 1 / math.Sqrt(float64(c.Width)/float64(c.Heads))
	}
	c.Full = f.full(c, pattern)
}

// full lists the layers without the window: those that the file marks as such, or every
// pattern-th one.
func (f *ggufFields) full(c *Config, pattern int) []bool {
	if c.Window == 0 || c.Layers > maxLayers {
		return nil
	}
	marks, _ := f.meta.Bools(f.arch + ".attention.sliding_window_pattern")
	pattern = f.uint("attention.sliding_window_pattern", pattern)
	full := make([]bool, c.Layers)
	for l := range full {
		switch {
		case len(marks) >= c.Layers:
			full[l] = !marks[l]
		case pattern > 0:
			full[l] = (l+1)%pattern == 0
		}
	}
	return full
}

func ggufRope(g *weights.GGUF, f *ggufFields, c Config) (Rope, error) {
	r := Rope{Base: f.float("rope.freq_base", 10000), Dims: f.uint("rope.dimension_count", c.HeadDim), Interleaved: f.arch == "llama" || f.arch == "smollm3"}
	kind, _ := f.meta.String(f.arch + ".rope.scaling.type")
	switch kind {
	case "", "none":
	case "longrope": // whose factors are tensors
		if f.arch != "phi3" {
			return r, &UnsupportedError{"rope.scaling.type", kind, "of phi3 alone it is"}
		}
	case "linear":
		r.Type, r.Factor = "linear", f.float("rope.scaling.factor", 1)
	case "yarn":
		r.Type, r.Factor = "yarn", f.float("rope.scaling.factor", 1)
		r.Original = f.uint("rope.scaling.original_context_length", c.Context)
		r.KeepRamp = f.arch == "gpt-oss" // which is published so; files do not say
		r.BetaFast, r.BetaSlow = f.float("rope.scaling.yarn_beta_fast", 32), f.float("rope.scaling.yarn_beta_slow", 1)
		scale := yarnScale(r.Factor, 1)
		if m := f.float("rope.scaling.yarn_log_multiplier", 0); m != 0 {
			scale /= yarnScale(r.Factor, m)
		}
		// The one multiplies the paper's magnitude, the other is config.json's in its place.
		scale = f.float("rope.scaling.yarn_attn_factor", scale*f.float("rope.scaling.attn_factor", 1))
		if scale != yarnScale(r.Factor, 1) {
			r.Attention = scale
		}
	default:
		return r, &UnsupportedError{"rope.scaling.type", kind, "none, linear and yarn are"}
	}
	if r.Type != "" && !(r.Factor > 0) {
		return r, &FieldError{"rope.scaling.factor", "is not positive"}
	}
	var err error
	if r.Factors, err = ggufFactors(g, "rope_freqs.weight"); err != nil || f.arch != "phi3" {
		return r, err
	}
	if r.Factors, err = ggufFactors(g, "rope_factors_short.weight"); err != nil {
		return r, err
	}
	if r.Far, err = ggufFactors(g, "rope_factors_long.weight"); err == nil && r.Far != nil {
		r.Type, r.Original = "longrope", f.uint("rope.scaling.original_context_length", c.Context)
		r.Attention = f.float("rope.scaling.attn_factor", 1)
	}
	return r, err
}

// ggufFactors reads a tensor of factors of frequencies; nil where there is none.
func ggufFactors(g *weights.GGUF, name string) ([]float32, error) {
	info, ok := g.Info(name)
	if !ok {
		return nil, nil
	}
	data, err := g.Data(name)
	if err != nil || info.DType != tensor.F32 {
		return nil, &FieldError{name, "is not F32"}
	}
	var out []float32
	for ; len(data) > 0; data = data[4:] {
		out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(data)))
	}
	return out, nil
}

// ggufNaming maps parameter names to GGUF's.
func ggufNaming(c *Config) naming {
	pairs := []string{
		"model.layers.", "blk.", "transformer.h.", "blk.",
		"model.embed_tokens.", "token_embd.", "transformer.wte.", "token_embd.", "transformer.wpe.", "position_embd.",
		"model.norm.", "output_norm.", "transformer.ln_f.", "output_norm.", "lm_head.", "output.",
		".input_layernorm.", ".attn_norm.", ".ln_1.", ".attn_norm.", ".post_attention_layernorm.", ".ffn_norm.", ".ln_2.", ".ffn_norm.",
		".self_attn.q_proj.", ".attn_q.", ".self_attn.k_proj.", ".attn_k.", ".self_attn.v_proj.", ".attn_v.",
		".self_attn.o_proj.", ".attn_output.", ".attn.c_attn.", ".attn_qkv.", ".attn.c_proj.", ".attn_output.",
		".mlp.gate_proj.", ".ffn_gate.", ".mlp.up_proj.", ".ffn_up.", ".mlp.down_proj.", ".ffn_down.",
		".mlp.c_fc.", ".ffn_up.", ".mlp.c_proj.", ".ffn_down.",
		".self_attn.q_norm.", ".attn_q_norm.", ".self_attn.k_norm.", ".attn_k_norm.",
		".self_attn.qkv_proj.", ".attn_qkv.", ".mlp.gate_up_proj.", ".ffn_up.",
		".mlp.gate.", ".ffn_gate_inp.", ".mlp.experts.gate_proj.", ".ffn_gate_exps.",
		".mlp.experts.up_proj.", ".ffn_up_exps.", ".mlp.experts.down_proj.", ".ffn_down_exps.",
		".pre_feedforward_layernorm.", ".ffn_norm.", ".post_feedforward_layernorm.", ".post_ffw_norm.",
	}
	if c.Architecture == "gpt-oss" {
		pairs = append([]string{".mlp.router.", ".ffn_gate_inp.", ".self_attn.sinks", ".attn_sinks.weight", ".post_attention_layernorm.", ".post_attention_norm."}, pairs...)
	}
	if c.PostNorms { // the first match counts
		pairs = append([]string{".post_attention_layernorm.", ".post_attention_norm."}, pairs...)
	}
	parts := strings.NewReplacer(pairs...)
	// Replacements may share a dot, so the layer's prefix goes first.
	return naming{
		file: func(name string) string {
			for _, prefix := range []string{"model.layers.", "transformer.h."} {
				if rest, ok := strings.CutPrefix(name, prefix); ok {
					layer, tail, _ := strings.Cut(rest, ".")
					return "blk." + layer + parts.Replace("."+tail)
				}
			}
			return parts.Replace(name)
		},
		transposed: func(string) bool { return false },
		stacked:    true,
	}
}
