package optim

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// The names of the learning rate schedules.
const (
	RateCosine   = "cosine"   // half a cosine from Max down to Min
	RateLinear   = "linear"   // a line from Max down to Min
	RateConstant = "constant" // Max
	RateWSD      = "wsd"      // warmup-stable-decay: Max, then a line down to Min over the last Decay steps
)

// Rate is a learning rate schedule. It begins with a linear warm-up from 0 to Max over Warmup steps.
type Rate struct {
	Name     string
	Max, Min float64
	Warmup   int // steps
	Decay    int // steps, of RateWSD
	Total    int // steps of the run
}

// Check returns an error that names the field that is out of range.
func (r Rate) Check() error {
	switch r.Name {
	case RateCosine, RateLinear, RateConstant:
		if r.Decay != 0 {
			return fault.Field("decay", "%d steps: only %s has a phase of decay", r.Decay, RateWSD)
		}
	case RateWSD:
		if r.Decay < 1 || r.Decay > r.Total {
			return fault.Field("decay", "%d is not within 1..%d", r.Decay, r.Total)
		}
	default:
		return fault.Field("type", "%q is not one of %s, %s, %s and %s", r.Name, RateCosine, RateLinear, RateConstant,
			RateWSD)
	}
	return nil
}

// At returns the learning rate of an optimizer step. Steps count from 1.
func (r Rate) At(step int) float64 {
	if step <= r.Warmup {
		return r.Max * float64(step) / float64(r.Warmup+1)
	}
	if r.Name == RateConstant {
		return r.Max
	}
	from := r.Warmup
	if r.Name == RateWSD {
		from = max(from, r.Total-r.Decay)
		if step <= from {
			return r.Max
		}
	}
	if step >= r.Total {
		return r.Min
	}
	done := float64(step-from) / float64(max(1, r.Total-from))
	if r.Name == RateCosine {
		return r.Min + (r.Max-r.Min)*(1+math.Cos(math.Pi*done))/2
	}
	return r.Max + (r.Min-r.Max)*done
}
