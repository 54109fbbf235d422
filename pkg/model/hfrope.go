package model

import (
	"cmp"
	"fmt"
	"math"
)

// hfRope is rope_scaling, or rope_parameters with rope_theta inside.
type hfRope struct {
	Type       string    `json:"rope_type"`
	OldType    string    `json:"type"`
	Theta      *float64  `json:"rope_theta"`
	Factor     float64   `json:"factor"`
	LowFreq    float64   `json:"low_freq_factor"`
	HighFreq   float64   `json:"high_freq_factor"`
	Original   int       `json:"original_max_position_embeddings"`
	BetaFast   *float64  `json:"beta_fast"`
	BetaSlow   *float64  `json:"beta_slow"`
	Attention  *float64  `json:"attention_factor"`
	MScale     *float64  `json:"mscale"`
	MScaleAll  *float64  `json:"mscale_all_dim"`
	Truncate   *bool     `json:"truncate"`
	PartialDim *float64  `json:"partial_rotary_factor"`
	Short      []float32 `json:"short_factor"`
	Long       []float32 `json:"long_factor"`
	Full       *hfRope   `json:"full_attention"` // by kind of layer
	Sliding    *hfRope   `json:"sliding_attention"`
}

// empty reports settings that say nothing, as {} does.
func (p *hfRope) empty() bool {
	return p == nil || p.Type == "" && p.OldType == "" && p.Theta == nil && p.PartialDim == nil && p.Full == nil && p.Sliding == nil
}

// parameters are the rope settings, old or new: the old ones go first. GPT-OSS is
// published with YaRN, which goes without saying.
func (h *hfConfig) parameters() *hfRope {
	p := h.Scaling
	if p.empty() {
		p = h.Parameters
	}
	if p.empty() && h.ModelType == "gpt_oss" {
		no := false
		p = &hfRope{Type: "yarn", Factor: 32, Original: 4096, Truncate: &no}
	}
	if p != nil && p.Full != nil {
		return p.Full
	}
	return p
}

// ropes reads the rotation of layers that see everything and, nil where it is the same,
// of those with a window.
func (h *hfConfig) ropes(headDim int) (Rope, *Rope, error) {
	base := map[string]float64{"mixtral": 1e6, "smollm3": 2e6, "gpt_oss": 150000, "gemma3_text": 1e6}[h.ModelType]
	base = or(h.Theta, cmp.Or(base, 10000))
	if !h.gemma3() {
		global, err := h.rope(headDim, base, h.parameters())
		return global, nil, err
	}
	// Gemma 3's are by kind of layer; what is beside the kinds does not count.
	var kinds hfRope
	if h.Parameters != nil {
		kinds = *h.Parameters
	}
	if !h.Scaling.empty() {
		if kinds.Full != nil {
			h.Scaling.Theta = cmp.Or(h.Scaling.Theta, kinds.Full.Theta)
		}
		kinds.Full = h.Scaling
	}
	for _, p := range []*hfRope{kinds.Full, kinds.Sliding} {
		if p != nil {
			p.Truncate = nil // nor does it within them
		}
	}
	global, err := h.rope(headDim, base, kinds.Full)
	if err != nil {
		return global, nil, err
	}
	local, err := h.rope(headDim, or(h.LocalTheta, 10000), kinds.Sliding)
	return global, &local, err
}

func (h *hfConfig) rope(headDim int, base float64, p *hfRope) (Rope, error) {
	r := Rope{Base: base, Dims: headDim}
	partial := or(h.Partial, 1)
	if p != nil {
		r.Base, partial = or(p.Theta, base), or(p.PartialDim, partial)
		if err := r.scaling(p, h); err != nil {
			return r, err
		}
	}
	if h.ModelType != "phi3" { // others turn whole heads, whatever the file says
		return r, nil
	}
	r.Dims = int(float64(headDim) * partial)
	if r.Dims%2 != 0 && r.Dims > 0 { // a pair more, of frequencies for a pair less
		r.Base = math.Pow(r.Base, float64(r.Dims+1)/float64(r.Dims))
		r.Dims++
	}
	return r, nil
}

// original is the context before an extension: phi3 has it among its own fields, the
// others' own goes before that of the settings, too, where there is one.
func (h *hfConfig) original(p *hfRope) int {
	if h.ModelType == "phi3" {
		return cmp.Or(h.Original, 4096)
	}
	if h.gemma3() {
		return cmp.Or(p.Original, h.Context)
	}
	return cmp.Or(h.Original, p.Original, h.Context)
}

func (r *Rope) scaling(p *hfRope, h *hfConfig) error {
	r.Type = cmp.Or(p.Type, p.OldType)
	switch r.Type {
	case "", "default":
		r.Type = ""
		return nil
	case "su":
		r.Type = "longrope"
	case "yarn":
		if h.ModelType == "phi3" { // an early name
			r.Type = "longrope"
		}
	}
	r.Factor, r.Original = p.Factor, h.original(p)
	if r.Factor == 0 && (r.Type == "yarn" || r.Type == "longrope") && r.Original > 0 {
		r.Factor = float64(h.Context) / float64(r.Original)
	}
	if !(r.Factor > 0) {
		return &FieldError{"rope factor", fmt.Sprintf("%g is not positive", r.Factor)}
	}
	switch r.Type {
	case "linear", "dynamic":
		r.Original = 0
		return nil
	case "llama3":
		r.LowFreq, r.HighFreq = p.LowFreq, p.HighFreq
		if !(r.LowFreq > 0 && r.HighFreq > r.LowFreq && r.Original > 0) {
			return &FieldError{"rope scaling", "llama3 needs low_freq_factor < high_freq_factor and original_max_position_embeddings"}
		}
		return nil
	case "yarn":
		r.BetaFast, r.BetaSlow = cmp.Or(or(p.BetaFast, 0), 32), cmp.Or(or(p.BetaSlow, 0), 1)
		r.KeepRamp = !or(p.Truncate, true)
		switch {
		case p.Attention != nil:
			r.Attention = *p.Attention
		case p.MScale != nil && p.MScaleAll != nil && *p.MScale != 0 && *p.MScaleAll != 0:
			r.Attention = yarnScale(r.Factor, *p.MScale) / yarnScale(r.Factor, *p.MScaleAll)
		}
		return nil
	case "longrope":
		return r.longrope(p)
	}
	return &UnsupportedError{"rope type", r.Type, "default, linear, dynamic, llama3, yarn and longrope are"}
}

// longrope is Phi-3's (LongRoPE, arXiv 2402.13753): frequencies are divided by one list
// of factors within the original context and by another beyond, and magnitudes grow with
// the logarithm of the extension.
func (r *Rope) longrope(p *hfRope) error {
	r.Factors, r.Far = p.Short, p.Long
	if r.Factors == nil || r.Far == nil {
		return &FieldError{"rope scaling", "longrope needs short_factor and long_factor"}
	}
	r.Attention = or(p.Attention, 1)
	if p.Attention == nil && r.Factor > 1 {
		r.Attention = math.Sqrt(1 + math.Log(r.Factor)/math.Log(float64(r.Original)))
	}
	return nil
}

// json is rope_scaling, in the classic spelling.
func (r *Rope) json() map[string]any {
	out := map[string]any{"rope_type": r.Type, "factor": r.Factor}
	switch r.Type {
	case "longrope":
		out["short_factor"], out["long_factor"], out["original_max_position_embeddings"] = r.Factors, r.Far, r.Original
		if r.Attention != 0 {
			out["attention_factor"] = r.Attention
		}
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
