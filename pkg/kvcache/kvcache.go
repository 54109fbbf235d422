// Package kvcache stores the keys and values of live sequences in pages, so that memory is handed out
// by the page and never moved or copied. A Cache is the bounded pool of pages of one stage. It decides
// nothing: the router's scheduler assigns pages to sequences, and the cache does as told.
//
//   - A Lease is one pipeline's part of the pool. It maps the pipeline's page ids to pages, up to a
//     limit. The cache divides its pages among the leases that are open (lease.go).
//   - A Table is the block table of one session: a list of pages of a lease. Tables may share pages,
//     which is how a common prefix is stored once (table.go).
//   - A Sequence reserves its own pages, for programs that have a cache to themselves (sequence.go).
//
// Positions are arguments everywhere; no method advances a position by itself.
//
// The shard service calls it: it changes tables before a batch, and pkg/model writes and views them
// while the batch runs. A Cache is safe for concurrent use, and so are the methods of a Lease that say
// so. Everything else about a Lease and its Tables belongs to the goroutine that runs the pipeline's
// batches.
package kvcache

import (
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
type page[F tensor.Float] struct {
	layers []kernel.KVPage[F]
	memory kernel.Memory[F] // of the layers: a page that nothing refers to is given back
}

// Cache is a bounded pool of pages.
type Cache[F tensor.Float] struct {
	cfg    Config
	memory kernel.Memory[F]

	mu     sync.Mutex
	free   []*page[F] // made before and given back; the last is taken first
	made   int
	used   int
	idle   int         // the first pages of free that nobody has taken since the last Trim
	leases []*Lease[F] // in the order in which they were opened
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

// Used returns the number of pages that are mapped by leases or reserved by sequences.
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
	return c.takeLocked(n)
}

func (c *Cache[F]) takeLocked(n int) ([]*page[F], error) {
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
	memory := c.memory.Scope()
	return &page[F]{memory.NewKVPages(c.cfg.Layers, c.cfg.Type, size, c.cfg.HeadDim), memory}
}

func (c *Cache[F]) give(pages []*page[F]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveLocked(pages)
}

func (c *Cache[F]) giveLocked(pages []*page[F]) {
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

// Check reports pages that were lost or given back twice, and leases that were granted more pages than
// there are or have mapped more than they were granted. It holds at any time.
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
	granted, used := 0, 0
	for _, l := range c.leases {
		if l.used > l.granted || l.used < 0 {
			return fault.New(fault.Internal, "check KV cache: lease %x has mapped %d of %d pages", l.name, l.used,
				l.granted)
		}
		granted += l.granted
		used += l.used
	}
	if granted > c.cfg.Pages || used > c.used {
		return fault.New(fault.Internal, "check KV cache: %d of %d pages are granted, %d mapped and %d used", granted,
			c.cfg.Pages, used, c.used)
	}
	return nil
}
