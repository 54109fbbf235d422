package kvcache

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Lease is one pipeline's part of a cache: as many pages as it is granted, under ids of its own.
//
// The cache divides its pages among the leases that are open. The target of each is an equal share. A
// lease that has less is granted more as soon as pages are free of other grants. A lease that has more
// is asked to shrink (Notice), and shrinks when its pipeline acknowledges that (Acknowledge), so the
// pages that it has mapped are never taken away. The sum of all grants is at most the cache's pages, and
// no lease maps more than it is granted, so a page that is granted can always be had.
type Lease[F tensor.Float] struct {
	cache   *Cache[F]
	name    string
	changed chan struct{} // has a token when Notice may have news

	// Of the pipeline's goroutine.
	pages   map[uint32]*mapped[F]
	entries int    // pages named by all tables, with repeats
	stamp   uint64 // the last mark that a table change put on pages

	// Guarded by cache.mu.
	closed  bool
	mapped  bool // a page, at some time
	granted int
	used    int // ids that are mapped
	told    int // the last number that the pipeline was told; it maps no more unless it is asked to shrink
	asked   int // the number it was asked to shrink to and has not reached, or none
	promise int // the number it has acknowledged while it is asked, or none
	asks    int // how often it was asked, not counting a smaller number before it has shrunk
}

// none is no number of pages.
const none = -1

// mapped is a page with an id.
type mapped[F tensor.Float] struct {
	*page[F]
	id       uint32
	refs     int    // tables that name it
	released bool   // to be unmapped when no table names it any more
	stamp    uint64 // the last table change that named it
}

// LeaseInfo is the state of a lease.
type LeaseInfo struct {
	Name    string
	Granted int // pages that it may map
	Used    int // pages that it has mapped
}

// Open opens a lease under a name of its own, and returns the pages that it is granted at first.
func (c *Cache[F]) Open(name string) (*Lease[F], int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.leases, func(l *Lease[F]) bool { return l.name == name }) {
		return nil, 0, fault.New(fault.AlreadyExists, "open lease: %x is open already", name)
	}
	if n := len(c.leases); n >= c.cfg.Pages {
		return nil, 0, fault.New(fault.Exhausted, "open lease: %d leases share %d KV pages", n, c.cfg.Pages)
	}
	l := &Lease[F]{cache: c, name: name, changed: make(chan struct{}, 1), pages: map[uint32]*mapped[F]{}, asked: none,
		promise: none}
	c.leases = append(c.leases, l)
	c.divide()
	l.told = l.granted
	return l, l.told, nil
}

// Mapped reports whether the lease has ever mapped a page. It may be used concurrently.
func (l *Lease[F]) Mapped() bool {
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	return l.mapped
}

// Leases returns the state of the open leases, in the order in which they were opened.
func (c *Cache[F]) Leases() []LeaseInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []LeaseInfo
	for _, l := range c.leases {
		out = append(out, LeaseInfo{l.name, l.granted, l.used})
	}
	return out
}

// target is the equal share of a lease.
func (c *Cache[F]) target() int { return c.cfg.Pages / len(c.leases) }

// divide grants free pages to leases that are below the target, in the order in which they were opened,
// and signals every lease that has news. A lease that is asked to shrink is granted more only after that.
func (c *Cache[F]) divide() {
	if len(c.leases) == 0 {
		return
	}
	target, free := c.target(), c.cfg.Pages
	for _, l := range c.leases {
		if l.asked == none { // what the pipeline was not told about can still go to others
			l.granted = min(l.granted, max(target, l.told))
		}
		free -= l.granted
	}
	for _, l := range c.leases {
		if more := min(target-l.granted, free); more > 0 && l.asked == none {
			l.granted += more
			free -= more
		}
		if l.news() != l.told {
			select {
			case l.changed <- struct{}{}:
			default:
			}
		}
	}
}

// news returns the number of pages that the pipeline should know: the target if it is to shrink, else
// what it is granted. It is l.told if there is nothing to tell.
//
// A pipeline that is asked to shrink is told only smaller numbers before it has acknowledged. Otherwise
// its acknowledgement could cross a larger number and be taken for the answer to a later request.
func (l *Lease[F]) news() int {
	switch target := l.cache.target(); {
	case l.asked != none:
		return min(l.asked, target)
	case l.granted > target:
		return target
	}
	return l.granted
}

