package corpus

import (
	"fmt"
	"math"
	"sort"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// block is the number of samples in which every part with a weight has its share exactly.
const block = 4096

// Part is a set of samples in a mixture.
type Part struct {
	Samples int64   // at least 1
	Weight  float64 // its share is Weight divided by the sum of all; either all parts have one, or none
	// Epochs is how often the samples may be read at most; 0 is without a bound, and once in a pass of a
	// mixture without weights.
	Epochs float64
}

// Place is a sample of a mixture.
type Place struct {
	Part   int
	Epoch  int64 // how often all samples of the part have been read before
	Sample int64 // of the part
}

// Mixture is an order of the samples of several parts. Sample number n is a function of the seed and n.
//
// Without weights, a pass is a permutation of all samples of all parts, each as often as its epochs say. With
// weights, every block of 4096 samples has a fixed number of each part, in a permuted order. In both cases the
// samples of a part are counted, and count k is sample k modulo the part's size in the order of an epoch, so an
// epoch has each sample once.
type Mixture struct {
	seed    uint64
	parts   []Part
	share   []int64 // of each part: samples in a pass or a block
	before  []int64 // shares of the parts before
	pass    int64   // samples of a pass or a block
	weights bool
}

// NewMixture checks the parts. Errors name the field of a part as data.tokens[i].
func NewMixture(seed uint64, parts []Part) (*Mixture, error) {
	m := &Mixture{seed: seed, parts: parts}
	var sum float64
	for i, p := range parts {
		if p.Samples < 1 {
			return nil, field(i, "path", "it has no samples")
		}
		if !(p.Weight >= 0 && p.Weight <= 1e9) {
			return nil, field(i, "weight", "%v is not within 0..1e9", p.Weight)
		}
		if !(p.Epochs >= 0 && p.Epochs <= 1e6) {
			return nil, field(i, "epochs", "%v is not within 0..1e6", p.Epochs)
		}
		if (p.Weight > 0) != (parts[0].Weight > 0) {
			return nil, field(i, "weight", "give all parts a weight, or none")
		}
		sum += p.Weight
	}
	if len(parts) == 0 {
		return nil, fault.Field("data.tokens", "want one or more folders")
	}
	if m.weights = sum > 0; m.weights {
		return m, m.divide(sum)
	}
	for i, p := range parts {
		epochs := p.Epochs
		if epochs == 0 {
			epochs = 1
		}
		n := math.Round(epochs * float64(p.Samples))
		if n < 1 || n > maxTokens {
			return nil, field(i, "epochs", "%v epochs of %d samples", p.Epochs, p.Samples)
		}
		m.add(int64(n))
	}
	return m, nil
}

func (m *Mixture) add(share int64) {
	m.share, m.before = append(m.share, share), append(m.before, m.pass)
	m.pass += share
}

// divide divides a block by weights. What rounding down leaves over goes to the largest remainders.
func (m *Mixture) divide(sum float64) error {
	shares, left := make([]int64, len(m.parts)), int64(block)
	order := make([]int, len(m.parts))
	rest := make([]float64, len(m.parts))
	for i, p := range m.parts {
		exact := p.Weight / sum * block
		shares[i], order[i] = int64(exact), i
		rest[i] = exact - float64(shares[i])
		left -= shares[i]
	}
	sort.SliceStable(order, func(a, b int) bool { return rest[order[a]] > rest[order[b]] })
	for k := range left {
		shares[order[int(k)%len(order)]]++
	}
	for i, n := range shares {
		if n == 0 {
			return field(i, "weight", "%v of %v is less than one sample in %d", m.parts[i].Weight, sum, block)
		}
		m.add(n)
	}
	return nil
}

func field(i int, name, format string, args ...any) error {
	return fault.Field(fmt.Sprintf("data.tokens[%d].%s", i, name), format, args...)
}

// Check reports whether a run of n samples reads no part more often than its epochs allow.
func (m *Mixture) Check(n int64) error {
	for i, p := range m.parts {
		need := float64(n) / float64(m.pass) * float64(m.share[i]) / float64(p.Samples)
		if p.Epochs > 0 && need > p.Epochs*(1+1e-9) {
			return field(i, "epochs", "the run's %d sequences read it %.2f times, more than %v", n, need, p.Epochs)
		}
	}
	return nil
}

// At returns sample number n, from 0.
func (m *Mixture) At(n int64) Place {
	pass := n / m.pass
	order := NewPermutation(m.pass, keyOf(m.seed, 1, uint64(pass)))
	u := order.At(n % m.pass)
	i := sort.Search(len(m.before), func(k int) bool { return m.before[k] > u }) - 1
	// count numbers the samples of this part over all passes.
	count := pass*m.share[i] + u - m.before[i]
	epoch := count / m.parts[i].Samples
	inner := NewPermutation(m.parts[i].Samples, keyOf(m.seed, 2, uint64(i), uint64(epoch)))
	return Place{Part: i, Epoch: epoch, Sample: inner.At(count % m.parts[i].Samples)}
}
