package optim_test

import (
	"math"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

func TestRate_WarmsUpAndDecays(t *testing.T) {
	const high, low = 1e-3, 1e-4
	for name, steps := range map[string]map[int]float64{
		optim.RateCosine: {1: high / 101, 100: high * 100 / 101, 101: 9.99999384e-4, 1050: 5.5e-4, 2000: low,
			3000: low},
		optim.RateLinear: {1: high / 101, 100: high * 100 / 101, 575: 7.75e-4, 1050: 5.5e-4, 1999: 1.0047368e-4,
			2000: low, 3000: low},
		optim.RateConstant: {1: high / 101, 100: high * 100 / 101, 101: high, 2000: high, 3000: high},
		optim.RateWSD:      {1: high / 101, 101: high, 1800: high, 1801: 9.955e-4, 1900: 5.5e-4, 2000: low, 3000: low},
	} {
		r := optim.Rate{Name: name, Max: high, Min: low, Warmup: 100, Total: 2000}
		if name == optim.RateWSD {
			r.Decay = 200
		}
		if err := r.Check(); err != nil {
			t.Error(err)
		}
		for step, want := range steps {
			if got := r.At(step); math.Abs(got-want) > 1e-11 {
				t.Errorf("%s: rate of step %d is %g, want %g", name, step, got, want)
			}
		}
	}
}

// Every schedule falls from Max to Min after the warm-up, except a constant one, and never leaves
// the range between 0 and Max.
func TestRate_NeverRisesAfterTheWarmUp(t *testing.T) {
	for _, name := range []string{optim.RateCosine, optim.RateLinear, optim.RateConstant, optim.RateWSD} {
		for _, total := range []int{1, 2, 7, 50} {
			for _, warm := range []int{0, 1, 5, 60} {
				r := optim.Rate{Name: name, Max: 0.5, Min: 0.125, Warmup: warm, Total: total}
				if name == optim.RateWSD {
					r.Decay = (total + 1) / 2
				}
				last := 0.0
				for step := 1; step <= total; step++ {
					got := r.At(step)
					if got <= 0 || got > r.Max || step <= warm && got <= last || step > warm+1 && got > last {
						t.Fatalf("%+v: rate of step %d is %g after %g", r, step, got, last)
					}
					last = got
				}
				if total > warm && name != optim.RateConstant && r.At(total) != r.Min {
					t.Errorf("%+v: the last rate is %g", r, r.At(total))
				}
			}
		}
	}
}

func TestRate_NamesTheFieldItRefuses(t *testing.T) {
	for want, r := range map[string]optim.Rate{
		"type":           {Name: "step", Total: 5},
		"decay: 0 is":    {Name: optim.RateWSD, Total: 5},
		"decay: 6 is":    {Name: optim.RateWSD, Total: 5, Decay: 6},
		"decay: 2 steps": {Name: optim.RateCosine, Total: 5, Decay: 2},
	} {
		if err := r.Check(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error that names %s", r, err, want)
		}
	}
}
