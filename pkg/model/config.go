package model

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Config is a model's hyper-parameters, read from config.json or GGUF metadata.
type Config struct {
	Architecture string // "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "mixtral", "qwen3_moe", "gpt-oss", "gpt2"
	Layers       int    // L
	Width        int    // C
	Heads        int    // H
	KVHeads      int    // K
	HeadDim      int    // D
	FF           int    // F
	Vocab        int    // V
	Context      int    // longest context in positions
	NormEps      float64
	LayerNorm    bool // LayerNorm with bias instead of RMSNorm
	GLU          bool // act(gate)·up instead of act(up)
	Act          kernel.Act
	BiasQKV      bool
	BiasO        bool
	BiasMLP      bool
	TiedHead     bool   // the head is the embedding
	Learned      bool   // learned positions instead of rotary ones
	Window       int    // sliding window; 0 for none
	Full         []bool // [L] layers that attend in full despite Window; nil: none does
	Rope         Rope
	LocalRope    *Rope   // of layers with a window, where it differs
	NoRope       []bool  // [L] layers without positions; nil: none
	QKNorm       bool    // RMSNorm of each head of queries and keys, before positions
	PostNorms    bool    // RMSNorm of what attention and feed-forward add, too
	GainFromOne  bool    // norms of the width multiply by 1 plus the stored gain
	EmbedScale   float64 // multiplies embeddings; 0 for none
	QueryScale   float64 // multiplies scores; 0 means 1/sqrt(D)
	ScaleByLayer bool    // and divides those of layer l by l+1
	AttnCap      float64 // bound of scores, cap·tanh(score/cap); 0 for none
	LogitCap     float64 // bound of logits, likewise
	Experts      int     // E; 0: feed-forward without a router
	TopK         int     // experts of a row
	ExpertFF     int     // F of an expert
	NormTopK     bool    // weights of the chosen add up to one
	DenseFF      []bool  // [L] layers without a router despite Experts; nil: none
	Sinks        bool    // each head's softmax has a score without a value
	GLUAlpha     float64 // GPT-OSS's gate, g·sigmoid(alpha·g)·(up+1); 0: as Act says
	GLULimit     float64 // and bound of g from above, of up on both sides
	BOS, EOS     []int32 // ids that begin and that end a text; nil where the file names none
}

// Rope says how positions are rotated.
type Rope struct {
	Base        float64
	Dims        int       // rotated components of a head
	Interleaved bool      // pairs (2i, 2i+1), as GGUF's llama has them
	Type        string    // "", "linear", "dynamic", "llama3", "yarn", "longrope"
	Factor      float64   // context extension
	Original    int       // context before the extension
	LowFreq     float64   // llama3
	HighFreq    float64   // llama3
	BetaFast    float64   // yarn
	BetaSlow    float64   // yarn
	Attention   float64   // yarn: magnitude; 0 means the paper's
	KeepRamp    bool      // yarn: do not round the ramp's ends
	Factors     []float32 // divides each frequency, where a file gives them
	Far         []float32 // longrope: divides them from position Original on
}

// UnsupportedError reports a model that this build cannot run.
type UnsupportedError struct {
	Field, Value string
	Supported    string
}

// Error names the field and what would be supported.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("read model: %s %q is not supported (%s)", e.Field, e.Value, e.Supported)
}

// FieldError reports a hyper-parameter that is missing or impossible.
type FieldError struct{ Field, Msg string }

// FaultCode is Unimplemented.
func (e *UnsupportedError) FaultCode() fault.Code { return fault.Unimplemented }

// FaultCode is DataLoss: the model's files are not whole.
func (e *FieldError) FaultCode() fault.Code { return fault.DataLoss }

// Error names the field.
func (e *FieldError) Error() string { return fmt.Sprintf("read model: %s: %s", e.Field, e.Msg) }

// Limits of hyper-parameters: far above any model, and small enough that products
// of three do not overflow.
const (
	maxSize   = 1 << 24
	maxLayers = 4096
)

