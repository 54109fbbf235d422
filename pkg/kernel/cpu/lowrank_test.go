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
		s.PackLowRank([][]kernel.Factors[float32]{{{A: packed[i].A, B: packed[i].B}}})
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

// lowTargets returns the products of adapters, one for each of rows, that have some matrices each, of widths outs, for
// one x. With fused the matrices of an adapter share A.
func lowTargets(rows, ranks []int, in int, outs []int, fused bool) (products []kernel.LowRank[float32]) {
	for i := range rows {
		for j, out := range outs {
			p := lowRanks(uint64(10*i+j), rows[i:i+1], ranks[(i+j)%len(ranks):], in, out)[0]
			if j > 0 {
				first := &products[len(products)-j]
				if p.X = first.X; fused {
					rank := first.A.Rows
					p.A = &kernel.Matrix[float32]{Rows: rank, Cols: in, Dense: first.A.Dense}
					p.B = &kernel.Matrix[float32]{Rows: out, Cols: rank, Dense: make([]float32, out*rank)}
					for k := range p.B.Dense {
						p.B.Dense[k] = float32(k%7) - 3.1
					}
					p.U, p.Scale = make([]float32, rows[i]*rank), first.Scale
				}
			}
			products = append(products, p)
		}
	}
	return products
}

// packTargets packs the factors of products in groups of n.
func packTargets(s *cpu.Set, products []kernel.LowRank[float32], n int) {
	var groups [][]kernel.Factors[float32]
	for i := range products {
		if i%n == 0 {
			groups = append(groups, nil)
		}
		last := &groups[len(groups)-1]
		*last = append(*last, kernel.Factors[float32]{A: products[i].A, B: products[i].B})
	}
	s.PackLowRank(groups)
}

// TestSet_LowRanksOfOneInput compares the bits of products whose A are packed side by side with those of products that
// are computed one after another: all at once, without the first of each adapter, and in the wrong order. A row has
// the same bits alone.
func TestSet_LowRanksOfOneInput(t *testing.T) {
	outs := []int{64, 37, 530}
	for _, instructions := range cpu.Instructions() {
		for _, threads := range []int{1, 2, 3} {
			set, err := cpu.Open(threads, instructions)
			if err != nil {
				t.Fatal(err)
			}
			defer set.Close()
			for _, rows := range [][]int{{1}, {13, 12, 1, 14}, {60, 3}} {
				for _, ranks := range [][]int{{8, 8, 8, 8}, {1, 17, 16, 8}, {40, 24, 7, 33}} {
					for _, fused := range []bool{false, true} {
						made := func() []kernel.LowRank[float32] { return lowTargets(rows, ranks, 200, outs, fused) }
						want, packed := made(), made()
						kernel.AddLowRanks[float32](struct{ kernel.Set[float32] }{set}, want) // hides LowRanks
						packTargets(set, packed, len(outs))
						name := fmt.Sprintf("%s, %d threads, rows %v, ranks %v, fused %v", instructions, threads, rows,
							ranks, fused)
						for order, list := range lowOrders(packed, len(outs)) {
							fresh := made()
							for i := range packed {
								copy(packed[i].Y, fresh[i].Y)
							}
							set.LowRanks(list)
							for _, p := range list {
								sameLow(t, name+", "+order, &p, packed, want)
							}
						}
						oneRow(t, name, set, made(), packed, want)
					}
				}
			}
		}
	}
}

// lowOrders returns lists of products of which each n are of one adapter.
func lowOrders(all []kernel.LowRank[float32], n int) map[string][]kernel.LowRank[float32] {
	out := map[string][]kernel.LowRank[float32]{"in order": all}
	for i := range all {
		if i%n > 0 {
			out["without the first"] = append(out["without the first"], all[i])
		}
		out["backwards"] = append(out["backwards"], all[len(all)-1-i])
	}
	return out
}

// sameLow compares a product of a list with the one that is wanted.
func sameLow(t *testing.T, name string, p *kernel.LowRank[float32], list, want []kernel.LowRank[float32]) {
	t.Helper()
	for i := range list {
		for j := range list[i].Y {
			if &list[i].Y[0] == &p.Y[0] && math.Float32bits(p.Y[j]) != math.Float32bits(want[i].Y[j]) {
				t.Fatalf("%s: product %d, element %d is %v, want %v", name, i, j, p.Y[j], want[i].Y[j])
			}
		}
	}
}

// oneRow computes the last row of each product alone, with the factors of packed.
func oneRow(t *testing.T, name string, set *cpu.Set, alone, packed, want []kernel.LowRank[float32]) {
	t.Helper()
	for i := range alone {
		p, in, out := alone[i], packed[i].A.Cols, packed[i].B.Rows
		p.A, p.B = packed[i].A, packed[i].B
		p.X, p.Y, p.Rows = p.X[len(p.X)-in:], p.Y[len(p.Y)-out:], 1
		p.U, p.V = make([]float32, p.A.Rows), p.V[:out]
		set.LowRanks([]kernel.LowRank[float32]{p})
		for j, v := range want[i].Y[len(want[i].Y)-out:] {
			if math.Float32bits(p.Y[j]) != math.Float32bits(v) {
				t.Fatalf("%s: the last row of product %d, element %d is %v alone, want %v", name, i, j, p.Y[j], v)
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
					set.PackLowRank([][]kernel.Factors[float32]{{{A: products[i].A, B: products[i].B}}})
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				set.LowRanks(products)
			}
		})
	}
}
