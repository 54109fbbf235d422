package kvcache_test

import (
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
)

// TestCache_RandomOperations reserves, writes, truncates and frees at random, and compares every view with a record of
// what was written.
func TestCache_RandomOperations(t *testing.T) {
	const layers, width = 2, 3
	c := kvcache.New(kvcache.Config{Layers: layers, KVHeads: 1, HeadDim: width, PageLen: 4, Pages: 10},
		kernel.HostOps[float64]{})
	r := rand.New(rand.NewPCG(1, 2))
	seqs := make([]*kvcache.Sequence[float64], 4)
	want := make([][]float64, len(seqs)) // by sequence and position: the mark written there
	for i := range seqs {
		seqs[i] = c.NewSequence()
	}
	mark, rejected := 0.0, 0
	for range 4000 {
		i := r.IntN(len(seqs))
		s := seqs[i]
		switch r.IntN(8) {
		case 0:
			s.Free()
			want[i] = nil
		case 1:
			n := r.IntN(s.Len() + 2)
			s.Truncate(n)
			want[i] = want[i][:min(n, len(want[i]))]
		default:
			pos, rows := r.IntN(s.Len()+1), 1+r.IntN(9)
			if err := s.Reserve(pos + rows); err != nil {
				rejected++
				break
			}
			want[i] = want[i][:pos]
			s.Truncate(pos)
			if err := s.Reserve(pos + rows); err != nil {
				t.Fatalf("reserving pages that were just released: %v", err)
			}
			for range rows {
				mark++
				want[i] = append(want[i], mark)
			}
			for l := range layers {
				k, v := make([]float64, rows*width), make([]float64, rows*width)
				for e := range k {
					k[e] = want[i][pos+e/width] + float64(l)/8
					v[e] = -k[e]
				}
				s.View(l).Write(pos, k, v, 1, width)
			}
			s.Extend(pos + rows)
		}
		if s.Len() != len(want[i]) {
			t.Fatalf("sequence %d holds %d positions, want %d", i, s.Len(), len(want[i]))
		}
		for j, s := range seqs {
			for l := range layers {
				view := s.View(l)
				for pos, m := range want[j] {
					k, v := view.Page(pos / 4).Keys[4+pos%4], view.Page(pos / 4).Values[pos%4*width+1]
					if k != m+float64(l)/8 || v != -k {
						t.Fatalf("sequence %d layer %d position %d holds %g and %g, want %g", j, l, pos, k, v,
							m+float64(l)/8)
					}
				}
			}
		}
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
	}
	if rejected == 0 {
		t.Error("the cache was never full, so the test did not cover rejection")
	}
	for _, s := range seqs {
		s.Free()
		s.Free() // freeing twice is allowed
	}
	if c.Used() != 0 || c.Available() != 10 || c.PagesFor(5) != 2 {
		t.Errorf("after all sequences were freed: %d pages are used, %d available; 5 positions take %d", c.Used(),
			c.Available(), c.PagesFor(5))
	}
}
