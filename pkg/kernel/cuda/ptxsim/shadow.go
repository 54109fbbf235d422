package ptxsim

import "fmt"

// cell is what the race checks know of a granule of memory in a block: the last write, and the accesses since that no
// other access of the list happened after.
type cell struct {
	gen    uint32 // number of the block's run; a cell of another run is empty
	flags  uint8
	writer access // last write by a store
	first  access // lanes is 0 if there are no accesses since the write
	more   int32  // index+1 of a node with a further access
	wpc    int32  // instruction of a write, of a read and of an atomic operation, for the checks between blocks
	rpc    int32
	apc    int32
}

const (
	cellWritten  = 1 << iota // a store or a cp.async wrote it
	cellPending              // a cp.async will write it
	cellConstant             // ld.global.nc read it
	cellRead
	cellAtomic // an atomic operation changed it
)

// node is a further access in the list of a cell.
type node struct {
	access
	next int32
}

type accessKind uint8

const (
	accessRead accessKind = iota
	accessConstant
	accessWrite
	accessAtomic
	accessAsync // the issue of a cp.async that will write
)

var accessNames = [...]string{accessRead: "read", accessConstant: "read", accessWrite: "write",
	accessAtomic: "atomic operation", accessAsync: "asynchronous write"}

// touch records an access of a lane to cells. It reports whether the access is in order, and fails the warp if not.
func (w *warp) touch(cells []cell, lane int, kind accessKind, what string, addr uint64) bool {
	b := w.b
	now, seen, read := w.clock.time, &w.clock.seen, kind == accessRead || kind == accessConstant
	for i := range cells {
		c := &cells[i]
		// Most accesses are reads after another lane of the warp has read the same cell since the last barrier.
		if read && c.gen == b.gen && c.first.lanes != 0 && c.first.time == now && int(c.first.warp) == w.id &&
			c.flags&(cellPending|cellAtomic) == 0 &&
			(c.flags&cellWritten == 0 || kind == accessRead && c.writer.time < seen[c.writer.warp]) {
			if kind == accessConstant {
				c.flags |= cellConstant
			}
			c.first.lanes |= 1 << lane
			c.rpc = w.pc
			continue
		}
		if c.gen != b.gen {
			*c = cell{gen: b.gen}
		}
		if c.flags&(cellPending|cellConstant) != 0 && !w.touchSpecial(c, lane, kind, what, addr) {
			return false
		}
		me := access{time: w.clock.time, lanes: 1 << lane, pc: w.pc, warp: uint8(w.id), atomic: kind == accessAtomic}
		if c.flags&cellWritten != 0 {
			if ok, other := w.clock.before(&c.writer, w.id, lane); !ok {
				return w.race(c, &c.writer, other, lane, kind, "write", what, addr)
			}
		}
		switch kind {
		case accessRead, accessConstant:
			if c.flags&cellAtomic != 0 && !w.conflicts(c, lane, kind, what, addr) {
				return false
			}
			c.flags |= cellRead
			c.rpc = w.pc
			if kind == accessConstant {
				c.flags |= cellConstant
				if c.flags&(cellWritten|cellAtomic) != 0 {
					w.failf(CheckRace, lane, "ld.global.nc of %s that the launch writes at line %d", b.where(what, addr),
						b.k.code[max(c.wpc, c.apc)].line)
					return false
				}
			}
			b.add(c, me, w, lane)
		case accessAtomic:
			if !w.conflicts(c, lane, kind, what, addr) {
				return false
			}
			c.flags |= cellAtomic
			c.apc = w.pc
			b.add(c, me, w, lane)
		default:
			if !w.conflicts(c, lane, kind, what, addr) {
				return false
			}
			b.forget(c)
			c.flags |= cellWritten
			if kind == accessAsync {
				c.flags |= cellPending
			}
			c.writer = me
			c.wpc = w.pc
		}
	}
	return true
}

// touchSpecial checks cells that a cp.async will write or that ld.global.nc read.
func (w *warp) touchSpecial(c *cell, lane int, kind accessKind, what string, addr uint64) bool {
	if c.flags&cellPending != 0 {
		w.failf(CheckAsync, lane, "%s of %s while the cp.async of line %d by thread %v is not waited for",
			accessNames[kind], w.b.where(what, addr), w.b.k.code[c.writer.pc].line, w.b.threadOf(&c.writer, -1))
		return false
	}
	if kind == accessWrite || kind == accessAtomic {
		w.failf(CheckRace, lane, "%s of %s that ld.global.nc reads at line %d in the same launch", accessNames[kind],
			w.b.where(what, addr), w.b.k.code[c.rpc].line)
		return false
	}
	return true
}

// conflicts checks an access against the list of a cell.
func (w *warp) conflicts(c *cell, lane int, kind accessKind, what string, addr uint64) bool {
	read := kind == accessRead || kind == accessConstant
	check := func(a *access) bool {
		if a.lanes == 0 || read && !a.atomic || kind == accessAtomic && a.atomic {
			return true
		}
		ok, other := w.clock.before(a, w.id, lane)
		if ok {
			return true
		}
		was := "read"
		if a.atomic {
			was = "atomic operation"
		}
		return w.race(c, a, other, lane, kind, was, what, addr)
	}
	if !check(&c.first) {
		return false
	}
	for n := c.more; n != 0; n = w.b.nodes[n-1].next {
		if !check(&w.b.nodes[n-1].access) {
			return false
		}
	}
	return true
}

