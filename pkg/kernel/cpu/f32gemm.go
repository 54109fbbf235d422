package cpu

import "unsafe"

// Products of float32 matrices. Every output is one chain of fused multiply-adds over
// the reduction, in order, that starts from zero, a bias or what the output holds. So
// its bits depend neither on tiles and blocks nor on threads, and adding two products
// one after the other is one longer chain.

const (
	gemmDepth   = 256 // of the reduction, at most, in a packed block of the right side
	gemmColumns = 512 // of a packed block, at most
	gemmWidest  = 32  // columns of any family's panel
	gemmTallest = 12  // rows of any family's tile
)

// gemmTile computes c = init + a·b for as many rows and columns as it is made for.
// Element (i, k) of a lies i·rs + k·cs bytes on; rows of b lie ldb bytes apart.
type gemmTile func(c *float32, ldc int, init *float32, ldi int, a *float32, rs, cs int, b *float32, ldb, k int)

// gemmOps are the loops of one instruction family.
type gemmOps struct {
	wide   int        // columns of a panel
	tiles  []gemmTile // of whole panels, by rows
	narrow []gemmTile // of lanes columns

	// fromRows makes k columns of lanes rows, fromColumns copies up to lanes columns of
	// k rows; each row of a panel has room for lanes.
	fromRows    func(dst *float32, ldd int, src *float32, lds, k int)
	fromColumns func(dst *float32, ldd int, src *float32, lds, k, columns int)
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
	a          [gemmDepth * lanes]float32
	b          []float32 // [columns][depth], by panels
}

// multiply spreads a product over the pool.
func (s *Set) multiply(g *gemmCall) {
	if g.m == 0 || g.n == 0 {
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

// block computes rows lo..hi-1 and columns from..to-1.
func (g *gemmCall) block(o *gemmOps, w *gemmScratch, lo, hi, from, to int) {
	depth := gemmDepth
	if parts := (g.k + gemmDepth - 1) / gemmDepth; parts > 1 {
		depth = roundUp((g.k+parts-1)/parts, lanes)
	}
	if need := roundUp(to-from, lanes) * min(depth, g.k); len(w.b) < need {
		w.b = make([]float32, need)
	}
	tall, call := len(o.tiles)-1, *g
	for k := 0; k == 0 || k < g.k; k += depth {
		p := gemmPanels{w.b, from, to, k, min(depth, g.k-k)}
		p.pack(o, g.b)
		for i := lo; i < hi; i += tall {
			call.strip(o, w, &p, i, min(tall, hi-i), k, p.depth)
		}
		call.add = true
	}
}

// gemmPanels are columns from..to-1 of a right side at depths k0 and on, packed. A panel
// is as wide as a tile, or has one group of lanes where the rest fits it.
type gemmPanels struct {
	data                []float32
	from, to, k0, depth int
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
	case g.a.rs == 1 && g.a.cs != 1 && !g.near:
		o.fromColumns(&w.a[0], 4*lanes, &g.a.data[k0*g.a.cs+i], 4*g.a.cs, n, rows)
		a, rs, cs = &w.a[0], 4, 4*lanes
	default:
		a = &g.a.data[i*g.a.rs+k0*g.a.cs]
	}
	panel := unsafe.SliceData(p.data)
	for j := p.from; j < p.to; {
		width, run := o.wide, o.tiles[rows]
		if panelWidth(o, p.to-j) < o.wide {
			width, run = lanes, o.narrow[rows]
		}
		b := at(panel, (k0-p.k0)*width)
		if columns := min(width, p.to-j); columns < width {
			g.edge(w, run, i, rows, j, columns, width, a, rs, cs, b, n)
		} else {
			init, ldi := &w.zero[0], 0
			switch {
			case g.add:
				init, ldi = &g.c[i*g.ldc+j], 4*g.ldc
			case g.bias != nil:
				init = &g.bias[j]
			}
			run(&g.c[i*g.ldc+j], 4*g.ldc, init, ldi, a, rs, cs, b, 4*width, n)
		}
		panel = at(panel, width*p.depth)
		j += width
	}
}

// edge computes a tile of which only some columns exist, by way of scratch.
func (g *gemmCall) edge(w *gemmScratch, run gemmTile, i, rows, j, columns, width int, a *float32, rs, cs int, b *float32, n int) {
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
	run(&w.edge[0], 4*width, init, ldi, a, rs, cs, b, 4*width, n)
	for r := range rows {
		copy(g.c[(i+r)*g.ldc+j:][:columns], w.edge[r*width:])
	}
}

// gemmPortable are the loops in plain Go.
func gemmPortable() gemmOps {
	o := gemmOps{
		wide: lanes, tiles: []gemmTile{nil},
		fromRows: func(dst *float32, ldd int, src *float32, lds, k int) {
			for c := range lanes {
				for i, v := range unsafe.Slice(at(src, c*lds/4), k) {
					*at(dst, i*ldd/4+c) = v
				}
			}
		},
		fromColumns: func(dst *float32, ldd int, src *float32, lds, k, columns int) {
			for i := range k {
				copy(unsafe.Slice(at(dst, i*ldd/4), columns), unsafe.Slice(at(src, i*lds/4), columns))
			}
		},
	}
	for rows := 1; rows <= 4; rows++ {
		o.tiles = append(o.tiles, func(c *float32, ldc int, init *float32, ldi int, a *float32, rs, cs int, b *float32, ldb, k int) {
			for i := range rows {
				var acc [lanes]float32
				copy(acc[:], unsafe.Slice(at(init, i*ldi/4), lanes))
				for p := range k {
					v := *at(a, (i*rs+p*cs)/4)
					for j, w := range unsafe.Slice(at(b, p*ldb/4), lanes) {
						acc[j] = fma32(v, w, acc[j])
					}
				}
				copy(unsafe.Slice(at(c, i*ldc/4), lanes), acc[:])
			}
		})
	}
	o.narrow = o.tiles
	return o
}
