package cpu

import "github.com/klauspost/cpuid/v2"

// Products of float32 matrices. A piece of work is a block of rows and columns of the result. It is computed as in
// most BLAS libraries: the right operand is packed into panels as wide as a tile, gemmDepth steps of the reduction at
// a time, so that a packed block stays in the second-level cache. Each strip of rows is then multiplied with all
// panels, one tile of registers after another, and the results of the strip are added to by the next depth.
//
// Every output is one chain of fused multiply-adds over the reduction
// dimension, in index order. The chain starts from zero, from a bias or from the output itself. Its bits
// therefore depend neither on tiles and blocks nor on threads, and two products added to the same output
// are one longer chain.

const (
	gemmDepth      = 256     // most steps of the reduction in a packed block of the right operand
	gemmColumns    = 512     // most columns of a packed block
	gemmSmall      = 1 << 20 // elements of a product that fits a core's cache
	gemmAlias      = 2048    // rows this many bytes apart, or a multiple, share few sets of the first-level cache
	gemmReuse      = 384     // rows from which packing columns of such a matrix pays
	gemmBurst      = 24      // cache lines prefetched at once
	gemmMaxColumns = 32      // most columns of a panel, over all families
	gemmMaxRows    = 12      // most rows of a tile, over all families
)

// fewWays reports that the first-level cache has so few ways that lines in the same set evict each
// other early: a cache of 32 KiB has 8 ways, one of 48 KiB has 12.
var fewWays = cpuid.CPU.Cache.L1D <= 32<<10

// gemmTile computes c = init + a·b for the rows and columns of one tile, and for the tiles of further
// panels to its right: their b is step bytes further on and their init istep bytes. Element (i, k) of a
// is at byte i·rs + k·cs; rows of b are ldb bytes apart. k is at least 1.
type gemmTile func(c *float32, ldc int, init *float32, ldi, istep int, a *float32, rs, cs int, b *float32, ldb, step, k,
	panels int)

// gemmOps are the loops of one instruction family.
type gemmOps struct {
	wide   int        // columns of a panel
	tiles  []gemmTile // of whole panels, by rows
	narrow []gemmTile // of lanes columns

	// fromRows packs a matrix whose rows run along the reduction: it transposes k columns of lanes
	// rows. fromColumns packs the other kind: it copies up to lanes columns of k rows. Each row of a
	// panel has room for lanes.
	fromRows    func(dst *float32, ldd int, src *float32, lds, k int)
	fromColumns func(dst *float32, ldd int, src *float32, lds, k, columns int)

	// fromRow, unless nil, converts k elements of a row of the left operand to the form that tiles read;
	// then all operands are converted. unit is the number of elements of the reduction in a step of a
	// tile.
	fromRow func(dst, src *float32, k int)
	unit    int

	// fromPairs, unless nil, unpacks pairs that are packed as 16 columns; each gives two rows of a panel.
	fromPairs func(dst *float32, ldd int, src *byte, pairs int)

	// prefetch prefetches lines of 64 bytes in rows that are ld bytes apart.
	prefetch func(p uintptr, ld, rows, lines int)
}

// operand is an operand of a product: element (i, k) is data[i*rs+k*cs], where k runs along the
// reduction. One of the strides is 1.
type operand struct {
	data   []float32
	rs, cs int
}

// rowsOf describes a matrix whose rows run along the reduction, columnsOf one whose columns do.
func rowsOf(x []float32, ld int) operand    { return operand{x, ld, 1} }
func columnsOf(x []float32, ld int) operand { return operand{x, 1, ld} }

// gemmCall is a product c[m,n] = start + a[m,k]·b[n,k]ᵀ.
type gemmCall struct {
	c       []float32
	ldc     int
	add     bool      // start from the values of c
	bias    []float32 // start from bias[n] unless it is nil; without add and bias from zero
	a, b    operand
	pairs   *pairMatrix // the packed right operand, in place of b
	panels  []float32   // the right operand in panels of the whole reduction, in place of b; see packInto
	near    bool        // a is in the cache and read in place
	padded  bool        // b, if its columns run along the reduction, can be read to the end of its last panel
	m, n, k int
	then    *gemmCall // a product of other operands that is added to the same c
	sum     []float32 // unless nil, the finished c is added to it; it has the shape of c
}

// gemmScratch is the scratch of one worker.
type gemmScratch struct {
	zero, bias [gemmMaxColumns]float32
	edge       [gemmMaxRows * gemmMaxColumns]float32
	a          [(gemmDepth + lanes) * lanes]float32
	b          []float32 // [columns][depth], by panels
	panels     []gemmPanels
	next, near prefetchPlan

	low, lowU []float32 // columns of low-rank products before they are added, and x·Aᵀ; with their calls
	up, down  gemmCall
	lowPanels []gemmPanels
}

