package cpu

import "github.com/lamina-mesh/lamina/pkg/kernel"

// Low-rank products of a batch over several adapters are many and small: a step of 64 rows over four adapters has
// nearly a thousand. What would take longest is not the arithmetic but packing the factors for each product, and
// waking the pool for each half of it. So factors that do not change are packed once, and a piece of work is both
// halves of the product of some rows: x·Aᵀ stays in the cache, and only one loop over the pool is needed.

// lowFactor is a packed factor of a low-rank product.
type lowFactor struct {
	ops  *gemmOps  // for which it is packed
	data []float32 // Aᵀ[I,r] with room for a panel after it, or B in panels
}

// Rows and columns of a block of a low-rank product. Its results stay in the second-level cache until they are added.
const (
	lowRows    = 48
	lowColumns = 512
	lowStride  = lowColumns + lanes // not a multiple of gemmAlias bytes
)

// PackLowRank implements kernel.LowRanks. Products in bfloat16 are those of training, where factors change.
func (s *Set) PackLowRank(a, b *kernel.Matrix[float32]) {
	if s.UsesBFloat16() {
		return
	}
	o := s.dense
	if a.Packed == nil {
		// A row of a panel is often wider than the rank. Read in place it goes on into the next row, whose products
		// are not used, and after the last row into the room.
		t := make([]float32, len(a.Dense)+o.wide)
		for i := range a.Rows {
			for j, v := range a.Dense[i*a.Cols : (i+1)*a.Cols] {
				t[j*a.Rows+i] = v
			}
		}
		a.Packed, a.Dense = &lowFactor{o, t}, nil
	}
	if b.Packed == nil {
		b.Packed, b.Dense = &lowFactor{o, o.packWhole(rowsOf(b.Dense, b.Cols), b.Rows, b.Cols)}, nil
	}
}

// lowCalls returns the two halves of a product: u = x·Aᵀ and v = u·Bᵀ.
func (s *Set) lowCalls(p *kernel.LowRank[float32]) (up, down gemmCall) {
	t, in, rank, out := p.Rows, p.A.Cols, p.A.Rows, p.B.Rows
	up = gemmCall{c: p.U, ldc: rank, a: rowsOf(p.X, in), b: rowsOf(p.A.Dense, in), m: t, n: rank, k: in}
	down = gemmCall{c: p.V, ldc: out, a: rowsOf(p.U, rank), b: rowsOf(p.B.Dense, rank), m: t, n: out, k: rank,
		sum: p.Y}
	if f := s.factor(p.A); f != nil {
		up.b, up.padded = columnsOf(f.data, rank), true
	}
	if f := s.factor(p.B); f != nil {
		down.panels = f.data
	}
	return up, down
}

// factor returns the packed form of a matrix, or nil.
func (s *Set) factor(m *kernel.Matrix[float32]) *lowFactor {
	f, _ := m.Packed.(*lowFactor)
	if f != nil && f.ops.wide != s.dense.wide {
		panic("low rank: the factors were packed for other instructions")
	}
	return f
}

// LowRanks computes the products of many adapters in one loop over the pool. If there are fewer blocks of rows than
// threads, as for a single row, it takes two loops, over columns: all x·Aᵀ, then all u·Bᵀ.
func (s *Set) LowRanks(products []kernel.LowRank[float32]) {
	cost := 0
	for i := range products {
		p := &products[i]
		t, in, rank, out := p.Rows, p.A.Cols, p.A.Rows, p.B.Rows
		must("low rank", "x", len(p.X), t*in)
		must("low rank", "u", len(p.U), t*rank)
		must("low rank", "v", len(p.V), t*out)
		must("low rank", "y", len(p.Y), t*out)
		must("low rank", "columns of B", p.B.Cols, rank)
		cost += t * rank * (in + out)
	}
	list := s.cuts.Get().(*[]piece)
	defer s.cuts.Put(list)
	threads := len(s.pool.parts)
	*list = s.cutLow((*list)[:0], products, threads)
	if len(*list) < threads && cost >= small {
		s.lowByColumns(products)
		return
	}
	s.each(len(*list), cost, func(i int) {
		w := s.multiplier()
		defer s.multiplying.Put(w)
		at := (*list)[i]
		s.lowBlock(w, &products[at.product], at.lo, at.hi)
	})
}

// cutLow appends blocks of rows, about three for each thread if products have as many rows.
func (s *Set) cutLow(pieces []piece, products []kernel.LowRank[float32], threads int) []piece {
	tall := len(s.dense.tiles) - 1
	for i := range products {
		t := products[i].Rows
		blocks := max((t+lowRows-1)/lowRows, min((3*threads-1)/len(products)+1, t/(2*tall)), 1)
		rows := roundUp((t+blocks-1)/blocks, tall)
		for lo := 0; lo < t; lo += rows {
			pieces = append(pieces, piece{i, lo, min(lo+rows, t)})
		}
	}
	return pieces
}

// lowBlock computes rows lo..hi-1 of a product, some columns at a time.
func (s *Set) lowBlock(w *gemmScratch, p *kernel.LowRank[float32], lo, hi int) {
	rank, out := p.A.Rows, p.B.Rows
	if rank == 0 || out == 0 {
		return
	}
	if len(w.low) == 0 {
		w.low, w.lowSegments = make([]float32, (lowRows+gemmMaxRows)*lowStride), make([]gemmSegment, 1)
	}
	w.up, w.down = s.lowCalls(p)
	w.lowSegments[0] = gemmSegment{&w.up, 0, rank}
	up := gemmWork{w.lowSegments, lo, hi}
	up.run(s.dense, w)
	s.Scale(p.U[lo*rank:hi*rank], p.Scale)

	u, factor, panels := rowsOf(p.U[lo*rank:], rank), w.down.b, w.down.panels
	for from := 0; from < out; from += lowColumns {
		n := min(lowColumns, out-from)
		w.down = gemmCall{c: w.low, ldc: lowStride, a: u, m: hi - lo, n: n, k: rank}
		if panels != nil {
			w.down.panels = panels[from*rank:]
		} else {
			w.down.b = operand{factor.data[from*rank:], factor.rs, factor.cs}
		}
		w.lowSegments[0] = gemmSegment{&w.down, 0, n}
		down := gemmWork{w.lowSegments, 0, hi - lo}
		down.run(s.dense, w)
		for i := range hi - lo {
			s.add(&p.Y[(lo+i)*out+from], &w.low[i*lowStride], n)
		}
	}
}

// lowByColumns computes products in two loops over the pool.
func (s *Set) lowByColumns(products []kernel.LowRank[float32]) {
	up, down := make([]gemmCall, 0, len(products)), make([]gemmCall, 0, len(products))
	for i := range products {
		if products[i].Rows > 0 {
			u, d := s.lowCalls(&products[i])
			up, down = append(up, u), append(down, d)
		}
	}
	groups := make([][]gemmCall, len(up))
	for i := range up {
		groups[i] = up[i : i+1]
	}
	s.multiply(s.dense, groups...)
	for i := range products {
		s.Scale(products[i].U, products[i].Scale)
	}
	for i := range down {
		groups[i] = down[i : i+1]
	}
	s.multiply(s.dense, groups...)
}