// race fails the warp. It returns false.
func (w *warp) race(c *cell, a *access, other, lane int, kind accessKind, was, what string, addr uint64) bool {
	w.failf(CheckRace, lane, "%s of %s and %s by thread %v at line %d have no synchronisation between them",
		accessNames[kind], w.b.where(what, addr), was, w.b.threadOf(a, other), w.b.k.code[a.pc].line)
	return false
}

// add puts an access on the list of a cell. Accesses that happened before it leave the list: what happens after the
// new one happens after them.
func (b *block) add(c *cell, me access, w *warp, lane int) {
	if c.first.lanes == 0 {
		c.first = me
		return
	}
	if c.first.joins(&me) {
		return
	}
	for n := c.more; n != 0; n = b.nodes[n-1].next {
		if b.nodes[n-1].joins(&me) {
			return
		}
	}
	for link := &c.more; *link != 0; {
		n := *link
		if o := &b.nodes[n-1]; w.replaces(&o.access, &me, lane) {
			*link = o.next
			o.next, b.free = b.free, n
		} else {
			link = &o.next
		}
	}
	if w.replaces(&c.first, &me, lane) {
		c.first = me
		return
	}
	n := b.free
	if n == 0 {
		b.nodes = append(b.nodes, node{})
		n = int32(len(b.nodes))
	} else {
		b.free = b.nodes[n-1].next
	}
	b.nodes[n-1] = node{access: me, next: c.more}
	c.more = n
}

// joins adds the lanes of an access of the same warp, time and kind, and reports whether it was one.
func (a *access) joins(me *access) bool {
	if a.time != me.time || a.warp != me.warp || a.atomic != me.atomic {
		return false
	}
	a.lanes |= me.lanes
	return true
}

// replaces reports whether an access of a lane of the warp makes an earlier one of its kind superfluous.
func (w *warp) replaces(a, me *access, lane int) bool {
	if a.atomic != me.atomic {
		return false
	}
	ok, _ := w.clock.before(a, w.id, lane)
	return ok
}

// forget empties the list of a cell.
func (b *block) forget(c *cell) {
	c.first.lanes = 0
	for c.more != 0 {
		n := c.more
		c.more = b.nodes[n-1].next
		b.nodes[n-1].next = b.free
		b.free = n
	}
}

// where describes an address.
func (b *block) where(what string, addr uint64) string {
	if what != "global" {
		return fmt.Sprintf("%s memory at %d", what, addr)
	}
	if a := b.table.find(addr); a != nil {
		return fmt.Sprintf("global memory at %#x (byte %d of the allocation of %d bytes at %#x)", addr, addr-a.addr,
			len(a.data), a.addr)
	}
	return fmt.Sprintf("global memory at %#x", addr)
}

// threadOf returns the thread of an access in a lane, or in its first lane.
func (b *block) threadOf(a *access, lane int) [3]int {
	if lane < 0 {
		for lane = 0; a.lanes>>lane&1 == 0; lane++ {
			continue
		}
	}
	return b.thread(int(a.warp)*warpSize + lane)
}

// pageBytes are the bytes of global memory that one page of cells describes.
const pageBytes = 2048

// page has the cells of a page of global memory.
type page struct {
	base   uint64
	cells  []cell
	lo, hi int // the cells that the block accessed are among cells[lo:hi]
}

// page returns the cells of the page of an address.
func (b *block) page(addr uint64) *page {
	base := addr &^ (pageBytes - 1)
	cache := &b.recent[base/pageBytes%uint64(len(b.recent))]
	if *cache != nil && (*cache).base == base {
		return *cache
	}
	p := b.pages[base]
	if p == nil {
		if n := len(b.spare); n > 0 {
			p = b.spare[n-1]
			b.spare = b.spare[:n-1]
		} else {
			p = &page{cells: make([]cell, pageBytes>>b.k.granule)}
		}
		if n := pageBytes >> b.k.granule; len(p.cells) < n {
			p.cells = make([]cell, n)
		}
		p.base, p.lo, p.hi = base, len(p.cells), 0
		b.pages[base] = p
		b.order = append(b.order, p)
	}
	*cache = p
	return p
}

// globalCells and sharedCells return the cells of n bytes at an address. The bytes are aligned to n, so that they do
// not cross a page.
func (b *block) globalCells(addr uint64, n int) []cell {
	off := int(addr & (pageBytes - 1))
	p := b.page(addr)
	from, to := off>>b.k.granule, (off+n+1<<b.k.granule-1)>>b.k.granule
	p.lo, p.hi = min(p.lo, from), max(p.hi, to)
	return p.cells[from:to]
}

func (b *block) sharedCells(addr uint64, n int) []cell {
	return b.cells[addr>>b.k.granule:][:(n+1<<b.k.granule-1)>>b.k.granule]
}

// endPages gives the pages of the block back.
func (b *block) endPages() {
	clear(b.pages)
	clear(b.recent[:])
	b.spare = append(b.spare, b.order...)
	b.order = b.order[:0]
	if limit := 1024; len(b.spare) > limit {
		clear(b.spare[limit:])
		b.spare = b.spare[:limit]
	}
}
