package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ggufFields reads metadata of a GGUF file under the prefix of its architecture. err is the
// first error.
type ggufFields struct {
	file *weights.GGUF
	arch string // general.architecture
	err  error
}

func (g *ggufFields) need(key string) int {
	v, ok := g.file.Meta().Uint(g.arch + "." + key)
	if (!ok || v > maxSize) && g.err == nil {
		g.err = &FieldError{g.arch + "." + key, fmt.Sprintf("want an integer of at most %d", maxSize)}
	}
	return int(min(v, maxSize))
}

func (g *ggufFields) uint(key string, otherwise int) int {
	if v, ok := g.file.Meta().Uint(g.arch + "." + key); ok && v <= maxSize {
		return int(v)
	}
	return otherwise
}

func (g *ggufFields) float(key string, otherwise float64) float64 {
	if v, ok := g.file.Meta().Float(g.arch + "." + key); ok {
		return v
	}
	return otherwise
}

func (g *ggufFields) has(tensor string) bool { _, ok := g.file.Info(tensor); return ok }

// ids reads the token ids of the given keys and returns each id once.
func (g *ggufFields) ids(vocab int, keys ...string) []int32 {
	var ids []int32
	for _, key := range keys {
		v, ok := g.file.Meta().Uint("tokenizer.ggml." + key + "_token_id")
		if ok && v < uint64(vocab) && !slices.Contains(ids, int32(v)) {
			ids = append(ids, int32(v))
		}
	}
	return ids
}

// specOfGGUF reads a model's Spec from a GGUF file.
func specOfGGUF(file *weights.GGUF) (Spec, error) {
	arch, _ := file.Meta().String("general.architecture")
	all := architectures()
	i := slices.IndexFunc(all, func(a architecture) bool { return slices.Contains(a.gguf, arch) })
	if i < 0 {
		return Spec{}, &UnsupportedError{"general.architecture", arch, supported()}
	}
	// llama.cpp multiplies the output of an NVFP4 matrix by a scale in a tensor of its own. Without it
	// the model would compute wrong results.
	for _, name := range file.Names() {
		info, _ := file.Info(strings.TrimSuffix(name, ".scale") + ".weight")
		if strings.HasSuffix(name, ".scale") && info.DType == tensor.NVFP4 {
			return Spec{}, &UnsupportedError{"tensor", name, "NVFP4 matrices without a scale for the tensor"}
		}
	}
	g := &ggufFields{file: file, arch: arch}
	s, err := all[i].readGGUF(g)
	if err != nil {
		return Spec{}, err
	}
	s.BOS, s.EOS = g.ids(s.Vocab, "bos"), g.ids(s.Vocab, "eos", "eot", "eom")
	if err := s.Validate(); err != nil {
		return Spec{}, err
	}
	a, _ := architectureOf(s.Architecture)
	s.Init = a.init
	if a.interleavedGGUF {
		s = s.clone(func(_ *Layer, r *Rope) {
			if r != nil {
				r.Interleaved = true
			}
		})
	}
	if a.addedGGUF {
		s = s.onePlus(false)
	}
	return s.biasesOf(func(n Name, end string) bool { return n.GGUF != "" && g.has(n.GGUF+end) }), nil
}

// shape reads the sizes that every architecture has.
func (g *ggufFields) shape() (Shape, error) {
	d := Shape{
		Layers: g.need("block_count"), Width: g.need("embedding_length"), Heads: g.need("attention.head_count"),
		FF: g.need("feed_forward_length"), Context: g.need("context_length"),
		NormEps: g.float("attention.layer_norm_rms_epsilon", 1e-5),
	}
	if g.err != nil {
		return d, g.err
	}
	if d.Heads < 1 {
		return d, &FieldError{g.arch + ".attention.head_count", "want a positive integer, got 0"}
	}
	d.KVHeads = g.uint("attention.head_count_kv", d.Heads)
	d.HeadDim = g.uint("attention.key_length", d.Width/d.Heads)
	embedding, ok := g.file.Info("token_embd.weight")
	if !ok || len(embedding.Shape) != 2 {
		return d, &FieldError{"token_embd.weight", "want a matrix"}
	}
	d.Vocab, d.TiedHead = embedding.Shape[0], !g.has("output.weight")
	return d, d.check()
}

