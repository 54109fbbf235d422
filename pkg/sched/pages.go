package sched

import (
	"container/heap"
	"time"
)

// pool owns the pipeline's KV pages. A page is free, held by sequences (refs > 0), or cached: indexed
// and held by no sequence.
type pool struct {
	*index
	limit   int      // pages that the leases of all stages allow
	free    []uint32 // ids of free pages; the last is taken next
	freed   []uint32 // freed since the last Release
	top     int      // one more than the highest id that was ever taken
	refs    []int32
	owner   []*tenant // who is charged for a page
	cached  int
	missing map[uint32]bool // pages that a stage which is new lacks
	spaces  map[space]int32
	space   int32 // the last id in spaces
	evicted uint64
}

// space is what a page belongs to: pages of different spaces are never shared.
type space struct{ tenant, namespace string }

func newPool(pages, pageLen int) *pool {
	p := &pool{
		index: newIndex(pages, pageLen), limit: pages, refs: make([]int32, pages), owner: make([]*tenant, pages),
		spaces: map[space]int32{},
	}
	for i := pages - 1; i >= 0; i-- {
		p.free = append(p.free, uint32(i))
	}
	return p
}

// total is the number of page ids.
func (p *pool) total() int { return len(p.refs) }

// held is the number of pages that hold something.
func (p *pool) held() int { return len(p.refs) - len(p.free) }

// pagesFor returns the number of pages of a log of that length.
func (p *pool) pagesFor(length int) int { return (length + p.pageLen - 1) / p.pageLen }

func (p *pool) spaceOf(tenant, namespace string) int32 {
	key := space{tenant, namespace}
	id, ok := p.spaces[key]
	if !ok {
		p.space++
		id = p.space
		p.spaces[key] = id
	}
	return id
}

// take takes a page for a tenant: a free one, or else the one that is evicted.
func (p *pool) take(t *tenant, unit float64) (uint32, bool) {
	if len(p.free) == 0 || p.held() >= p.limit {
		if !p.evict(t, unit) {
			return 0, false
		}
	}
	page := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.top = max(p.top, int(page)+1)
	p.refs[page], p.owner[page] = 1, t
	t.pages++
	return page, true
}

// available returns how many pages a tenant could take without preempting a sequence: free ones, its own
// cached ones, and, up to its share, cached ones of tenants that hold more than their share.
func (p *pool) available(t *tenant, unit float64) int {
	n := max(0, p.limit-p.held())
	lacks, others := t.share(unit)-t.pages-n, 0
	if lacks > 0 && p.cached > t.cachedPages {
		for _, o := range t.all.list {
			if o != t {
				others += min(o.cachedPages, max(0, o.pages-o.share(unit)))
			}
		}
	}
	return n + t.cachedPages + min(max(0, lacks), others)
}

// evict frees a cached page for a tenant. A tenant that has its share of the pages loses one of its
// own. One that has less gets a page from the tenant that exceeds its share the most, so that no
// tenant can drive the pages of another out of the cache below the share of the other.
func (p *pool) evict(t *tenant, unit float64) bool {
	victim := t
	if t.pages < t.share(unit) {
		for _, o := range t.all.list {
			if len(o.evictable.pages) > 0 && o.pages > o.share(unit) &&
				(len(victim.evictable.pages) == 0 || victim == t || o.pages > victim.pages) {
				victim = o
			}
		}
	}
	if len(victim.evictable.pages) == 0 {
		victim = t
	}
	if len(victim.evictable.pages) == 0 {
		return false
	}
	p.evictFrom(victim)
	return true
}

// evictFrom frees the page of a tenant that was used longest ago.
func (p *pool) evictFrom(t *tenant) {
	page := heap.Pop(&t.evictable).(uint32)
	p.unindex(page)
	p.cached--
	t.cachedPages--
	p.evicted++
	p.put(page)
}

// unindex takes a page without children out of the index. Its parent may be evicted next.
func (p *pool) unindex(page uint32) {
	if parent := p.drop(page); parent != none && p.nodes[parent].children == 0 && p.refs[parent] == 0 {
		p.owner[parent].evictable.insert(uint32(parent))
	}
}

// put frees a page.
func (p *pool) put(page uint32) {
	p.owner[page].pages--
	p.owner[page] = nil
	delete(p.missing, page)
	p.free = append(p.free, page)
	p.freed = append(p.freed, page)
}

// freeAgain makes the next Release name every free page that a stage may have mapped.
func (p *pool) freeAgain() {
	p.freed = p.freed[:0]
	for _, page := range p.free {
		if int(page) < p.top {
			p.freed = append(p.freed, page)
		}
	}
}

// hold adds a sequence to an indexed page.
func (p *pool) hold(page uint32, now time.Duration) {
	n := &p.nodes[page]
	if p.refs[page] == 0 {
		t := p.owner[page]
		t.evictable.remove(page)
		t.cachedPages--
		p.cached--
	}
	p.refs[page]++
	n.used = now
}

// release takes a sequence off a page. The page is freed unless another sequence holds it or the index
// knows it.
func (p *pool) release(page uint32, now time.Duration) {
	p.refs[page]--
	if p.refs[page] > 0 {
		return
	}
	n := &p.nodes[page]
	if !n.indexed {
		p.put(page)
		return
	}
	n.used = now
	t := p.owner[page]
	t.cachedPages++
	p.cached++
	if n.children == 0 {
		t.evictable.insert(page)
	}
}

// expire frees cached pages that were not used since the given time.
func (p *pool) expire(tenants *tenants, before time.Duration) {
	for _, t := range tenants.list {
		for len(t.evictable.pages) > 0 && p.nodes[t.evictable.pages[0]].used < before {
			p.evictFrom(t)
		}
	}
}

// shrink frees cached pages until the pool holds at most its limit. It returns false if sequences
// hold more.
func (p *pool) shrink(tenants *tenants) bool {
	for p.held() > p.limit {
		if !p.evictAny(tenants) {
			return false
		}
	}
	return true
}

// evictAny frees a page of the tenant that has the most cached ones.
func (p *pool) evictAny(tenants *tenants) bool {
	var most *tenant
	for _, t := range tenants.list {
		if len(t.evictable.pages) > 0 && (most == nil || t.cachedPages > most.cachedPages) {
			most = t
		}
	}
	if most == nil {
		return false
	}
	p.evictFrom(most)
	return true
}

// forgetSpaces drops the spaces of a tenant that holds no pages.
func (p *pool) forgetSpaces(tenant string) {
	for key := range p.spaces {
		if key.tenant == tenant {
			delete(p.spaces, key)
		}
	}
}
