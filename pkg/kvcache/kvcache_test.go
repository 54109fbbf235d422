package kvcache_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
)

func TestSequence_ReadsBackWhatItWrote(t *testing.T) {
	c := kvcache.New(kvcache.Config{Layers: 2, KVHeads: 1, HeadDim: 2, PageLen: 4, Pages: 5}, kernel.HostOps[float32]{})
	s := c.NewSequence()
	if err := s.Reserve(10); err != nil {
		t.Fatal(err)
	}
	k, v := make([]float32, 20), make([]float32, 20)
	for i := range k {
		k[i], v[i] = float32(i), float32(-i)
	}
	s.View(1).Write(0, k[:6], v[:6], 1, 2) // positions 0..2
	s.View(1).Write(3, k[6:], v[6:], 1, 2) // positions 3..9, across two page boundaries
	s.Extend(10)
	view := s.View(1)
	for pos := range 10 {
		for d := range 2 {
			if got := view.Page(pos / 4).Keys[d*4+pos%4]; got != k[2*pos+d] {
				t.Errorf("key of position %d is %v, want %v", pos, got, k[2*pos+d])
			}
			if got := view.Page(pos / 4).Values[pos%4*2+d]; got != v[2*pos+d] {
				t.Errorf("value of position %d is %v, want %v", pos, got, v[2*pos+d])
			}
		}
	}
	s.Truncate(4)
	if c.Used() != 1 || s.Len() != 4 {
		t.Errorf("after truncation to 4: %d pages, %d positions", c.Used(), s.Len())
	}
	s.Free()
	if err := c.Check(); err != nil || c.Used() != 0 {
		t.Errorf("after free: %d pages used, %v", c.Used(), err)
	}
}

func TestSequence_FullCacheRejectsReservations(t *testing.T) {
	c := kvcache.New(kvcache.Config{Layers: 1, KVHeads: 1, HeadDim: 1, PageLen: 4, Pages: 3}, kernel.HostOps[float32]{})
	a, b := c.NewSequence(), c.NewSequence()
	if err := a.Reserve(8); err != nil {
		t.Fatal(err)
	}
	if err := b.Reserve(8); fault.CodeOf(err) != fault.Exhausted {
		t.Fatalf("reserving beyond the limit: %v", err)
	}
	if c.Used() != 2 {
		t.Errorf("a rejected reservation took pages: %d are used", c.Used())
	}
	a.Free()
	if err := b.Reserve(12); err != nil {
		t.Errorf("after a free: %v", err)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

func TestCache_TrimReleasesUnusedPages(t *testing.T) {
	c := kvcache.New(kvcache.Config{Layers: 1, KVHeads: 1, HeadDim: 1, PageLen: 4, Pages: 100},
		kernel.HostOps[float32]{})
	steady, burst := c.NewSequence(), c.NewSequence()
	for _, err := range []error{steady.Reserve(8), burst.Reserve(4 * 90)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	burst.Free()
	wantMade := func(made int) {
		t.Helper()
		if c.Made() != made {
			t.Errorf("%d pages have memory, want %d", c.Made(), made)
		}
		if err := c.Check(); err != nil {
			t.Error(err)
		}
	}
	wantMade(92)
	c.Trim() // the burst was in the interval that ends here
	wantMade(92)
	if err := burst.Reserve(12); err != nil {
		t.Fatal(err)
	}
	burst.Free()
	c.Trim()
	wantMade(5) // two in use, and three that were used in the interval
	steady.Free()
	c.Trim()
	wantMade(2) // the two that were freed in the interval
	c.Trim()
	wantMade(0)
	if err := steady.Reserve(400); err != nil || c.Available() != 0 {
		t.Errorf("after trimming: %v, %d pages are available", err, c.Available())
	}
}
