package cpu

// Products of float32 matrices. Every output is one chain of fused multiply-adds over
// the reduction, in order, that starts from zero, a bias or what the output holds. So
// its bits depend neither on tiles and blocks nor on threads, and adding two products
// one after the other is one longer chain.

const (
	gemmDepth   = 256  // of the reduction, at most, in a packed block of the right side
	gemmColumns = 512  // of a packed block, at most
	gemmAlias   = 2048 // bytes between rows that meet on the same lines of a first cache
	gemmBurst   = 24   // lines that are asked for at once
	gemmWidest  = 32   // columns of any family's panel
	gemmTallest = 12   // rows of any family's tile
)

// gemmTile computes c = init + a·b for as many rows and columns as it is made for, and
// for further panels, whose columns of c follow, whose b lie step bytes and whose init
// istep bytes on. Element (i, k) of a lies i·rs + k·cs bytes on; rows of b lie ldb bytes
// apart. k is at least 1.
type gemmTile func(c *float32, ldc int, init *float32, ldi, istep int, a *float32, rs, cs int, b *float32, ldb, step, k, panels int)

// gemmOps are the loops of one instruction family.
type gemmOps struct {
	wide   int        // columns of a panel
	tiles  []gemmTile // of whole panels, by rows
	narrow []gemmTile // of lanes columns

	// fromRows makes k columns of lanes rows, fromColumns copies up to lanes columns of
	// k rows; each row of a panel has room for lanes.
	fromRows    func(dst *float32, ldd int, src *float32, lds, k int)
	fromColumns func(dst *float32, ldd int, src *float32, lds, k, columns int)

	// prefetch asks for lines of 64 bytes of rows ld bytes apart.
	prefetch func(p uintptr, ld, rows, lines int)
}

// operand is a side of a product: element (i, k) is data[i*rs+k*cs], k being the
// reduction's. One of the strides is 1.
type operand struct {
	data   []float32
	rs, cs int
}

// rowsOf is a matrix whose rows run along the reduction, columnsOf one whose columns do.
func rowsOf(x []float32, ld int) operand    { return operand{x, ld, 1} }
func columnsOf(x []float32, ld int) operand { return operand{x, 1, ld} }

// gemmCall is a product c[m,n] = start + a[m,k]·b[n,k]ᵀ.
type gemmCall struct {
	c       []float32
	ldc     int
	add     bool      // start from what c holds
	bias    []float32 // or from this [n], if it is not nil; else from zero
	a, b    operand
	near    bool // a is in the caches: read it where it lies
	m, n, k int
}

// gemmScratch is a worker's.
type gemmScratch struct {
	zero, bias [gemmWidest]float32
	edge       [gemmTallest * gemmWidest]float32
	a          [(gemmDepth + lanes) * lanes]float32
	b          []float32 // [columns][depth], by panels
	next, near soon
}

