package kerneltest

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// choice is a number of rows and experts.
type choice struct{ rows, e, top int }

func (c choice) String() string {
	return fmt.Sprintf("%d rows to %d of %d experts", c.rows, c.top, c.e)
}

// choices have fewer and more entries than experts, experts without rows, and groups of more rows than tiles have.
var choices = []choice{{1, 7, 2}, {5, 4, 2}, {9, 3, 3}, {24, 5, 4}, {70, 2, 1}, {3, 130, 5}}

// routed compares the choice of experts on the device, and the products of all experts together, with Route and the
// products of each expert alone: they have the same bits.
func routed(t *testing.T, s Set, router kernel.ExpertRouter[float32]) {
	for _, d := range []tensor.DType{tensor.F32, tensor.Q8_0} {
		for _, c := range choices {
			sameAsAlone(t, s, router, d, c)
		}
	}
	for _, d := range append([]tensor.DType{tensor.F16, tensor.BF16}, blockTypes...) {
		sameAsAlone(t, s, router, d, choices[1])
	}
}

// matricesOf returns a matrix of every expert and their biases. Those of F32 are dense.
func matricesOf(s Set, seed uint64, d tensor.DType, e, n, k int, biased bool) kernel.ExpertMatrices[float32] {
	var out kernel.ExpertMatrices[float32]
	for i := range e {
		seed := seed + 100*uint64(i)
		m := kernel.Matrix[float32]{Rows: n, Cols: k}
		if d == tensor.F32 {
			m.Dense = upload(s, source(seed)(n*k))
		} else {
			m = raw(seed, d, n, k)
			s.Pack(&m)
		}
		out.W = append(out.W, &m)
		if biased {
			out.Bias = append(out.Bias, upload(s, source(seed+1)(n)))
		}
	}
	return out
}

func sameBits(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }

func sameAsAlone(t *testing.T, s Set, router kernel.ExpertRouter[float32], d tensor.DType, c choice) {
	const n, other = 21, 5
	k := max(64, d.BlockLen())
	in := source(uint64(c.rows))
	logits, x := in(c.rows*c.e), in(c.rows*k)
	logits[c.e-1] = logits[0] // a tie, perhaps
	plain, biased := matricesOf(s, 1, d, c.e, n, k, false), matricesOf(s, 2, d, c.e, other, k, true)
	if !router.Routes(c.rows, c.top, &plain, &biased) {
		t.Errorf("%v: the set routes no rows by its own matrices", d)
		return
	}
	for _, normalize := range []bool{false, true} {
		total := c.rows * c.top
		dispatched, first, second, y := s.Alloc(total*k), s.Alloc(total*n), s.Alloc(total*other), s.Alloc(c.rows*n)
		probs, weight := upload(s, logits), s.Alloc(total)
		r := s.Route(weight, probs, c.rows, c.e, c.top, normalize)
		s.Dispatch(dispatched, upload(s, x), &r, k)
		for e := range c.e {
			lo, hi := r.Bounds[e], r.Bounds[e+1]
			if lo == hi {
				continue
			}
			s.MatMuls(dispatched[lo*k:hi*k], hi-lo, kernel.Product[float32]{Y: first[lo*n : hi*n], W: plain.W[e]},
				kernel.Product[float32]{Y: second[lo*other : hi*other], W: biased.W[e], Bias: biased.Bias[e]})
			s.Combine(y, first[lo*n:hi*n], &r, lo, hi, n)
		}
		want := results(s, probs, dispatched, first, second, y)

		dispatched, first, second = s.Alloc(total*k), s.Alloc(total*n), s.Alloc(total*other)
		probs, y = upload(s, logits), upload(s, in(c.rows*n))
		lists := s.Alloc(router.RoutedLists(c.rows, c.e, c.top))
		on := router.RouteRows(weight, lists, probs, c.rows, c.e, c.top, normalize)
		router.DispatchRows(dispatched, upload(s, x), &on, k)
		router.ExpertMatMuls(dispatched, &on, kernel.RoutedProduct[float32]{Y: first, W: &plain},
			kernel.RoutedProduct[float32]{Y: second, W: &biased})
		router.CombineRows(y, first, &on, n)
		for i, got := range results(s, probs, dispatched, first, second, y) {
			if !slices.EqualFunc(got, want[i], sameBits) {
				t.Errorf("%v, %v: result %d has other bits", d, c, i)
			}
		}
	}
}
