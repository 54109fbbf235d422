package model

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

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

// validate reports the first setting that is out of bounds for heads of headDim.
func (r *Rope) validate(headDim int) error {
	if r.Dims%2 != 0 || r.Dims < 2 || r.Dims > headDim {
		return &FieldError{"rotated dimensions", fmt.Sprintf("want an even part of head size %d, got %d", headDim, r.Dims)}
	}
	if !(r.Base > 1) {
		return &FieldError{"rope base", fmt.Sprintf("want a number above 1, got %g", r.Base)}
	}
	for _, factors := range [][]float32{r.Factors, r.Far} {
		if factors != nil && len(factors) != r.Dims/2 {
			return &FieldError{"rope factors", fmt.Sprintf("%d for %d frequencies", len(factors), r.Dims/2)}
		}
		for i, f := range factors {
			if !(f > 0) || math.IsInf(float64(f), 0) {
				return &FieldError{"rope factors", fmt.Sprintf("number %d is %g", i, f)}
			}
		}
	}
	return nil
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

func yarnScale(factor, m float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*m*math.Log(factor) + 1
}
