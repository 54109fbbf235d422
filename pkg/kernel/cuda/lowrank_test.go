package cuda_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// lowFactors are the factors of an adapter of a matrix, and what its rows hold.
type lowFactors struct {
	rows, in, rank, out int
	x, y, a, b          []float32
}

// lowCase returns products of some rows each, over three widths of y, as if of three matrices.
func lowCase(rows, ranks []int, in int, outs []int) (all []lowFactors) {
	for i, t := range rows {
		for j, out := range outs {
			seed, rank := uint64(10*i+j), ranks[(i+j)%len(ranks)]
			all = append(all, lowFactors{t, in, rank, out, normal(seed, t*in), normal(seed+100, t*out),
				normal(seed+200, rank*in), normal(seed+300, out*rank)})
		}
	}
	return all
}

// put copies products to a set. U and V are left out unless scratch is set.
func putLows(s kernel.Set[float32], all []lowFactors, scratch bool) (out []kernel.LowRank[float32]) {
	for i := range all {
		f := &all[i]
		p := kernel.LowRank[float32]{X: s.FromHost(f.x), Y: s.FromHost(slices.Clone(f.y)), Rows: f.rows,
			Scale: 0.75 + float64(i)/7,
			A:     &kernel.Matrix[float32]{Rows: f.rank, Cols: f.in, Dense: s.FromHost(f.a)},
			B:     &kernel.Matrix[float32]{Rows: f.out, Cols: f.rank, Dense: s.FromHost(f.b)}}
		if scratch {
			p.U, p.V = s.Alloc(f.rows*f.rank), s.Alloc(f.rows*f.out)
		}
		out = append(out, p)
	}
	return out
}

// Low-rank products have the bits of MatMul, Scale, MatMul and Add, together, in any order, and each row alone, and the
// values of the reference.
func TestLowRanks_TogetherApartAndAlone(t *testing.T) {
	for _, c := range []struct {
		rows, ranks []int
		in          int
		outs        []int
	}{
		{[]int{1}, []int{8}, 64, []int{64}},
		{[]int{1, 0, 5, 17, 2}, []int{1, 7, 33}, 100, []int{37, 130}},
		{[]int{33, 1}, []int{16, 40}, 136, []int{64, 16, 72}},
		{[]int{1, 1, 1}, []int{3, 20}, 1, []int{5}},
		{nil, nil, 8, []int{8}},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			s, host := open(t, 0), ref.New[float32]()
			all := lowCase(c.rows, c.ranks, c.in, c.outs)
			apart, together, back := putLows(s, all, true), putLows(s, all, false), putLows(s, all, false)
			kernel.AddEachLowRank[float32](s, apart)
			s.PackLowRank(nil)
			kernel.AddLowRanks[float32](s, together)
			for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
				back[i], back[j] = back[j], back[i]
			}
			s.LowRanks(back)
			want := putLows(host, all, true)
			kernel.AddEachLowRank[float32](host, want)
			for i, f := range all {
				bits := s.Host(apart[i].Y)
				equal(t, fmt.Sprintf("product %d together", i), s.Host(together[i].Y), bits)
				equal(t, fmt.Sprintf("product %d backwards", i), s.Host(back[len(back)-1-i].Y), bits)
				near(t, fmt.Sprintf("product %d", i), bits, want[i].Y, 2e-5)
				if f.rows == 0 {
					continue
				}
				one := together[i] // the last row, again, over the y that there was
				from := f.y[(f.rows-1)*f.out:]
				one.X, one.Y, one.Rows = one.X[(f.rows-1)*f.in:], s.FromHost(from), 1
				s.LowRanks([]kernel.LowRank[float32]{one})
				equal(t, fmt.Sprintf("the last row of product %d", i), s.Host(one.Y), bits[(f.rows-1)*f.out:])
			}
		})
	}
}

