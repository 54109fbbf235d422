package eval

import (
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// Estimate is the value of a metric with its uncertainty.
type Estimate struct {
	Value float64 `json:"value"`
	// StdErr is the standard deviation of the value over resamples of the docs (bootstrap), and Low and High are the
	// 2.5th and 97.5th percentile.
	StdErr float64 `json:"stderr"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Docs   int     `json:"docs"`
}

const (
	resamples    = 1000
	permutations = 10000
)

// Summarise returns the value of every metric. The docs' parts may be of any order; the random numbers depend on
// the seed and the indexes of docs only.
func Summarise(docs []Parts, seed uint64) map[string]Estimate {
	out := map[string]Estimate{}
	for _, name := range metrics(docs) {
		parts := column(docs, name)
		e := Estimate{Value: value(name, sum(parts)), Docs: len(parts)}
		drawn := make([]float64, resamples)
		for b := range drawn {
			var s Part
			for i := range parts {
				p := parts[below(uint64(len(parts)), seed, uint64(b), uint64(i))]
				s.Num, s.Den = s.Num+p.Num, s.Den+p.Den
			}
			drawn[b] = value(name, s)
		}
		e.StdErr, e.Low, e.High = spread(drawn)
		out[name] = e
	}
	return out
}

// Difference compares two models by a metric.
type Difference struct {
	A     float64 `json:"a"`
	B     float64 `json:"b"`
	Delta float64 `json:"delta"` // B - A
	// StdErr, Low and High are those of the difference over resamples of the docs, the same for both models.
	StdErr float64 `json:"stderr"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	// P is the probability of a difference at least as large if the models were alike: of a permutation test that swaps
	// the two models' results of single docs.
	P    float64 `json:"p"`
	Docs int     `json:"docs"`
	// OnlyA and OnlyB are the docs that only one of the models has right, for metrics of hits. McNemar is the
	// p-value of McNemar's exact test on them; 0 for other metrics.
	OnlyA   int     `json:"only_a,omitempty"`
	OnlyB   int     `json:"only_b,omitempty"`
	McNemar float64 `json:"mcnemar,omitempty"`
}

// Compare compares two models on the same docs. Metrics that only one of them has are left out.
func Compare(a, b []Parts, seed uint64) (map[string]Difference, error) {
	if len(a) != len(b) {
		return nil, fmt.Errorf("compare results: %d docs and %d docs", len(a), len(b))
	}
	out := map[string]Difference{}
	for _, name := range metrics(a) {
		pa, pb := column(a, name), column(b, name)
		if len(pa) != len(a) || len(pb) != len(b) {
			continue
		}
		d := Difference{A: value(name, sum(pa)), B: value(name, sum(pb)), Docs: len(pa)}
		d.Delta = d.B - d.A
		drawn := make([]float64, resamples)
		for r := range drawn {
			var sa, sb Part
			for i := range pa {
				j := below(uint64(len(pa)), seed, uint64(r), uint64(i))
				sa, sb = added(sa, pa[j]), added(sb, pb[j])
			}
			drawn[r] = value(name, sb) - value(name, sa)
		}
		d.StdErr, d.Low, d.High = spread(drawn)
		d.P = swapped(name, pa, pb, seed, math.Abs(d.Delta))
		d.mcNemar(pa, pb)
		out[name] = d
	}
	return out, nil
}

// swapped is the permutation test.
func swapped(name string, a, b []Part, seed uint64, observed float64) float64 {
	extreme := 0
	for r := range permutations {
		var sa, sb Part
		for i := range a {
			x, y := a[i], b[i]
			if mix(seed^mix(uint64(r)<<32|uint64(i))+0x51ed)&1 == 1 {
				x, y = y, x
			}
			sa, sb = added(sa, x), added(sb, y)
		}
		if math.Abs(value(name, sb)-value(name, sa)) >= observed*(1-1e-12) {
			extreme++
		}
	}
	return float64(extreme+1) / (permutations + 1)
}

// mcNemar sets the fields of McNemar's test if all parts are hits or misses.
func (d *Difference) mcNemar(a, b []Part) {
	for i := range a {
		for _, p := range []Part{a[i], b[i]} {
			if p.Den != 1 || p.Num != 0 && p.Num != 1 {
				d.OnlyA, d.OnlyB = 0, 0
				return
			}
		}
		if a[i].Num > b[i].Num {
			d.OnlyA++
		}
		if b[i].Num > a[i].Num {
			d.OnlyB++
		}
	}
	// Under the null hypothesis the smaller count is binomial with probability 1/2.
	n, k := d.OnlyA+d.OnlyB, min(d.OnlyA, d.OnlyB)
	tail := 0.0
	for i := range k + 1 {
		tail += math.Exp(lnChoose(n, i) - float64(n)*math.Ln2)
	}
	d.McNemar = min(1, 2*tail)
}

func lnChoose(n, k int) float64 {
	ln := func(x int) float64 { v, _ := math.Lgamma(float64(x) + 1); return v }
	return ln(n) - ln(k) - ln(n-k)
}

// metrics lists the names of all metrics, sorted.
func metrics(docs []Parts) []string {
	all := map[string]bool{}
	for _, d := range docs {
		for name := range d {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// column returns the parts of a metric.
func column(docs []Parts, name string) (out []Part) {
	for _, d := range docs {
		if p, ok := d[name]; ok {
			out = append(out, p)
		}
	}
	return out
}

func added(a, b Part) Part { return Part{a.Num + b.Num, a.Den + b.Den} }

func sum(parts []Part) (s Part) {
	for _, p := range parts {
		s = added(s, p)
	}
	return s
}

// value returns the value of a metric.
func value(name string, s Part) float64 {
	if s.Den == 0 {
		return 0
	}
	if strings.HasSuffix(name, "perplexity") {
		return math.Exp(s.Num / s.Den)
	}
	return s.Num / s.Den
}

// spread returns the standard deviation and the 2.5th and 97.5th percentile.
func spread(x []float64) (std, low, high float64) {
	slices.Sort(x)
	mean := 0.0
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		std += (v - mean) * (v - mean) / float64(len(x)-1)
	}
	at := func(q float64) float64 { return x[int(q*float64(len(x)-1)+0.5)] }
	return math.Sqrt(std), at(0.025), at(0.975)
}

// below returns a random number below n that depends on the keys only.
func below(n uint64, seed, a, b uint64) uint64 {
	high, _ := bits.Mul64(mix(seed^mix(a<<32|b)), n)
	return high
}

// mix is SplitMix64's finalizer (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
