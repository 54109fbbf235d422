package sample

import "math"

// Step is one step of a chain: one sampling parameter at work.
type Step interface {
	// Name is the rule's name in requests.
	Name() string
	apply(s *state) error
}

// Temperature divides the logits; 0 keeps only the best id (greedy sampling).
type Temperature float64

// DynamicTemperature is a temperature between Temperature-Range and Temperature+Range,
// by the ratio of the entropy to the greatest possible one, to the power of Exponent.
type DynamicTemperature struct{ Temperature, Range, Exponent float64 }

// TopK keeps the k best ids; 0 keeps all.
type TopK int

// TopP keeps the smallest set of best ids whose probability reaches p.
type TopP float64

// MinP drops ids that are less likely than p times the best.
type MinP float64

// TypicalP keeps the ids whose surprise is nearest to the entropy, until their
// probability reaches p; ids that are equally near stay together. This is transformers' border: llama.cpp
// wants the probability to exceed p.
type TypicalP float64

// TopNSigma keeps the ids within n standard deviations of the best logit; 0 keeps all.
type TopNSigma float64

// XTC drops, with a probability, all but the least likely of the ids that reach a
// threshold (exclude top choices).
type XTC struct{ Probability, Threshold float64 }

// EpsilonCutoff drops ids that are less likely than epsilon, except the best.
type EpsilonCutoff float64

// EtaCutoff is an epsilon cutoff of min(eta, sqrt(eta)·exp(-entropy)).
type EtaCutoff float64

// Name is temperature.
func (Temperature) Name() string        { return "temperature" }
func (DynamicTemperature) Name() string { return "dynamic_temperature" }
func (TopK) Name() string               { return "top_k" }
func (TopP) Name() string               { return "top_p" }
func (MinP) Name() string               { return "min_p" }
func (TypicalP) Name() string           { return "typical_p" }
func (TopNSigma) Name() string          { return "top_n_sigma" }
func (XTC) Name() string                { return "xtc" }
func (EpsilonCutoff) Name() string      { return "epsilon_cutoff" }
func (EtaCutoff) Name() string          { return "eta_cutoff" }

func (t Temperature) apply(s *state) error {
	if t <= 0 {
		return s.keep(1)
	}
	s.scale(float64(t))
	return nil
}

func (d DynamicTemperature) apply(s *state) error {
	t := d.Temperature
	if d.Range > 0 {
		if s.tail {
			return ErrTooFew
		}
		n := len(s.kept)
		if n < 2 {
			return nil
		}
		low, high := max(0, d.Temperature-d.Range), d.Temperature+d.Range
		t = low + (high-low)*math.Pow(max(0, s.entropy())/math.Log(float64(n)), d.Exponent)
	}
	return Temperature(t).apply(s)
}

func (k TopK) apply(s *state) error {
	if k <= 0 {
		return nil
	}
	if !s.tail {
		k = min(k, TopK(len(s.kept)))
	}
	return s.keep(int(k))
}

func (p TopP) apply(s *state) error {
	if p >= 1 {
		return nil
	}
	total, known := s.mass()
	if !known {
		return ErrTooFew
	}
	n, reached := s.nucleus(float64(p), total)
	if !reached {
		return ErrTooFew
	}
	return s.keep(n)
}

func (p MinP) apply(s *state) error {
	if p <= 0 {
		return nil
	}
	top := s.top()
	return s.filter(top+math.Log(float64(p))-slack, func(e entry) bool {
		return reaches(math.Exp(e.logit-top), float64(p))
	})
}

// reaches reports whether a value is at least its threshold. All peers let a value pass
// that equals its threshold, and compute both in float32. A value that would equal the
// threshold without rounding must pass too: 0.4 + 0.3 reaches 0.7, also if the logits were
// rounded to float32 before. So a value passes that misses its threshold by rounding alone.
func reaches(value, threshold float64) bool { return value >= threshold*(1-rounding) }

// rounding is the relative error of a probability that is computed in float32, or from
// float32 logits: a few units in the last place.
const rounding = 0x1p-21

// slack widens the floor of a filter, in nats, so that every entry that reaches its
// threshold is above the floor. A candidate list that ends within the slack does not
// decide, and the whole row is used.
const slack = 2 * rounding

func (p TypicalP) apply(s *state) error {
	if p >= 1 {
		return nil
	}
	if s.tail {
		return ErrTooFew
	}
	entropy, total := s.entropy(), s.logTotal()
	distance := func(e entry) float64 { return math.Abs(total - e.logit - entropy) }
	near := state{kept: make([]entry, len(s.kept))} // places, ranked by minus their distance
	for i, e := range s.kept {
		near.kept[i] = entry{int32(i), -distance(e)}
	}
	last, sum := math.Inf(1), 0.0
	for i := range near.kept {
		near.sort(i + 1)
		if sum += math.Exp(s.kept[near.kept[i].id].logit - total); reaches(sum, float64(p)) {
			last = -near.kept[i].logit
			break
		}
	}
	return s.filter(math.Inf(-1), func(e entry) bool { return distance(e) <= last+rounding })
}

func (n TopNSigma) apply(s *state) error {
	if n <= 0 {
		return nil
	}
	if s.tail {
		return ErrTooFew
	}
	var mean, spread float64
	for _, e := range s.kept {
		mean += e.logit
	}
	mean /= float64(len(s.kept))
	for _, e := range s.kept {
		spread += (e.logit - mean) * (e.logit - mean)
	}
	top, most := s.top(), float64(n)*math.Sqrt(spread/float64(len(s.kept)))
	return s.filter(math.Inf(-1), func(e entry) bool { return reaches(most, top-e.logit) })
}

// xtcMost is the greatest threshold at which XTC does anything: no more than one id can
// have a probability above a half.
const xtcMost = 0.5

func (x XTC) apply(s *state) error {
	if x.Probability <= 0 || x.Threshold > xtcMost || uniform(s.seed, s.position, s.choice, useXTC) >= x.Probability {
		return nil
	}
	total, known := s.mass()
	if !known {
		return ErrTooFew
	}
	top, n := s.top(), 0
	for ; n < len(s.kept); n++ {
		if s.sort(n + 1); !reaches(math.Exp(s.kept[n].logit-top)/total, x.Threshold) {
			break
		}
	}
	if n == len(s.kept) && s.tail {
		return ErrTooFew
	}
	if n < 2 {
		return nil
	}
	dropped := make(map[int32]bool, n-1)
	for _, e := range s.kept[:n-1] {
		dropped[e.id] = true
	}
	return s.ban(dropped)
}

// atLeast drops entries that are less likely than p, except the best.
func (s *state) atLeast(p float64) error {
	total, known := s.mass()
	if !known {
		return ErrTooFew
	}
	top := s.top()
	best := s.kept[0].id
	return s.filter(min(top, top+math.Log(p*total)-slack), func(e entry) bool {
		return e.id == best || reaches(math.Exp(e.logit-top)/total, p)
	})
}

func (e EpsilonCutoff) apply(s *state) error {
	if e <= 0 {
		return nil
	}
	return s.atLeast(float64(e))
}

func (e EtaCutoff) apply(s *state) error {
	if e <= 0 {
		return nil
	}
	if s.tail {
		return ErrTooFew
	}
	return s.atLeast(min(float64(e), math.Sqrt(float64(e))*math.Exp(-s.entropy())))
}
