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

// TestSet_LowRanksTogetherAndApart compares the bits of low-rank products that are computed together, with packed
// factors or not, with those of one after another, over any number of threads and with all instructions, and the
// values with those of the reference.
func TestSet_LowRanksTogetherAndApart(t *testing.T) {
	cases := []lowRankCase{
		{[]int{1}, []int{8}, 64, 64},
		{[]int{13, 12, 13, 13}, []int{8, 16}, 576, 1536},
		{[]int{1, 0, 5, 30, 2}, []int{1, 7, 33, 64}, 200, 37},
		{[]int{40, 1}, []int{16}, 1536, 576},
		{[]int{1}, []int{64}, 1536, 1000},
		{[]int{130, 49}, []int{32, 3}, 300, 521},
		{nil, []int{1}, 8, 8},
	}
	for _, instructions := range cpu.Instructions() {
		for _, threads := range []int{1, 2, 3} {
			set, err := cpu.Open(threads, instructions)
			if err != nil {
				t.Fatal(err)
			}
			for _, tc := range cases {
				for _, s := range []*cpu.Set{set, set.BFloat16().(*cpu.Set)} {
					t.Run(fmt.Sprintf("%s/%d threads/%+v/bfloat16 %v", instructions, threads, tc, s.UsesBFloat16()),
						func(t *testing.T) { tc.run(t, s) })
				}
			}
			set.Close()
		}
	}
}

// lowRankCase is products of a number of rows each, whose ranks alternate.
type lowRankCase struct {
	rows, ranks []int
	in, out     int
}

func (tc *lowRankCase) run(t *testing.T, s *cpu.Set) {
	products := func() []kernel.LowRank[float32] { return lowRanks(1, tc.rows, tc.ranks, tc.in, tc.out) }
	together, packed, apart, want := products(), products(), products(), products()
	kernel.AddLowRanks[float32](s, together)
	kernel.AddLowRanks[float32](struct{ kernel.Set[float32] }{s}, apart) // hides LowRanks
	kernel.AddLowRanks[float32](ref.New[float32](), want)
	for i := range packed {
		s.PackLowRank(packed[i].A, packed[i].B)
		if (packed[i].A.Dense == nil) == s.UsesBFloat16() {
			t.Fatalf("product %d: packed %v", i, packed[i].A.Dense == nil)
		}
	}
	kernel.AddLowRanks[float32](s, packed)
	for i := range together {
		for j, v := range together[i].Y {
			if math.Float32bits(v) != math.Float32bits(apart[i].Y[j]) {
				t.Fatalf("product %d, element %d is %v together, %v apart", i, j, v, apart[i].Y[j])
			}
			if p := packed[i].Y[j]; math.Float32bits(v) != math.Float32bits(p) {
				t.Fatalf("product %d, element %d is %v, but %v with packed factors", i, j, v, p)
			}
			d := math.Abs(float64(v - want[i].Y[j]))
			if !s.UsesBFloat16() && d > 1e-3*(1+math.Abs(float64(v))) {
				t.Fatalf("product %d, element %d is %v, want %v", i, j, v, want[i].Y[j])
			}
		}
	}
}

// BenchmarkSet_LowRanks measures the products of 64 rows over the base and four adapters with queries, keys and values
// of a small model.
func BenchmarkSet_LowRanks(b *testing.B) {
	for _, pack := range []bool{false, true} {
		b.Run(fmt.Sprintf("packed %v", pack), func(b *testing.B) {
			set := cpu.New(2)
			defer set.Close()
			var products []kernel.LowRank[float32]
			for range 3 {
				products = append(products, lowRanks(1, []int{13, 13, 13, 12}, []int{8, 16}, 576, 576)...)
			}
			for i := range products {
				if pack {
					set.PackLowRank(products[i].A, products[i].B)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				set.LowRanks(products)
			}
		})
	}
}