// Validate reports the first hyper-parameter that is out of bounds.
func (c *Config) Validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"layers", c.Layers}, {"width", c.Width}, {"heads", c.Heads}, {"key/value heads", c.KVHeads}, {"head size", c.HeadDim},
		{"feed-forward width", c.FF}, {"vocabulary", c.Vocab}, {"context", c.Context},
	} {
		if f.value < 1 || f.value > maxSize {
			return &FieldError{f.name, fmt.Sprintf("%d is not within 1..%d", f.value, maxSize)}
		}
	}
	if c.Layers > maxLayers {
		return &FieldError{"layers", fmt.Sprintf("%d is more than %d", c.Layers, maxLayers)}
	}
	if c.Heads%c.KVHeads != 0 {
		return &FieldError{"key/value heads", fmt.Sprintf("%d do not divide %d heads", c.KVHeads, c.Heads)}
	}
	if !c.Learned && (c.Rope.Dims%2 != 0 || c.Rope.Dims < 2 || c.Rope.Dims > c.HeadDim) {
		return &FieldError{"rotated dimensions", fmt.Sprintf("%d are not an even part of head size %d", c.Rope.Dims, c.HeadDim)}
	}
	if !(c.NormEps >= 0 && c.NormEps < 1) {
		return &FieldError{"norm epsilon", fmt.Sprintf("%g is not within 0..1", c.NormEps)}
	}
	if !c.Learned && !(c.Rope.Base > 1) {
		return &FieldError{"rope base", fmt.Sprintf("%g is not above 1", c.Rope.Base)}
	}
	for _, factors := range [][]float32{c.Rope.Factors, c.Rope.Far} {
		if factors != nil && len(factors) != c.Rope.Dims/2 {
			return &FieldError{"rope factors", fmt.Sprintf("%d for %d frequencies", len(factors), c.Rope.Dims/2)}
		}
		for i, f := range factors {
			if !(f > 0) || math.IsInf(float64(f), 0) {
				return &FieldError{"rope factors", fmt.Sprintf("number %d is %g", i, f)}
			}
		}
	}
	if l := c.LocalRope; l != nil && (!(l.Base > 1) || l.Dims%2 != 0 || l.Dims < 2 || l.Dims > c.HeadDim) {
		return &FieldError{"local rope", fmt.Sprintf("base %g, %d of %d dimensions", l.Base, l.Dims, c.HeadDim)}
	}
	if c.NoRope != nil && len(c.NoRope) != c.Layers {
		return &FieldError{"no_rope_layers", fmt.Sprintf("%d of %d layers", len(c.NoRope), c.Layers)}
	}
	if c.Experts < 0 || c.Experts > 1<<12 || c.Experts > 0 && (c.TopK < 1 || c.TopK > c.Experts || c.ExpertFF < 1 || c.ExpertFF > maxSize || !c.GLU) {
		return &FieldError{"experts", fmt.Sprintf("%d of %d, %d wide", c.TopK, c.Experts, c.ExpertFF)}
	}
	if c.DenseFF != nil && len(c.DenseFF) != c.Layers {
		return &FieldError{"layers without experts", fmt.Sprintf("%d of %d layers described", len(c.DenseFF), c.Layers)}
	}
	if !(c.AttnCap >= 0 && c.LogitCap >= 0 && c.QueryScale >= 0 && c.EmbedScale >= 0) {
		return &FieldError{"scales", fmt.Sprintf("caps %g and %g, query scale %g, embedding scale %g", c.AttnCap, c.LogitCap, c.QueryScale, c.EmbedScale)}
	}
	if c.Window < 0 || c.Full != nil && len(c.Full) != c.Layers {
		return &FieldError{"sliding window", fmt.Sprintf("%d, with %d of %d layers described", c.Window, len(c.Full), c.Layers)}
	}
	return nil
}

// routes reports whether layer l has experts.
func (c *Config) routes(l int) bool { return c.Experts > 0 && (c.DenseFF == nil || !c.DenseFF[l]) }

// heads shapes the attention of layer l.
func (c *Config) heads(l int) kernel.Heads {
	a := kernel.Heads{H: c.Heads, K: c.KVHeads, D: c.HeadDim, Scale: c.QueryScale, Window: c.Window, Softcap: c.AttnCap}
	if a.Scale == 0 {
		a.Scale = 1 / math.Sqrt(float64(c.HeadDim))
	}
	if c.ScaleByLayer {
		a.Scale /= float64(l + 1)
	}
	if c.Full != nil && c.Full[l] {
		a.Window = 0
	}
	return a
}

