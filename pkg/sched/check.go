package sched

import (
	"fmt"
	"slices"
)

// Check reports pages that were lost, held twice or charged to nobody, counts that are wrong, and results
// that are awaited in vain. It
// holds between any two calls of Step. It takes time in proportion to the number of pages.
func (s *Scheduler) Check() error {
	p := s.pool
	refs := make([]int32, p.total())
	tables := [][]uint32{s.stale}
	for _, q := range s.running {
		tables = append(tables, q.table, q.stale, q.spare)
		if waits := q.feed.Waiting() || q.scoring > 0; waits != s.flying(q) {
			return fmt.Errorf("sequence %s has %d windows in flight, and whether it waits for a result is %v", q.ID,
				len(q.windows), waits)
		}
		for _, w := range q.windows {
			if f := s.inFlight[w.step]; f == nil || w.entry >= len(f.entries) || f.entries[w.entry].id != q.ID {
				return fmt.Errorf("sequence %s waits for an entry of batch %d, which is not in flight", q.ID, w.step)
			}
		}
	}
	for _, table := range tables {
		for _, page := range table {
			refs[page]++
		}
	}
	free := make([]bool, p.total())
	for _, page := range p.free {
		if free[page] {
			return fmt.Errorf("page %d is free twice", page)
		}
		free[page] = true
	}
	if err := s.checkReplays(free); err != nil {
		return err
	}
	type sum struct{ pages, cached, evictable int }
	sums := map[*tenant]sum{}
	cached := 0
	children := make([]int32, p.total())
	for i := range p.refs {
		n, t := &p.nodes[i], p.owner[i]
		unused := p.refs[i] == 0 && n.indexed
		switch {
		case p.refs[i] != refs[i]:
			return fmt.Errorf("page %d has %d references, %d tables name it", i, p.refs[i], refs[i])
		case free[i] != (p.refs[i] == 0 && !n.indexed):
			return fmt.Errorf("page %d: free %v, indexed %v, %d references", i, free[i], n.indexed, refs[i])
		case free[i] != (t == nil):
			return fmt.Errorf("page %d: free %v, but charged to %v", i, free[i], t)
		case (n.heap != none) != (unused && n.children == 0):
			return fmt.Errorf("page %d: %d references, indexed %v, %d children, and evictable %v", i, refs[i],
				n.indexed, n.children, n.heap != none)
		}
		if n.indexed && n.parent != none {
			children[n.parent]++
		}
		if t == nil {
			continue
		}
		c := sums[t]
		c.pages++
		if unused {
			c.cached++
			cached++
		}
		if n.heap != none {
			c.evictable++
		}
		sums[t] = c
	}
	for i, n := range children {
		if n != p.nodes[i].children {
			return fmt.Errorf("page %d has %d children, says %d", i, n, p.nodes[i].children)
		}
	}
	if cached != p.cached {
		return fmt.Errorf("%d pages are cached, the count is %d", cached, p.cached)
	}
	return s.checkTenants(func(t *tenant) error {
		if c := sums[t]; c.pages != t.pages || c.cached != t.cachedPages || c.evictable != len(t.evictable.pages) {
			return fmt.Errorf("tenant %q has %+v pages, the counts are %d, %d and %d", t.name, c, t.pages,
				t.cachedPages, len(t.evictable.pages))
		}
		return nil
	})
}

// checkReplays checks that a sequence goes on only when no page of it is missing, and that every page that
// others wait for is being built.
func (s *Scheduler) checkReplays(free []bool) error {
	for page := range s.pool.missing {
		if free[page] {
			return fmt.Errorf("page %d is missing, but free", page)
		}
	}
	for page, q := range s.builders {
		if !s.pool.missing[page] || !q.running ||
			!slices.Contains(q.table[:s.pool.pagesFor(q.replay.sent)], page) {
			return fmt.Errorf("page %d: %s builds it, which has %+v", page, q.ID, q.replay)
		}
	}
	for _, q := range s.running {
		for _, page := range q.table[:s.pool.pagesFor(q.done)] {
			if !q.replaying() && s.pool.missing[page] {
				return fmt.Errorf("page %d of %s is missing, but it is not replayed", page, q.ID)
			}
		}
	}
	return nil
}

// checkTenants checks the counts of sequences.
func (s *Scheduler) checkTenants(pages func(*tenant) error) error {
	waiting, running := map[*tenant]int{}, map[*tenant]int{}
	for _, q := range s.waiting {
		waiting[q.tenant]++
	}
	for _, q := range s.running {
		running[q.tenant]++
	}
	for _, t := range s.tenants.list {
		if t.waiting != waiting[t] || t.running != running[t] {
			return fmt.Errorf("tenant %q has %d waiting and %d running sequences, the counts are %d and %d", t.name,
				waiting[t], running[t], t.waiting, t.running)
		}
		if err := pages(t); err != nil {
			return err
		}
	}
	return nil
}
