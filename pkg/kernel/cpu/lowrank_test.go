package cpu_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// lowRanks returns low-rank products of random values, one for each of rows.
func lowRanks(seed uint64, rows []int, ranks []int, in, out int) []kernel.LowRank[float32] {
	r := rand.New(rand.NewPCG(seed, 21))
	random := func(n int) kernel.Buffer[float32] {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	var products []kernel.LowRank[float32]
	for i, t := range rows {
		rank := ranks[i%len(ranks)]
		products = append(products, kernel.LowRank[float32]{
			Y: random(t * out), X: random(t * in), U: random(t * rank), V: random(t * out),
			A:     &kernel.Matrix[float32]{Rows: rank, Cols: in, Dense: random(rank * in)},
			B:     &kernel.Matrix[float32]{Rows: out, Cols: rank, Dense: random(out * rank)},
			Scale: 0.5 + r.Float64(), Rows: t,
		})
	}
	return products
}

// TestSet_LowRanksTogetherAndApart compares the bits of low-rank products that are computed together with those of one
// after another, over any number of threads, and the values with those of the reference.
func TestSet_LowRanksTogetherAndApart(t *testing.T) {
	for _, threads := range []int{1, 2, 3} {
		set := cpu.New(threads)
		for _, tc := range []struct {
			rows, ranks []int
			in, out     int
		}{
			{[]int{1}, []int{8}, 64, 64},
			{[]int{13, 12, 13, 13}, []int{8, 16}, 576, 1536},
			{[]int{1, 0, 5, 30, 2}, []int{1, 7, 33, 64}, 200, 37},
			{[]int{40, 1}, []int{16}, 1536, 576},
			{nil, []int{1}, 8, 8},
		} {
			for _, s := range []kernel.Set[float32]{set, set.BFloat16()} {
				name := fmt.Sprintf("%d threads, %+v, bfloat16 %v", threads, tc, s.UsesBFloat16())
				together := lowRanks(1, tc.rows, tc.ranks, tc.in, tc.out)
				apart := lowRanks(1, tc.rows, tc.ranks, tc.in, tc.out)
				want := lowRanks(1, tc.rows, tc.ranks, tc.in, tc.out)
				kernel.AddLowRanks(s, together)
				kernel.AddLowRanks[float32](struct{ kernel.Set[float32] }{s}, apart) // hides LowRanks
				kernel.AddLowRanks[float32](ref.New[float32](), want)
				for i := range together {
					for j, v := range together[i].Y {
						if math.Float32bits(v) != math.Float32bits(apart[i].Y[j]) {
							t.Fatalf("%s: product %d, element %d is %v together, %v apart", name, i, j, v, apart[i].Y[j])
						}
						d := math.Abs(float64(v - want[i].Y[j]))
						if !s.UsesBFloat16() && d > 1e-3*(1+math.Abs(float64(v))) {
							t.Fatalf("%s: product %d, element %d is %v, want %v", name, i, j, v, want[i].Y[j])
						}
					}
				}
			}
		}
		set.Close()
	}
}