// Changed returns a channel that receives after Notice has something new to say. It may be used
// concurrently.
func (l *Lease[F]) Changed() <-chan struct{} { return l.changed }

// Notice returns the number of pages that the pipeline may have, and whether it differs from the last
// one. A number that is smaller than the last one asks the pipeline to shrink. It may be used
// concurrently.
func (l *Lease[F]) Notice() (int, bool) {
	c := l.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.closed {
		return 0, false
	}
	n := l.news()
	if n == l.told {
		return n, false
	}
	l.told = n
	if n < l.granted {
		if l.asked == none {
			l.asks++
		}
		l.asked = n
	}
	return n, true
}

// Asked returns a number that names the request to shrink that the pipeline has not fulfilled, or 0. It
// may be used concurrently.
func (l *Lease[F]) Asked() int {
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	if l.asked == none {
		return 0
	}
	return l.asks
}

// Owes reports whether other leases wait until this one shrinks. It may be used concurrently.
func (l *Lease[F]) Owes() bool {
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	return l.asked != none || l.granted > l.cache.target()
}

// Resume hands the lease to another goroutine of its pipeline, which may have missed a Notice, and
// returns the number of pages that the pipeline may have. The lease must not have been asked to shrink.
func (l *Lease[F]) Resume() int {
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	l.told = l.granted
	return l.told
}

// Acknowledge says that the pipeline will not map more than n pages until Notice says that it may. It
// counts only while the pipeline is asked to shrink. If it has mapped more, the lease shrinks as they
// are unmapped.
func (l *Lease[F]) Acknowledge(n int) {
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	if l.asked == none || l.closed {
		return
	}
	l.promise = max(n, l.asked)
	l.settle()
}

// settle shrinks a lease as far as its pipeline has acknowledged and unmapped pages.
func (l *Lease[F]) settle() {
	if l.promise != none {
		l.granted = min(l.granted, max(l.promise, l.used))
		if l.granted <= l.asked {
			l.asked, l.promise = none, none
		}
	}
	l.cache.divide()
}

// take maps n more pages. freed are pages of the lease that are unmapped in the same step.
func (l *Lease[F]) take(n int, freed []*page[F]) ([]*page[F], error) {
	c := l.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := l.used - len(freed)
	limit := l.told
	switch {
	case l.promise != none:
		limit = max(l.promise, kept)
	case l.asked != none:
		limit = l.granted
	}
	if kept+n > limit {
		return nil, fault.New(fault.Exhausted, "map %d KV pages: %d of the %d that the pipeline may have are mapped", n,
			kept, limit)
	}
	if c.used+n-len(freed) > c.cfg.Pages { // sequences without a lease hold the rest
		return nil, fault.New(fault.Exhausted, "map %d KV pages: %d of %d are in use", n, c.used, c.cfg.Pages)
	}
	l.give(freed)
	l.used += n
	l.mapped = l.mapped || n > 0
	return c.takeLocked(n)
}

// give returns pages to the cache, whose lock is held.
func (l *Lease[F]) give(pages []*page[F]) {
	if len(pages) > 0 {
		l.cache.giveLocked(pages)
		l.used -= len(pages)
		l.settle()
	}
}

// Release unmaps pages. An id that is not mapped is skipped. A page that tables name is unmapped when
// the last of them drops it.
func (l *Lease[F]) Release(ids []uint32) {
	var freed []*page[F]
	for _, id := range ids {
		if p := l.pages[id]; p == nil {
			continue
		} else if p.released = true; p.refs == 0 {
			delete(l.pages, id)
			freed = append(freed, p.page)
		}
	}
	l.free(freed)
}

func (l *Lease[F]) free(pages []*page[F]) {
	l.cache.mu.Lock()
	defer l.cache.mu.Unlock()
	l.give(pages)
}

// Close unmaps all pages and ends the lease. Its tables must not be used after that.
func (l *Lease[F]) Close() {
	var pages []*page[F]
	for _, p := range l.pages {
		pages = append(pages, p.page)
	}
	c := l.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveLocked(pages)
	c.leases = slices.DeleteFunc(c.leases, func(other *Lease[F]) bool { return other == l })
	l.pages, l.used, l.granted, l.closed = nil, 0, 0, true
	c.divide()
}
