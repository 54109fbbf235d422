package model

import (
	"cmp"
	"math"
)

// ropeFields are the settings of rope_scaling, or of rope_parameters, which also has rope_theta.
type ropeFields struct {
	kind               string
	theta, partial     *float64
	factor             float64
	lowFreq, highFreq  float64
	original           int
	betaFast, betaSlow float64
	attention          *float64
	mscale, mscaleAll  *float64
	truncate           bool
	short, long        []float32
	full, sliding      *ropeFields // of layers with full attention and with a window
}

func (h *hfFields) ropeFields(name string) *ropeFields {
	o := h.object(name)
	if o == nil {
		return nil
	}
	return &ropeFields{
		kind: cmp.Or(o.text("rope_type", ""), o.text("type", "")), theta: o.maybe("rope_theta"),
		partial: o.maybe("partial_rotary_factor"),
		factor:  o.float("factor", 0), lowFreq: o.float("low_freq_factor", 0), highFreq: o.float("high_freq_factor", 0),
		original: o.int("original_max_position_embeddings", 0), betaFast: o.float("beta_fast", 0),
		betaSlow:  o.float("beta_slow", 0),
		attention: o.maybe("attention_factor"), mscale: o.maybe("mscale"), mscaleAll: o.maybe("mscale_all_dim"),
		truncate: o.bool("truncate", true),
		short:    o.floats("short_factor"), long: o.floats("long_factor"),
		full: o.ropeFields("full_attention"), sliding: o.ropeFields("sliding_attention"),
	}
}

// empty reports whether no setting is given, as in {}.
func (p *ropeFields) empty() bool {
	return p == nil || p.kind == "" && p.theta == nil && p.partial == nil && p.full == nil && p.sliding == nil
}

// ropeSettings reads rope_scaling or, if that is empty, its newer form rope_parameters.
func (h *hfFields) ropeSettings() *ropeFields {
	p := h.ropeFields("rope_scaling")
	if p.empty() {
		p = h.ropeFields("rope_parameters")
	}
	if p != nil && p.full != nil {
		return p.full
	}
	return p
}

// rope reads the rotation of an architecture that rotates whole heads. base is the default
// of rope_theta, or 0 for 10000.
func (h *hfFields) rope(headDim int, base float64) Rope {
	p := h.ropeSettings()
	return h.ropeOf(headDim, h.float("rope_theta", cmp.Or(base, 10000)), p, h.originalContext(p))
}

// originalContext reads the context length before the extension.
func (h *hfFields) originalContext(p *ropeFields) int {
	if p == nil {
		return 0
	}
	return cmp.Or(h.int("original_max_position_embeddings", 0), p.original, h.size("max_position_embeddings", 0))
}

// ropeOf returns the rotation that p describes, or the plain one if p is nil.
func (h *hfFields) ropeOf(headDim int, base float64, p *ropeFields, original int) Rope {
	r := Rope{Base: base, Dims: headDim}
	if p == nil {
		return r
	}
	if p.theta != nil {
		r.Base = *p.theta
	}
	h.scaleRope(&r, p, original)
	return r
}

// scaleRope reads how the context is extended. Type mrope gives every token positions in
// time, height and width. Those of text tokens are equal, so mrope rotates them as the
// plain rope does.
func (h *hfFields) scaleRope(r *Rope, p *ropeFields, original int) {
	switch p.kind {
	case "", "default", "mrope":
		return
	case "su":
		r.Type = "longrope"
	default:
		r.Type = p.kind
	}
	r.Factor, r.Original = p.factor, original
	if r.Factor == 0 && (r.Type == "yarn" || r.Type == "longrope") && r.Original > 0 {
		r.Factor = float64(h.size("max_position_embeddings", 0)) / float64(r.Original)
	}
	if !(r.Factor > 0) {
		h.fail("rope factor", "want a positive number, got %g", r.Factor)
		return
	}
	switch r.Type {
	case "linear", "dynamic":
		r.Original = 0
	case "llama3":
		r.LowFreq, r.HighFreq = p.lowFreq, p.highFreq
		if !(r.LowFreq > 0 && r.HighFreq > r.LowFreq && r.Original > 0) {
			h.fail(
				"rope scaling",
				"llama3 needs low_freq_factor < high_freq_factor and original_max_position_embeddings",
			)
		}
	case "yarn":
		r.BetaFast, r.BetaSlow = cmp.Or(p.betaFast, 32), cmp.Or(p.betaSlow, 1)
		r.KeepRamp = !p.truncate
		switch {
		case p.attention != nil:
			r.Attention = *p.attention
		case p.mscale != nil && p.mscaleAll != nil && *p.mscale != 0 && *p.mscaleAll != 0:
			r.Attention = yarnScale(r.Factor, *p.mscale) / yarnScale(r.Factor, *p.mscaleAll)
		}
	case "longrope":
		h.longrope(r, p)
	default:
		h.refuse("rope type", r.Type, "default, linear, dynamic, llama3, yarn, longrope, mrope")
	}
}

// longrope reads Phi-3's LongRoPE (arXiv 2402.13753). Frequencies are divided by one list of
// factors within the original context and by another one beyond it, and queries and keys
// are scaled by the square root of a logarithm of the extension.
func (h *hfFields) longrope(r *Rope, p *ropeFields) {
	r.Factors, r.Far = p.short, p.long
	if r.Factors == nil || r.Far == nil {
		h.fail("rope scaling", "longrope needs short_factor and long_factor")
		return
	}
	r.Attention = 1
	switch {
	case p.attention != nil:
		r.Attention = *p.attention
	case r.Factor > 1:
		r.Attention = math.Sqrt(1 + math.Log(r.Factor)/math.Log(float64(r.Original)))
	}
}

// json returns the setting rope_scaling of config.json.
func (r *Rope) json() map[string]any {
	out := map[string]any{"rope_type": r.Type, "factor": r.Factor}
	switch r.Type {
	case "longrope":
		out["short_factor"], out["long_factor"], out["original_max_position_embeddings"] = r.Factors, r.Far, r.Original
		if r.Attention != 0 {
			out["attention_factor"] = r.Attention
		}
	case "llama3":
		out["low_freq_factor"], out["high_freq_factor"], out["original_max_position_embeddings"] = r.LowFreq,
			r.HighFreq,
			r.Original
	case "yarn":
		out["beta_fast"], out["beta_slow"], out["original_max_position_embeddings"] = r.BetaFast, r.BetaSlow, r.Original
		out["truncate"] = !r.KeepRamp
		if r.Attention != 0 {
			out["attention_factor"] = r.Attention
		}
	}
	return out
}