// gemmWork is a piece of work: rows lo..hi-1 of some columns of calls with the same left operand.
type gemmWork struct {
	segments []gemmSegment
	lo, hi   int
}

// gemmSegment is columns from..to-1 of a call.
type gemmSegment struct {
	call     *gemmCall
	from, to int
}

// multiply computes groups of products on the pool. The calls of a group have the same left operand and
// no further products (then), or the group has one call.
func (s *Set) multiply(o *gemmOps, groups ...[]gemmCall) {
	var works []gemmWork
	cost := 0
	for _, calls := range groups {
		works = o.cut(works, calls, len(s.pool.parts))
		for i := range calls {
			for g := &calls[i]; g != nil; g = g.then {
				cost += calls[i].m * calls[i].n * g.k
			}
		}
	}
	s.each(len(works), cost, func(i int) {
		w := s.multiplier()
		defer s.multiplying.Put(w)
		works[i].run(o, w)
		works[i].addSums(s)
	})
}

// addSums adds the results of the piece to what they are for.
func (work *gemmWork) addSums(s *Set) {
	for _, seg := range work.segments {
		g := seg.call
		if g.sum == nil {
			continue
		}
		for i := work.lo; i < work.hi; i++ {
			at := i*g.ldc + seg.from
			s.add(&g.sum[at], &g.c[at], seg.to-seg.from)
		}
	}
}

// multiplier returns the scratch of a worker.
func (s *Set) multiplier() *gemmScratch {
	w, _ := s.multiplying.Get().(*gemmScratch)
	if w == nil {
		w = &gemmScratch{}
	}
	return w
}

// roundUp returns n rounded up to a multiple of unit.
func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// cut appends the pieces of a group, about three for each thread if there are several threads. It cuts
// columns first, because pieces with the same columns pack the same panels.
func (o *gemmOps) cut(works []gemmWork, calls []gemmCall, threads int) []gemmWork {
	m, n, tall := calls[0].m, 0, len(o.tiles)-1
	for i := range calls {
		n += roundUp(calls[i].n, o.wide)
	}
	if m == 0 || n == 0 || calls[0].k == 0 && calls[0].add {
		return works
	}
	rows, columns := m, min(gemmColumns, n)
	if threads > 1 {
		columns = min(gemmColumns, max(2*o.wide, roundUp(n/(3*threads), o.wide)))
		down := max(1, min(3*threads*columns/n, m/(8*tall)))
		rows = roundUp((m+down-1)/down, tall)
	}
	var segments []gemmSegment
	left := columns
	flush := func() {
		for lo := 0; lo < m && len(segments) > 0; lo += rows {
			works = append(works, gemmWork{segments, lo, min(lo+rows, m)})
		}
		segments, left = nil, columns
	}
	for i := range calls {
		for from := 0; from < calls[i].n; {
			to := min(from+left, calls[i].n)
			segments = append(segments, gemmSegment{&calls[i], from, to})
			if left -= roundUp(to-from, o.wide); left == 0 {
				flush()
			}
			from = to
		}
	}
	flush()
	return works
}

// run computes a piece. Between tiles it prefetches the operands of the next strip of rows and of the
// next depth.
func (work *gemmWork) run(o *gemmOps, w *gemmScratch) {
	tall, across := len(o.tiles)-1, 0
	for _, s := range work.segments {
		across += (s.to - s.from + o.wide - 1) / o.wide
	}
	first := true
	for part := work.segments[0].call; part != nil; part = part.then {
		depth := gemmDepth * o.unit
		if parts := (part.k + depth - 1) / depth; parts > 1 {
			depth = roundUp((part.k+parts-1)/parts, lanes)
		}
		for k := 0; k == 0 || k < part.k; k += depth {
			n := min(depth, part.k-k)
			work.panels(o, w, part, k, n)
			work.planDepth(w, part, k+depth, min(depth, part.k-k-depth), (work.hi-work.lo+tall-1)/tall*across)
			for i := work.lo; i < work.hi; i += tall {
				work.planRows(w, part, i+tall, min(i+2*tall, work.hi), k, n, across)
				for j, s := range work.segments {
					call := *s.call
					call.a, call.near, call.add = part.a, part.near, call.add || !first
					call.strip(o, w, &w.panels[j], i, min(tall, work.hi-i), k, n)
				}
			}
			first = false
		}
	}
	w.near.reset()
	clear(w.panels) // packed memory may be unmapped
}

