package sample

import "math"

// Mirostat keeps the surprise of tokens near Tau bits. It samples only from tokens whose
// surprise is within a bound. The bound starts at 2·Tau and moves by Eta times the error of the
// last token's surprise.
type Mirostat struct {
	Version  int // 1 turns the bound into a top-k by the Zipf exponent of the best; 2 drops tokens above it
	Tau, Eta float64
}

// Name is mirostat.
func (Mirostat) Name() string { return "mirostat" }

// zipf is the number of best tokens from which the exponent is estimated.
const zipf = 100

// bound returns the bound after the surprises of the history.
func (m Mirostat) bound(h *History) float64 {
	bound := 2 * m.Tau
	for _, s := range h.surprise {
		bound -= m.Eta * (s - m.Tau)
	}
	return bound
}

func (m Mirostat) apply(s *state) error {
	total, known := s.mass()
	if !known {
		return ErrTooFew
	}
	top, bound := s.top(), m.bound(s.history)
	if m.Version == 2 {
		logTotal := top + math.Log(total)
		best := s.kept[0].id // stays, however surprising it is
		return s.filter(min(top, logTotal-bound*math.Ln2*(1+slack)), func(e entry) bool {
			return e.id == best || reaches(bound, (logTotal-e.logit)/math.Ln2)
		})
	}
	if s.tail {
		return ErrTooFew
	}
	s.sort(zipf)
	var tb, tt float64
	for i := 0; i+1 < min(zipf, len(s.kept)); i++ {
		t := math.Log(float64(i+2) / float64(i+1))
		tb += t * (s.kept[i].logit - s.kept[i+1].logit)
		tt += t * t
	}
	if tt == 0 {
		return nil
	}
	exponent := tb / tt
	over := exponent - 1
	k := math.Pow(over*math.Pow(2, bound)/(1-math.Pow(float64(len(s.kept)), -over)), 1/exponent)
	if math.IsNaN(k) {
		k = 1
	}
	// The fraction of k is dropped, but not that of a k that misses a whole number by rounding.
	return s.keep(int(max(1, min(k*(1+rounding), float64(len(s.kept))))))
}