// rotaries are the rotations of the layers of a range, nil where there is none. Equal
// ones are shared.
func (c *Config) rotaries(layers Range) []*kernel.Rotary {
	out := make([]*kernel.Rotary, layers.Len())
	if c.Learned {
		return out
	}
	whole := c.Rope.rotary()
	local := whole
	if c.LocalRope != nil {
		local = c.LocalRope.rotary()
	}
	for i := range out {
		switch l := layers.Lo + i; {
		case c.NoRope != nil && c.NoRope[l]:
		case c.heads(l).Window > 0:
			out[i] = local
		default:
			out[i] = whole
		}
	}
	return out
}

// rotary computes the rotation's frequencies.
func (r *Rope) rotary() *kernel.Rotary {
	out := &kernel.Rotary{Dims: r.Dims, Interleaved: r.Interleaved, Scale: 1, Freq: make([]float64, r.Dims/2)}
	for i := range out.Freq {
		out.Freq[i] = math.Pow(r.Base, -2*float64(i)/float64(r.Dims))
	}
	switch r.Type {
	case "linear":
		for i := range out.Freq {
			out.Freq[i] /= r.Factor
		}
	case "llama3":
		r.llama3(out.Freq)
	case "yarn":
		r.yarn(out)
	case "longrope":
		out.Scale = r.Attention
		if out.Scale == 0 {
			out.Scale = 1
		}
		out.From = r.Original
		for i, f := range r.Far {
			out.Far = append(out.Far, out.Freq[i]/float64(f))
		}
	}
	for i, f := range r.Factors {
		out.Freq[i] /= float64(f)
	}
	return out
}

// llama3 slows the frequencies whose wavelength exceeds the original context, as
// Llama 3.1 does: unchanged below Original/HighFreq, divided by Factor above
// Original/LowFreq, blended between.
func (r *Rope) llama3(freq []float64) {
	low, high := float64(r.Original)/r.LowFreq, float64(r.Original)/r.HighFreq
	for i, f := range freq {
		switch wave := 2 * math.Pi / f; {
		case wave > low:
			freq[i] = f / r.Factor
		case wave >= high:
			smooth := (float64(r.Original)/wave - r.LowFreq) / (r.HighFreq - r.LowFreq)
			freq[i] = (1-smooth)*f/r.Factor + smooth*f
		}
	}
}

// yarn is Peng et al.'s YaRN (arXiv 2309.00071): frequencies that turn more than
// BetaFast times within the original context stay, those that turn less than
// BetaSlow times are divided by Factor, a linear ramp between; and magnitudes grow
// by 0.1·ln(Factor)+1.
func (r *Rope) yarn(out *kernel.Rotary) {
	turnsAt := func(turns float64) float64 {
		return float64(r.Dims) * math.Log(float64(r.Original)/(turns*2*math.Pi)) / (2 * math.Log(r.Base))
	}
	low, high := turnsAt(r.BetaFast), turnsAt(r.BetaSlow)
	if !r.KeepRamp {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(r.Dims-1))
	if low == high {
		high += 0.001
	}
	for i, f := range out.Freq {
		slow := min(max((float64(i)-low)/(high-low), 0), 1)
		out.Freq[i] = f/r.Factor*slow + f*(1-slow)
	}
	out.Scale = r.Attention
	if out.Scale == 0 {
		out.Scale = 1
		if r.Factor > 1 {
			out.Scale = 0.1*math.Log(r.Factor) + 1
		}
	}
}

// Range is the layers [Lo, Hi).
type Range struct{ Lo, Hi int }

// Len is the number of layers.
func (r Range) Len() int { return r.Hi - r.Lo }

// String is "lo-hi", as log lines and event parts spell it.
func (r Range) String() string { return fmt.Sprintf("%d-%d", r.Lo, r.Hi) }

// Split cuts layers into stages as even as can be, each with a layer at least: of
// more stages than layers, or of none, it makes as many as there can be.
func Split(layers, stages int) []Range {
	stages = min(max(stages, 1), layers)
	out := make([]Range, stages)
	for i := range out {
		out[i] = Range{i * layers / stages, (i + 1) * layers / stages}
	}
	return out
}
