package kvcache

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// MaxTableEntries bounds the pages that all tables of a lease name together, with repeats. A page that
// many tables share costs each of them an entry.
const MaxTableEntries = 1 << 22

// Table is the block table of one session: its page i holds the positions from i*PageLen on.
type Table[F tensor.Float] struct {
	lease *Lease[F]
	pages []*mapped[F]
	view  view[F]
	len   int
}

// NewTable returns an empty table.
func (l *Lease[F]) NewTable() *Table[F] { return &Table[F]{lease: l} }

// Len is the number of positions that hold keys and values.
func (t *Table[F]) Len() int { return t.len }

// Pages is the number of pages that the table names.
func (t *Table[F]) Pages() int { return len(t.pages) }

// Change makes ids the table's pages from index from on, for rows that are to be computed from position
// pos on. Ids that are not mapped are mapped, up to the lease. The table holds keys and values up to pos
// then: the caller vouches for the positions below. A page that no longer belongs to the table stays
// mapped, unless it was released before and no other table names it.
//
// The error is Invalid if the ids are no table for these rows, FailedPrecondition if there is a hole
// before from or if a page with positions below pos is not mapped, and Exhausted if the lease does not
// suffice. Nothing has changed then.
func (t *Table[F]) Change(from int, ids []uint32, pos, rows int) error {
	l, c := t.lease, t.lease.cache
	if err := t.check(from, ids, pos, rows); err != nil {
		return err
	}
	dropped := t.pages[from:]
	missing, err := t.mark(from, ids, pos)
	if err != nil {
		return err
	}
	var freed []*page[F]
	for _, p := range dropped {
		if p.released && p.refs == 1 && p.stamp != l.stamp {
			freed = append(freed, p.page)
		}
	}
	// Pages that are unmapped by this change make room for those that are mapped.
	fresh, err := l.take(missing, freed)
	if err != nil {
		return err
	}
	l.entries += len(ids) - len(dropped)
	for _, p := range dropped {
		if p.refs--; p.released && p.refs == 0 && p.stamp != l.stamp {
			delete(l.pages, p.id)
		}
	}
	clear(dropped)
	clear(t.view[from:])
	t.pages, t.view = t.pages[:from], t.view[:from]
	for _, id := range ids {
		p := l.pages[id]
		if p == nil {
			p = &mapped[F]{page: fresh[0], id: id}
			fresh, l.pages[id] = fresh[1:], p
		}
		p.refs++
		p.released = false
		t.pages = append(t.pages, p)
		t.view = append(t.view, p.layers)
	}
	t.len = min(pos, len(t.pages)*c.cfg.PageLen)
	return nil
}

// check reports arguments of Change that are no table whatever is mapped.
func (t *Table[F]) check(from int, ids []uint32, pos, rows int) error {
	c := t.lease.cache
	n := from + len(ids)
	switch {
	case from > len(t.pages):
		return fault.New(fault.FailedPrecondition, "change block table from page %d on: it has %d", from, len(t.pages))
	case n > c.cfg.Pages:
		return fault.New(fault.Invalid, "change block table to %d pages: the cache has %d", n, c.cfg.Pages)
	case n < c.PagesFor(pos+rows):
		return fault.New(fault.Invalid, "change block table to %d pages of %d positions: position %d needs more", n,
			c.cfg.PageLen, pos+rows-1)
	case t.lease.entries+n-len(t.pages) > MaxTableEntries:
		return fault.New(fault.Exhausted, "change block table to %d pages: all tables have %d, at most %d", n,
			t.lease.entries, MaxTableEntries)
	}
	for _, id := range ids {
		if int64(id) >= int64(c.cfg.Pages) {
			return fault.New(fault.Invalid, "change block table: there is no page %d of %d", id, c.cfg.Pages)
		}
	}
	return nil
}

// mark counts the ids that have to be mapped. It stamps the pages that the table keeps and those that the
// ids name, and so finds repeats.
func (t *Table[F]) mark(from int, ids []uint32, pos int) (missing int, err error) {
	l := t.lease
	l.stamp++
	for _, p := range t.pages[:from] {
		p.stamp = l.stamp
	}
	computed := l.cache.PagesFor(pos) // pages with positions below pos
	var unmapped map[uint32]bool
	for i, id := range ids {
		p := l.pages[id]
		if from+i < computed && (p == nil || p.released) {
			return 0, fault.New(fault.FailedPrecondition, "change block table: page %d at index %d is not mapped", id,
				from+i)
		}
		if p != nil && p.stamp == l.stamp || unmapped[id] {
			return 0, fault.New(fault.Invalid, "change block table: page %d is named twice", id)
		}
		if p != nil {
			p.stamp = l.stamp
			continue
		}
		if unmapped == nil {
			unmapped = map[uint32]bool{}
		}
		unmapped[id] = true
	}
	return len(unmapped), nil
}

// Truncate drops the positions from n on. The table keeps its pages.
func (t *Table[F]) Truncate(n int) { t.len = min(t.len, n) }

// Free drops all pages from the table. Those that were released and that no other table names are
// unmapped. The table is empty then and may be used again.
func (t *Table[F]) Free() {
	var freed []*page[F]
	for _, p := range t.pages {
		if p.refs--; p.released && p.refs == 0 {
			delete(t.lease.pages, p.id)
			freed = append(freed, p.page)
		}
	}
	t.lease.entries -= len(t.pages)
	t.lease.free(freed)
	t.pages, t.view, t.len = nil, nil, 0
}

// Reserve reports an Exhausted fault unless the table has pages for positions 0..n-1.
func (t *Table[F]) Reserve(n int) error {
	if c := t.lease.cache; n > len(t.pages)*c.cfg.PageLen {
		return fault.New(fault.Exhausted, "reserve %d positions: the block table has %d pages of %d", n, len(t.pages),
			c.cfg.PageLen)
	}
	return nil
}

// Extend says that positions up to n-1 hold keys and values.
func (t *Table[F]) Extend(n int) {
	if t.Reserve(n) != nil {
		panic(fmt.Sprintf("extend block table to %d positions: it has %d pages", n, len(t.pages)))
	}
	t.len = max(t.len, n)
}

// View returns a layer's keys and values, for attention. It is valid until the table changes.
func (t *Table[F]) View(layer int) kernel.KV[F] { return t.view.layer(t.lease.cache, layer) }
