// Package kvcache stores the keys and values of live sequences in pages, so that
// memory is handed out by the page and never moved. A Cache belongs to one stage;
// a Sequence is one session's block table in it. Positions are arguments
// everywhere; no method advances a position by itself.
//
// The shard service calls it: it reserves before a batch, writes and views through
// pkg/model while the batch runs, and frees when the session ends. A Cache is safe
// for concurrent use; a Sequence belongs to whoever runs its batch.
package kvcache

import (
	"fmt"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// DefaultPageLen is the number of positions in a page unless Config says otherwise.
const DefaultPageLen = 16

// Config shapes a cache.
type Config struct {
	Layers  int // of the stage
	KVHeads int // K
	HeadDim int // D
	Type    kernel.KVType
	PageLen int // positions in a page; 0 means DefaultPageLen
	Pages   int // the limit
}

// page holds the keys and values of PageLen positions in every layer.
type page[F tensor.Float] struct{ layers []kernel.KVPage[F] }

// Cache is a bounded pool of pages.
type Cache[F tensor.Float] struct {
	cfg    Config
	memory kernel.Memory[F]

	mu   sync.Mutex
	free []*page[F] // made before and given back; the last is taken first
	made int
	used int
	idle int // the first pages of free that nobody has taken since the last Trim
}

// New returns an empty cache. Its pages are in the memory of a kernel set and are allocated when first
// needed.
func New[F tensor.Float](cfg Config, memory kernel.Memory[F]) *Cache[F] {
	if cfg.PageLen == 0 {
		cfg.PageLen = DefaultPageLen
	}
	return &Cache[F]{cfg: cfg, memory: memory}
}

// Config returns the cache's shape.
func (c *Cache[F]) Config() Config { return c.cfg }

// Used returns the number of pages that sequences hold.
func (c *Cache[F]) Used() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// Available returns the number of pages that can still be reserved.
func (c *Cache[F]) Available() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Pages - c.used
}

// PagesFor returns how many pages n positions take.
func (c *Cache[F]) PagesFor(n int) int { return (n + c.cfg.PageLen - 1) / c.cfg.PageLen }

// take returns n pages or, if there are fewer, none.
func (c *Cache[F]) take(n int) ([]*page[F], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used+n > c.cfg.Pages {
		return nil, fault.New(fault.Exhausted, "reserve %d KV pages: %d of %d are in use", n, c.used, c.cfg.Pages)
	}
	out := make([]*page[F], 0, n)
	for range n {
		if last := len(c.free) - 1; last >= 0 {
			out = append(out, c.free[last])
			c.free = c.free[:last]
			c.idle = min(c.idle, last)
			continue
		}
		out = append(out, c.newPage())
		c.made++
	}
	c.used += n
	return out, nil
}

func (c *Cache[F]) newPage() *page[F] {
	size := c.cfg.PageLen * c.cfg.KVHeads * c.cfg.HeadDim
	return &page[F]{c.memory.NewKVPages(c.cfg.Layers, c.cfg.Type, size, c.cfg.HeadDim)}
}

func (c *Cache[F]) give(pages []*page[F]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, pages...)
	c.used -= len(pages)
}

// Trim releases the memory of free pages that no sequence has needed since the last
// Trim. A caller that trims at intervals gives back what a burst of load has taken, and
// keeps what the steady load needs. It returns the number of pages released.
func (c *Cache[F]) Trim() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := make([]*page[F], len(c.free)-c.idle) // a new list: the old one is as long as the burst
	copy(rest, c.free[c.idle:])
	released := c.idle
	c.free, c.made, c.idle = rest, c.made-released, len(rest)
	return released
}

// Made returns the number of pages that have memory, in use or free.
func (c *Cache[F]) Made() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made
}

// Check reports pages that were lost or given back twice. It holds at any time.
func (c *Cache[F]) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[*page[F]]bool, len(c.free))
	for _, p := range c.free {
		if seen[p] {
			return fault.New(fault.Internal, "check KV cache: a page is free twice")
		}
		seen[p] = true
	}
	if len(c.free)+c.used != c.made || c.used < 0 {
		return fault.New(fault.Internal, "check KV cache: %d free and %d used pages, %d made", len(c.free), c.used,
			c.made)
	}
	return nil
}

// Sequence is one session's pages.
type Sequence[F tensor.Float] struct {
	cache *Cache[F]
	pages []*page[F]
	len   int
	views []kernel.KV[F] // by layer, kept in step with pages
}

// NewSequence returns an empty sequence.
func (c *Cache[F]) NewSequence() *Sequence[F] { return &Sequence[F]{cache: c} }

// Len is the number of positions that hold keys and values.
func (s *Sequence[F]) Len() int { return s.len }

// Reserve makes room for positions 0..n-1, or changes nothing and returns an
// Exhausted fault.
func (s *Sequence[F]) Reserve(n int) error {
	pageLen := s.cache.cfg.PageLen
	missing := (n+pageLen-1)/pageLen - len(s.pages)
	if missing <= 0 {
		return nil
	}
	pages, err := s.cache.take(missing)
	if err != nil {
		return err
	}
	s.pages = append(s.pages, pages...)
	for l := range s.views {
		s.views[l] = extend(s.views[l], pages, l)
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
	keep := (n + s.cache.cfg.PageLen - 1) / s.cache.cfg.PageLen
	s.cache.give(s.pages[keep:])
	s.pages = s.pages[:keep]
	for l := range s.views {
		s.views[l].Pages = s.views[l].Pages[:keep]
	}
}

// Free returns all pages. The sequence is empty then and may be used again.
func (s *Sequence[F]) Free() {
	s.cache.give(s.pages)
	s.pages, s.views, s.len = nil, nil, 0
}

// View returns a layer's keys and values, for attention. It is valid until the
// sequence's pages change.
func (s *Sequence[F]) View(layer int) kernel.KV[F] {
	if s.views == nil {
		s.views = make([]kernel.KV[F], s.cache.cfg.Layers)
		for l := range s.views {
			s.views[l] = extend(kernel.KV[F]{Type: s.cache.cfg.Type, PageLen: s.cache.cfg.PageLen}, s.pages, l)
		}
	}
	return s.views[layer]
}

// extend adds a layer's part of pages to its view.
func extend[F tensor.Float](v kernel.KV[F], pages []*page[F], layer int) kernel.KV[F] {
	for _, p := range pages {
		v.Pages = append(v.Pages, p.layers[layer])
	}
	return v
}
