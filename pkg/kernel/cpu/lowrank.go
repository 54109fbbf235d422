package cpu

import "github.com/lamina-mesh/lamina/pkg/kernel"

// LowRanks computes the products of many adapters in two loops over the pool: all x·Aᵀ, then all u·Bᵀ, each of whose
// blocks is added to y while it is in the cache. One product alone is too small for two threads, and a step has
// hundreds.
func (s *Set) LowRanks(products []kernel.LowRank[float32]) {
	up, down := make([]gemmCall, 0, len(products)), make([]gemmCall, 0, len(products))
	for i := range products {
		p := &products[i]
		t, in, rank, out := p.Rows, p.A.Cols, p.A.Rows, p.B.Rows
		must("low rank", "x", len(p.X), t*in)
		must("low rank", "u", len(p.U), t*rank)
		must("low rank", "v", len(p.V), t*out)
		must("low rank", "y", len(p.Y), t*out)
		must("low rank", "columns of B", p.B.Cols, rank)
		if t == 0 {
			continue
		}
		up = append(up, gemmCall{c: p.U, ldc: rank, a: rowsOf(p.X, in), b: rowsOf(p.A.Dense, in), m: t, n: rank, k: in})
		down = append(down, gemmCall{c: p.V, ldc: out, a: rowsOf(p.U, rank), b: rowsOf(p.B.Dense, rank), m: t, n: out,
			k: rank, sum: p.Y})
	}
	groups := make([][]gemmCall, len(up))
	for i := range up {
		groups[i] = up[i : i+1]
	}
	s.multiply(s.dense, groups...)
	for i := range products {
		s.Scale(products[i].U, products[i].Scale)
	}
	for i := range down {
		groups[i] = down[i : i+1]
	}
	s.multiply(s.dense, groups...)
}