// decoder reads what files of the llama family share. A layer has norms of heads, or
// experts, if the file has their tensors.
func (g *ggufFields) decoder(name string) (Spec, error) {
	d, err := g.shape()
	if err != nil {
		return Spec{}, err
	}
	if d.Rope, err = g.rope(&d); err != nil {
		return Spec{}, err
	}
	s := decoder(name, d)
	s.setWindow(g.uint("attention.sliding_window", 0), nil)
	sizes := Experts{
		Count: g.uint("expert_count", 0), TopK: g.uint("expert_used_count", 0),
		Width: g.uint("expert_feed_forward_length", d.FF), Normalize: true,
	}
	for l := range s.Layers {
		layer := &s.Layers[l]
		if g.has(fmt.Sprintf("blk.%d.attn_q_norm.weight", l)) {
			layer.Attention.normHeads(l)
		}
		if sizes.Count > 0 && g.has(fmt.Sprintf("blk.%d.ffn_gate_inp.weight", l)) {
			layer.FFN.route(l, sizes)
		}
	}
	return s, nil
}

// full selects the layers with full attention: those that the file marks or, without marks,
// every pattern-th layer.
func (g *ggufFields) full(layers, pattern int) func(l int) bool {
	marks, _ := g.file.Meta().Bools(g.arch + ".attention.sliding_window_pattern")
	if len(marks) >= layers {
		return func(l int) bool { return !marks[l] }
	}
	return every(g.uint("attention.sliding_window_pattern", pattern))
}

func (g *ggufFields) rope(d *Shape) (Rope, error) {
	r := Rope{Base: g.float("rope.freq_base", 10000), Dims: g.uint("rope.dimension_count", d.HeadDim)}
	kind, _ := g.file.Meta().String(g.arch + ".rope.scaling.type")
	switch kind {
	case "", "none":
	case "longrope": // the factors are tensors, read below
		if g.arch != "phi3" {
			return r, &UnsupportedError{"rope.scaling.type", kind, "longrope of phi3"}
		}
	case "linear":
		r.Type, r.Factor = "linear", g.float("rope.scaling.factor", 1)
	case "yarn":
		g.yarn(&r, d)
	default:
		return r, &UnsupportedError{"rope.scaling.type", kind, "none, linear, yarn"}
	}
	if r.Type != "" && !(r.Factor > 0) {
		return r, &FieldError{"rope.scaling.factor", fmt.Sprintf("want a positive number, got %g", r.Factor)}
	}
	var err error
	if r.Factors, err = g.factors("rope_freqs.weight"); err != nil || g.arch != "phi3" {
		return r, err
	}
	if r.Factors, err = g.factors("rope_factors_short.weight"); err != nil {
		return r, err
	}
	if r.Far, err = g.factors("rope_factors_long.weight"); err == nil && r.Far != nil {
		r.Type, r.Original = "longrope", g.uint("rope.scaling.original_context_length", d.Context)
		r.Attention = g.float("rope.scaling.attn_factor", 1)
	}
	return r, err
}

func (g *ggufFields) yarn(r *Rope, d *Shape) {
	r.Type, r.Factor = "yarn", g.float("rope.scaling.factor", 1)
	r.Original = g.uint("rope.scaling.original_context_length", d.Context)
	r.BetaFast, r.BetaSlow = g.float("rope.scaling.yarn_beta_fast", 32), g.float("rope.scaling.yarn_beta_slow", 1)
	scale := yarnScale(r.Factor, 1)
	if m := g.float("rope.scaling.yarn_log_multiplier", 0); m != 0 {
		scale /= yarnScale(r.Factor, m)
	}
	// attn_factor multiplies the paper's scale. yarn_attn_factor replaces it, as
	// attention_factor in config.json does.
	scale = g.float("rope.scaling.yarn_attn_factor", scale*g.float("rope.scaling.attn_factor", 1))
	if scale != yarnScale(r.Factor, 1) {
		r.Attention = scale
	}
}

// factors reads a tensor of frequency factors, or returns nil if the file has none.
func (g *ggufFields) factors(name string) ([]float32, error) {
	info, ok := g.file.Info(name)
	if !ok {
		return nil, nil
	}
	data, err := g.file.Data(name)
	if err != nil || info.DType != tensor.F32 {
		return nil, &FieldError{name, fmt.Sprintf("want type F32, got %v", info.DType)}
	}
	var out []float32
	for ; len(data) > 0; data = data[4:] {
		out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(data)))
	}
	return out, nil
}
