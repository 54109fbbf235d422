package model

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Rope describes how queries and keys are rotated by their positions.
type Rope struct {
	Base        float64
	Dims        int       // rotated components of a head
	Interleaved bool      // pairs (2i, 2i+1), as GGUF files of llama have them; else (i, i+Dims/2)
	Type        string    // "", "linear", "dynamic", "llama3", "yarn", "longrope"
	Factor      float64   // context extension
	Original    int       // context length before the extension
	LowFreq     float64   // llama3
	HighFreq    float64   // llama3
	BetaFast    float64   // yarn
	BetaSlow    float64   // yarn
	Attention   float64   // yarn and longrope: scale of queries and keys; 0: the paper's
	KeepRamp    bool      // yarn: do not round the ends of the ramp
	Factors     []float32 // divide the frequencies, if the file has them
	Far         []float32 // longrope: divide them from position Original on
}

// validate reports the first setting that is out of bounds for heads of headDim.
func (r *Rope) validate(headDim int) error {
	if r.Dims%2 != 0 || r.Dims < 2 || r.Dims > headDim {
		return &FieldError{"rotated dimensions",
			fmt.Sprintf("want an even part of head size %d, got %d", headDim, r.Dims)}
	}
	if !(r.Base > 1) {
		return &FieldError{"rope base", fmt.Sprintf("want a number above 1, got %g", r.Base)}
	}
	for _, factors := range [][]float32{r.Factors, r.Far} {
		if factors != nil && len(factors) != r.Dims/2 {
			return &FieldError{"rope factors",
				fmt.Sprintf("want one for each of %d frequencies, got %d", r.Dims/2, len(factors))}
		}
		for i, f := range factors {
			if !(f > 0) || math.IsInf(float64(f), 0) {
				return &FieldError{"rope factors", fmt.Sprintf("want positive numbers, got %g at index %d", f, i)}
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

// llama3 lowers the frequencies of long wavelengths, as Llama 3.1 does. Those with a
// wavelength below Original/HighFreq stay, those above Original/LowFreq are divided by
// Factor, and those between are interpolated.
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

// yarn implements Peng et al.'s YaRN (arXiv 2309.00071). Frequencies with more than BetaFast turns
// within the original context stay. Those with less than BetaSlow turns are divided by Factor.
// Between the two, a linear ramp interpolates. Magnitudes are multiplied by 0.1·ln(Factor)+1.
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