// panels packs the panels of depths k..k+n-1.
func (work *gemmWork) panels(o *gemmOps, w *gemmScratch, part *gemmCall, k, n int) {
	need := 0
	for _, s := range work.segments {
		need += roundUp(s.to-s.from, o.wide) * o.steps(n)
	}
	if len(w.b) < need {
		w.b = make([]float32, need)
	}
	w.panels = w.panels[:0]
	rest := w.b
	for _, s := range work.segments {
		b := s.call.b
		if len(work.segments) == 1 {
			b = part.b
		}
		p := gemmPanels{data: rest, from: s.from, to: s.to, k0: k, depth: n}
		if whole := s.call.panels; whole != nil {
			p.data, p.k0, p.depth = whole[s.from*s.call.k:], 0, s.call.k
			w.panels = append(w.panels, p)
			continue
		}
		if b.rs == 1 && n > 0 && o.fromRow == nil && ((s.to-s.from)%o.wide == 0 || s.call.padded) &&
			(4*b.cs%gemmAlias != 0 || work.hi-work.lo < gemmReuse) {
			p.whole = b
		} else {
			p.pack(o, b, s.call.pairs)
			rest = rest[roundUp(s.to-s.from, o.wide)*o.steps(n):]
		}
		w.panels = append(w.panels, p)
	}
}

// planDepth plans the prefetches of the operands of depths k..k+n-1, spread over the given number of tiles.
func (work *gemmWork) planDepth(w *gemmScratch, part *gemmCall, k, n, calls int) {
	w.next.reset()
	if n <= 0 || part.small() {
		return
	}
	for _, s := range work.segments {
		b := s.call.b
		if len(work.segments) == 1 {
			b = part.b
		}
		if s.call.pairs == nil && s.call.panels == nil {
			w.next.add(b, s.from, s.to, k, n)
		}
	}
	if part.a.rs == 1 {
		w.next.add(part.a, work.lo, work.hi, k, n)
	}
	w.next.spread(calls)
}

// small reports whether the operands and the result of a product are likely to be in a core's cache.
func (g *gemmCall) small() bool { return g.m*g.k+g.n*g.k+g.m*g.n < gemmSmall }

// planRows plans the prefetches for rows lo..hi-1.
func (work *gemmWork) planRows(w *gemmScratch, part *gemmCall, lo, hi, k, n, calls int) {
	w.near.reset()
	if hi <= lo || part.small() {
		return
	}
	for _, s := range work.segments {
		w.near.add(rowsOf(s.call.c, s.call.ldc), lo, hi, s.from, s.to-s.from)
	}
	if part.a.rs != 1 && n > 0 {
		w.near.add(part.a, lo, hi, k, n)
	}
	w.near.spread(calls)
}

// gemmPanels are columns from..to-1 of a right operand from depth k0 on, packed. A panel is as wide as a
// tile; the last one has a single group of lanes if the remaining columns fit it.
type gemmPanels struct {
	data                []float32
	from, to, k0, depth int
	whole               operand // in place of data: an operand whose rows can be read as a panel
}

// steps returns the number of steps for n elements of the reduction.
func (o *gemmOps) steps(n int) int { return (n + o.unit - 1) / o.unit }

// pack packs b, or the pairs in its place.
func (p *gemmPanels) pack(o *gemmOps, b operand, pairs *pairMatrix) {
	dst := p.data
	for j := p.from; j < p.to && p.depth > 0; {
		width := panelWidth(o, p.to-j)
		for part := 0; part < width && j+part < p.to; part += lanes {
			if pairs != nil {
				o.fromPairs(&dst[part], 4*width, &pairs.data[(j+part)/panelRows*pairs.stride+p.k0/2*pairBytes],
					p.depth/2)
				continue
			}
			packLanes(o, dst[part:], 4*width, b, j+part, min(lanes, p.to-j-part), p.k0, p.depth)
		}
		dst = dst[width*o.steps(p.depth):]
		j += width
	}
}

// packInto packs b[n,k] into dst as panels are for all of its columns and the whole reduction.
func (o *gemmOps) packInto(dst []float32, b operand, n, k int) {
	if p := (gemmPanels{data: dst, to: n, depth: k}); k > 0 {
		p.pack(o, b, nil)
	}
}

// panelWidth returns the width of the next panel if left columns remain.
func panelWidth(o *gemmOps, left int) int {
	if left <= lanes {
		return lanes
	}
	return o.wide
}