// A sum that underflows is -0 unless a zero of the padding is added to it, and -0 stays while zeros of that sign are
// added. Both halves pad as the products of dense matrices do.
func TestLowRanks_SignsOfZero(t *testing.T) {
	s, zero := open(t, 0), float32(math.Copysign(0, -1))
	for _, c := range []struct {
		in, rank int
		negative bool
	}{{48, 16, true}, {50, 16, false}, {48, 24, false}, {50, 24, false}} {
		f := lowFactors{rows: 1, in: c.in, rank: c.rank, out: 1, x: make([]float32, c.in), y: []float32{zero},
			a: make([]float32, c.rank*c.in), b: make([]float32, c.rank)}
		for i := range f.x {
			f.x[i] = 1e-30
		}
		for i := range f.a {
			if f.a[i] = -1e-30; i < c.in { // the first of u is small, and the others are -0, or 0 if they are padded
				f.a[i] = 1
			}
		}
		for i := range f.b {
			if f.b[i] = 1; i == 0 {
				f.b[i] = -1e-30 // v becomes -0
			}
		}
		apart, together := putLows(s, []lowFactors{f}, true), putLows(s, []lowFactors{f}, false)
		kernel.AddEachLowRank[float32](s, apart)
		s.LowRanks(together)
		got, want := s.Host(together[0].Y)[0], s.Host(apart[0].Y)[0]
		if got != 0 || math.Signbit(float64(got)) != c.negative || math.Signbit(float64(want)) != c.negative {
			t.Errorf("%+v: %v together and %v apart", c, got, want)
		}
	}
}

// A set whose products round to bfloat16 gives the bits of its own operations.
func TestLowRanks_InBFloat16(t *testing.T) {
	s := open(t, 0)
	half := s.BFloat16().(*cuda.Set)
	all := lowCase([]int{2, 3}, []int{5}, 40, []int{20})
	apart, together := putLows(half, all, true), putLows(half, all, true)
	kernel.AddEachLowRank[float32](half, apart)
	half.LowRanks(together)
	plain := putLows(s, all, false)
	s.LowRanks(plain)
	for i := range all {
		equal(t, fmt.Sprintf("product %d", i), half.Host(together[i].Y), half.Host(apart[i].Y))
	}
	if s.LowScratch() || !half.LowScratch() || half.Host(together[0].Y)[0] == s.Host(plain[0].Y)[0] {
		t.Error("bfloat16 makes no difference")
	}
}

// Factors of the host, or of other shapes than they say, are refused before anything runs.
func TestLowRanks_RefusesWhatDoesNotFit(t *testing.T) {
	s := open(t, 0)
	all := lowCase([]int{2}, []int{5}, 40, []int{20})
	for name, change := range map[string]func(p *kernel.LowRank[float32]){
		"low rank: x has 79 elements, want 80":   func(p *kernel.LowRank[float32]) { p.X = p.X[1:] },
		"low rank: y has 39 elements, want 40":   func(p *kernel.LowRank[float32]) { p.Y = p.Y[1:] },
		"low rank: A has 199 elements, want 200": func(p *kernel.LowRank[float32]) { p.A.Dense = p.A.Dense[1:] },
		"low rank: B has 99 elements, want 100":  func(p *kernel.LowRank[float32]) { p.B.Dense = p.B.Dense[1:] },
		"low rank: columns of B has 4 elements": func(p *kernel.LowRank[float32]) {
			p.B.Rows, p.B.Cols, p.Y = 25, 4, s.Alloc(50)
		},
		"low rank: a buffer of 100 elements is not": func(p *kernel.LowRank[float32]) {
			p.B.Dense = make([]float32, 100)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := putLows(s, all, false)
			change(&p[0])
			defer func() {
				if got := fmt.Sprint(recover()); len(got) < len(name) || got[:len(name)] != name {
					t.Errorf("the panic is %s", got)
				}
			}()
			s.LowRanks(p)
		})
	}
}