// multiply spreads a product over the pool.
func (s *Set) multiply(g *gemmCall) {
	if g.m == 0 || g.n == 0 || g.k == 0 && g.add {
		return
	}
	rows, columns := g.m, min(gemmColumns, roundUp(g.n, s.gemm.wide))
	if parts := len(s.pool.parts); parts > 1 {
		rows, columns = g.pieces(3*parts, s.gemm.wide, len(s.gemm.tiles)-1)
	}
	across := (g.n + columns - 1) / columns
	s.each((g.m+rows-1)/rows*across, g.m*g.n*g.k, func(i int) {
		w := s.multiplier()
		defer s.multiplying.Put(w)
		lo, from := i/across*rows, i%across*columns
		g.block(&s.gemm, w, lo, min(lo+rows, g.m), from, min(from+columns, g.n))
	})
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// pieces are the rows and columns of a piece of work, so that there are about count:
// columns are cut first, since rows that are cut need the same panels.
func (g *gemmCall) pieces(count, wide, tall int) (rows, columns int) {
	columns = min(gemmColumns, max(2*wide, roundUp(g.n/count, wide)))
	across := (g.n + columns - 1) / columns
	down := max(1, min(count/across, g.m/(8*tall)))
	return roundUp((g.m+down-1)/down, tall), columns
}

func (s *Set) multiplier() *gemmScratch {
	w, _ := s.multiplying.Get().(*gemmScratch)
	if w == nil {
		w = &gemmScratch{}
	}
	return w
}

// block computes rows lo..hi-1 and columns from..to-1. What the next strip and the next
// depth need is asked for in between.
func (g *gemmCall) block(o *gemmOps, w *gemmScratch, lo, hi, from, to int) {
	depth := gemmDepth
	if parts := (g.k + gemmDepth - 1) / gemmDepth; parts > 1 {
		depth = roundUp((g.k+parts-1)/parts, lanes)
	}
	if need := roundUp(to-from, lanes) * min(depth, g.k); len(w.b) < need {
		w.b = make([]float32, need)
	}
	tall, call, across := len(o.tiles)-1, *g, (to-from+o.wide-1)/o.wide
	for k := 0; k == 0 || k < g.k; k += depth {
		p := gemmPanels{data: w.b, from: from, to: to, k0: k, depth: min(depth, g.k-k)}
		if g.b.rs == 1 && p.depth > 0 && (to-from)%o.wide == 0 {
			p.whole = g.b
		} else {
			p.pack(o, g.b)
		}
		w.next.reset()
		if n := min(depth, g.k-k-depth); n > 0 {
			w.next.add(g.b, from, to, k+depth, n)
			if g.a.rs == 1 {
				w.next.add(g.a, lo, hi, k+depth, n)
			}
		}
		w.next.share((hi - lo + tall - 1) / tall * across)
		for i := lo; i < hi; i += tall {
			w.near.reset()
			if end := min(i+2*tall, hi); end > i+tall {
				if g.a.rs != 1 {
					w.near.add(g.a, i+tall, end, k, p.depth)
				}
				w.near.add(rowsOf(g.c, g.ldc), i+tall, end, from, to-from)
			}
			w.near.share(across)
			call.strip(o, w, &p, i, min(tall, hi-i), k, p.depth)
		}
		call.add = true
	}
	w.near.reset()
}

// gemmPanels are columns from..to-1 of a right side at depths k0 and on, packed. A panel
// is as wide as a tile, or has one group of lanes where the rest fits it.
type gemmPanels struct {
	data                []float32
	from, to, k0, depth int
	whole               operand // instead of data: rows that already run along the columns
}

func (p *gemmPanels) pack(o *gemmOps, b operand) {
	dst := p.data
	for j := p.from; j < p.to && p.depth > 0; {
		width := panelWidth(o, p.to-j)
		for part := 0; part < width && j+part < p.to; part += lanes {
			packLanes(o, dst[part:], 4*width, b, j+part, min(lanes, p.to-j-part), p.k0, p.depth)
		}
		dst = dst[width*p.depth:]
		j += width
	}
}

func panelWidth(o *gemmOps, left int) int {
	if left <= lanes {
		return lanes
	}
	return o.wide
}

// packLanes packs columns j..j+columns-1, at most lanes, of b[·][k0:k0+n] into rows ldd
// bytes apart. What is beyond them is of no account.
func packLanes(o *gemmOps, dst []float32, ldd int, b operand, j, columns, k0, n int) {
	if b.rs == 1 {
		o.fromColumns(&dst[0], ldd, &b.data[k0*b.cs+j], 4*b.cs, n, columns)
		return
	}
	whole := 0
	if columns == lanes {
		if whole = n &^ (lanes - 1); whole > 0 {
			o.fromRows(&dst[0], ldd, &b.data[j*b.rs+k0], 4*b.rs, whole)
		}
	}
	for c := range columns {
		for k, v := range b.data[(j+c)*b.rs+k0+whole : (j+c)*b.rs+k0+n] {
			dst[(whole+k)*ldd/4+c] = v
		}
	}
}

// strip multiplies rows i..i+rows-1, as many as a tile has at most, at depths k0..k0+n-1
// by panels that hold them.
func (g *gemmCall) strip(o *gemmOps, w *gemmScratch, p *gemmPanels, i, rows, k0, n int) {
	a, rs, cs := &w.zero[0], 4*g.a.rs, 4*g.a.cs
	switch {
	case n == 0:
		rs, cs = 0, 0
	case g.a.rs == 1 && g.a.cs != 1 && !g.near:
		o.fromColumns(&w.a[0], 4*lanes, &g.a.data[k0*g.a.cs+i], 4*g.a.cs, n, rows)
		a, rs, cs = &w.a[0], 4, 4*lanes
	case g.a.cs == 1 && rs%gemmAlias == 0 && n <= gemmDepth && p.to-p.from > lanes:
		for r := range rows {
			copy(w.a[r*(gemmDepth+lanes):], g.a.data[(i+r)*g.a.rs+k0:][:n])
		}
		a, rs = &w.a[0], 4*(gemmDepth+lanes)
	default:
		a = &g.a.data[i*g.a.rs+k0*g.a.cs]
	}
	panel := 0
	for j := p.from; j < p.to; {
		width, run, count := o.wide, o.tiles[rows], 1
		if left := p.to - j; panelWidth(o, left) < o.wide {
			width, run = lanes, o.narrow[rows]
		} else {
			count = max(1, min(gemmBurst/(1+w.next.quota+w.near.quota), left/width))
		}
		w.next.ask(o, count)
		w.near.ask(o, count)
		b, ldb, step := &w.zero[0], 0, 0
		switch {
		case n == 0: // one step that adds nothing
			n = 1
		case p.whole.data != nil:
			b, ldb, step = &p.whole.data[k0*p.whole.cs+j], 4*p.whole.cs, 4*width
		default:
			b, ldb, step = &p.data[panel+(k0-p.k0)*width], 4*width, 4*width*p.depth
		}
		if columns := min(width, p.to-j); columns < width {
			g.edge(w, run, i, rows, j, columns, width, a, rs, cs, b, ldb, n)
		} else {
			init, ldi, istep := &w.zero[0], 0, 0
			switch {
			case g.add:
				init, ldi, istep = &g.c[i*g.ldc+j], 4*g.ldc, 4*width
			case g.bias != nil:
				init, istep = &g.bias[j], 4*width
			}
			run(&g.c[i*g.ldc+j], 4*g.ldc, init, ldi, istep, a, rs, cs, b, ldb, step, n, count)
		}
		panel += count * width * p.depth
		j += count * width
	}
}

// edge computes a tile of which only some columns exist, by way of scratch.
func (g *gemmCall) edge(w *gemmScratch, run gemmTile, i, rows, j, columns, width int, a *float32, rs, cs int, b *float32, ldb, n int) {
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