// packLanes packs columns j..j+columns-1 of b[·][k0:k0+n], at most lanes, into rows that are ldd bytes apart. The
// contents of the other lanes are unspecified, because their results are not used.
func packLanes(o *gemmOps, dst []float32, ldd int, b operand, j, columns, k0, n int) {
	if b.rs == 1 {
		o.fromColumns(&dst[0], ldd, &b.data[k0*b.cs+j], 4*b.cs, n, columns)
		return
	}
	whole := 0
	if columns == lanes {
		if whole = n &^ (lanes*o.unit - 1); whole > 0 {
			o.fromRows(&dst[0], ldd, &b.data[j*b.rs+k0], 4*b.rs, whole)
		}
	}
	if whole == n {
		return
	}
	var store [gemmDepth]float32
	for c := range columns {
		rest := b.data[(j+c)*b.rs+k0+whole:][:n-whole]
		if o.fromRow != nil {
			row := store[:o.steps(len(rest))]
			o.fromRow(&row[0], &rest[0], len(rest))
			rest = row
		}
		for k, v := range rest {
			dst[(whole/o.unit+k)*ldd/4+c] = v
		}
	}
}

// strip multiplies rows i..i+rows-1, at most those of a tile, with the panels of depths k0..k0+n-1.
func (g *gemmCall) strip(o *gemmOps, w *gemmScratch, p *gemmPanels, i, rows, k0, n int) {
	a, rs, cs := &w.zero[0], 4*g.a.rs, 4*g.a.cs
	switch {
	case n == 0:
		rs, cs = 0, 0
	case g.a.rs == 1 && g.a.cs != 1 && !g.near:
		o.fromColumns(&w.a[0], 4*lanes, &g.a.data[k0*g.a.cs+i], 4*g.a.cs, n, rows)
		a, rs, cs = &w.a[0], 4, 4*lanes
	case o.fromRow != nil:
		for r := range rows {
			o.fromRow(&w.a[r*(gemmDepth+lanes)], &g.a.data[(i+r)*g.a.rs+k0], n)
		}
		a, rs, cs = &w.a[0], 4*(gemmDepth+lanes), 4
	case fewWays && g.a.cs == 1 && rs%gemmAlias == 0 && n <= gemmDepth && p.to-p.from > lanes:
		for r := range rows {
			copy(w.a[r*(gemmDepth+lanes):], g.a.data[(i+r)*g.a.rs+k0:][:n])
		}
		a, rs = &w.a[0], 4*(gemmDepth+lanes)
	default:
		a = &g.a.data[i*g.a.rs+k0*g.a.cs]
	}
	panel, steps := 0, o.steps(n)
	for j := p.from; j < p.to; {
		width, run, count := o.wide, o.tiles[rows], 1
		if left := p.to - j; panelWidth(o, left) < o.wide {
			width, run = lanes, o.narrow[rows]
		} else {
			count = max(1, min(gemmBurst/(1+w.next.quota+w.near.quota), left/width))
		}
		w.next.issue(o, count)
		w.near.issue(o, count)
		b, ldb, step := &w.zero[0], 0, 0
		switch {
		case n == 0: // one step that adds zero
			steps = 1
		case p.whole.data != nil:
			b, ldb, step = &p.whole.data[k0*p.whole.cs+j], 4*p.whole.cs, 4*width
		default:
			b, ldb, step = &p.data[panel+(k0-p.k0)/o.unit*width], 4*width, 4*width*o.steps(p.depth)
		}
		if columns := min(width, p.to-j); columns < width {
			g.edge(w, run, i, rows, j, columns, width, a, rs, cs, b, ldb, steps)
		} else {
			init, ldi, istep := &w.zero[0], 0, 0
			switch {
			case g.add:
				init, ldi, istep = &g.c[i*g.ldc+j], 4*g.ldc, 4*width
			case g.bias != nil:
				init, istep = &g.bias[j], 4*width
			}
			run(&g.c[i*g.ldc+j], 4*g.ldc, init, ldi, istep, a, rs, cs, b, ldb, step, steps, count)
		}
		panel += count * width * o.steps(p.depth)
		j += count * width
	}
}

// edge computes a tile that reaches beyond the last column, in scratch.
func (g *gemmCall) edge(w *gemmScratch, run gemmTile, i, rows, j, columns, width int, a *float32, rs, cs int,
	b *float32, ldb, n int) {
	init, ldi := &w.zero[0], 0
	switch {
	case g.add:
		for r := range rows {
			copy(w.edge[r*width:], g.c[(i+r)*g.ldc+j:][:columns])
		}
		init, ldi = &w.edge[0], 4*width
	case g.bias != nil:
		copy(w.bias[:], g.bias[j:j+columns])
		init = &w.bias[0]
	}
	run(&w.edge[0], 4*width, init, ldi, 0, a, rs, cs, b, ldb, 0, n, 1)
	for r := range rows {
		copy(g.c[(i+r)*g.ldc+j:][:columns], w.edge[r*width:])
	}
}
