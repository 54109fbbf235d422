package kvcache

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Sequence is a sequence that reserves its own pages from the cache. It serves programs that have a
// cache to themselves, such as benchmarks; in a pipeline the router's scheduler assigns pages, and
// sequences are Tables.
type Sequence[F tensor.Float] struct {
	cache *Cache[F]
	pages []*page[F]
	view  view[F]
	len   int
}

// NewSequence returns an empty sequence.
func (c *Cache[F]) NewSequence() *Sequence[F] { return &Sequence[F]{cache: c} }

// Len is the number of positions that hold keys and values.
func (s *Sequence[F]) Len() int { return s.len }

// Reserve makes room for positions 0..n-1, or changes nothing and returns an
// Exhausted fault.
func (s *Sequence[F]) Reserve(n int) error {
	missing := s.cache.PagesFor(n) - len(s.pages)
	if missing <= 0 {
		return nil
	}
	pages, err := s.cache.take(missing)
	if err != nil {
		return err
	}
	s.pages = append(s.pages, pages...)
	for _, p := range pages {
		s.view = append(s.view, p.layers)
	}
	return nil
}

// Extend says that positions up to n-1 hold keys and values. They must be reserved.
func (s *Sequence[F]) Extend(n int) {
	if n > len(s.pages)*s.cache.cfg.PageLen {
		panic(fmt.Sprintf("extend sequence to %d positions: %d pages are reserved", n, len(s.pages)))
	}
	s.len = max(s.len, n)
}

// Truncate drops the positions from n on and returns the pages that become empty.
func (s *Sequence[F]) Truncate(n int) {
	if n >= s.len {
		return
	}
	s.len = n
	keep := s.cache.PagesFor(n)
	s.cache.give(s.pages[keep:])
	s.pages, s.view = s.pages[:keep], s.view[:keep]
}

// Free returns all pages. The sequence is empty then and may be used again.
func (s *Sequence[F]) Free() {
	s.cache.give(s.pages)
	s.pages, s.view, s.len = nil, nil, 0
}

// View returns a layer's keys and values, for attention. It is valid until the
// sequence's pages change.
func (s *Sequence[F]) View(layer int) kernel.KV[F] { return s.view.layer(s.cache, layer) }

// view lists the memory of a sequence's pages in order: for each page, that of its layers. All layers
// share the list.
type view[F tensor.Float] [][]kernel.KVPage[F]

func (v view[F]) layer(c *Cache[F], layer int) kernel.KV[F] {
	return kernel.KV[F]{Type: c.cfg.Type, PageLen: c.cfg.PageLen, Pages: v, Layer: layer}
}
