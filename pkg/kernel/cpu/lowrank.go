package cpu

import (
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Low-rank products of a batch over several adapters are many and small: a step of 64 rows over four adapters has
// nearly a thousand. What would take longest is not the arithmetic but packing the factors for each product, waking
// the pool for each half of it, and waiting for memory: a step reads the factors of all adapters, which are nearly as
// large as the quantised weights of a small model. So
//
//   - factors that do not change are packed once, into one piece of memory for an adapter, with huge pages;
//   - the A of the matrices that multiply the same x are one matrix. A rank is often less than the lanes of a register
//     or the rows too few to keep the multipliers busy, and the ranks of three matrices fill them;
//   - a piece of work is both halves of the products of a group for some rows: x·Aᵀ stays in the cache, and only one
//     loop over the pool is needed;
//   - while a piece multiplies by A, it prefetches its B, and meanwhile the A of the next piece.

// lowGroup is the A of a group of matrices with the same x, side by side.
type lowGroup struct {
	ops   *gemmOps
	data  []float32 // [I,ranks], with room for a panel after it
	ranks int       // the sum of the ranks
	owner *chunk    // of data
}

// lowInput is an A in its group.
type lowInput struct {
	*lowGroup
	from int // its first column
}

// lowOutput is a B in panels.
type lowOutput struct {
	ops   *gemmOps
	data  []float32
	owner *chunk // of data
}

const (
	lowRows    = 48                 // most rows of a block of products
	lowColumns = 512                // columns that are computed before they are added, in the first-level cache
	lowStride  = lowColumns + lanes // not a multiple of gemmAlias bytes
	lowDepth   = 96                 // steps of x·Aᵀ between two bursts of prefetches
)

// PackLowRank implements kernel.LowRanks. Products in bfloat16 are those of training, where factors change.
func (s *Set) PackLowRank(groups [][]kernel.Factors[float32]) {
	if s.UsesBFloat16() {
		return
	}
	o, need := s.dense, 0
	take := func(n int) (at int) {
		at = need
		need += roundUp(n, lanes)
		return at
	}
	var inputs []*lowGroup
	var at []int // where the A of each group goes, and then each B
	for _, group := range groups {
		g := &lowGroup{ops: o}
		columns := map[*float32]int{} // of A in the group
		for _, f := range group {
			a := unsafe.SliceData(f.A.Dense)
			from, ok := columns[a]
			if !ok {
				from = g.ranks
				columns[a] = from
				g.ranks += f.A.Rows
			}
			f.A.Packed = &lowInput{g, from}
		}
		inputs = append(inputs, g)
		at = append(at, take(g.ranks*group[0].A.Cols+o.wide))
		for _, f := range group {
			at = append(at, take(roundUp(f.B.Rows, o.wide)*f.B.Cols))
		}
	}
	data, owner := s.lowMemory(need)
	for i, group := range groups {
		g := inputs[i]
		g.data, g.owner, at = data[at[0]:][:g.ranks*group[0].A.Cols+o.wide], owner, at[1:]
		for _, f := range group {
			in := f.A.Packed.(*lowInput)
			for r := range f.A.Rows {
				for j, v := range f.A.Dense[r*f.A.Cols : (r+1)*f.A.Cols] {
					g.data[j*g.ranks+in.from+r] = v
				}
			}
			out := data[at[0]:][:roundUp(f.B.Rows, o.wide)*f.B.Cols]
			o.packInto(out, rowsOf(f.B.Dense, f.B.Cols), f.B.Rows, f.B.Cols)
			f.B.Packed, at = &lowOutput{o, out, owner}, at[1:]
		}
		for _, f := range group {
			f.A.Dense, f.B.Dense = nil, nil
		}
	}
}

// LowScratch reports that LowRanks uses U and V.
func (*Set) LowScratch() bool { return true }

// lowMemory returns memory for n numbers of an adapter, and its owner. A small adapter is not worth a huge page.
func (s *Set) lowMemory(n int) ([]float32, *chunk) {
	if 4*n < hugePage/2 {
		return make([]float32, n), nil
	}
	c := newChunk(4 * n)
	return unsafe.Slice((*float32)(unsafe.Pointer(&c.data[0])), n), c
}

// lowCalls returns the two halves of a product: u = x·Aᵀ and v = u·Bᵀ.
func (s *Set) lowCalls(p *kernel.LowRank[float32]) (up, down gemmCall) {
	t, in, rank, out := p.Rows, p.A.Cols, p.A.Rows, p.B.Rows
	up = gemmCall{c: p.U, ldc: rank, a: rowsOf(p.X, in), b: rowsOf(p.A.Dense, in), m: t, n: rank, k: in}
	down = gemmCall{c: p.V, ldc: out, a: rowsOf(p.U, rank), b: rowsOf(p.B.Dense, rank), m: t, n: out, k: rank,
		sum: p.Y}
	if a := s.input(p); a != nil {
		up.b, up.padded = columnsOf(a.data[a.from:], a.ranks), true
		down.panels = p.B.Packed.(*lowOutput).data
	}
	return up, down
}

// input returns the packed A of a product, or nil.
func (s *Set) input(p *kernel.LowRank[float32]) *lowInput {
	a, _ := p.A.Packed.(*lowInput)
	if a != nil && a.ops.wide != s.dense.wide {
		panic("low rank: the factors were packed for other instructions")
	}
	return a
}

// LowRanks computes the products of many adapters in one loop over the pool. If there are fewer blocks of rows than
// threads, as for a single row, or the factors are not packed, it takes two loops, over columns: all x·Aᵀ, then all
// u·Bᵀ.
func (s *Set) LowRanks(products []kernel.LowRank[float32]) {
	cost, packed := 0, true
	for i := range products {
		p := &products[i]
		t, in, rank, out := p.Rows, p.A.Cols, p.A.Rows, p.B.Rows
		must("low rank", "x", len(p.X), t*in)
		must("low rank", "u", len(p.U), t*rank)
		must("low rank", "v", len(p.V), t*out)
		must("low rank", "y", len(p.Y), t*out)
		must("low rank", "columns of B", p.B.Cols, rank)
		cost += t * rank * (in + out)
		packed = packed && s.input(p) != nil
	}
	list := s.cuts.Get().(*[]piece)
	defer s.cuts.Put(list)
	threads := len(s.pool.parts)
	if *list = (*list)[:0]; packed {
		*list = s.cutLow(*list, products, threads)
	}
	if !packed || len(*list) < threads && cost >= small {
		s.lowByColumns(products)
		return
	}
	s.each(len(*list), cost, func(i int) {
		w := s.multiplier()
		defer s.multiplying.Put(w)
		at, next := (*list)[i], (*lowGroup)(nil)
		if i+1 < len(*list) && (*list)[i+1].product != at.product {
			next = s.input(&products[(*list)[i+1].product]).lowGroup
		}
		s.lowBlock(w, lowRun(products[at.product:]), at.lo, at.hi, next)
	})
}

// lowRun returns the products at the beginning of a list that are computed together: those of a group with the same
// rows of x.
func lowRun(products []kernel.LowRank[float32]) []kernel.LowRank[float32] {
	first := &products[0]
	a := first.A.Packed.(*lowInput)
	n := 1
	for ; n < len(products); n++ {
		p, last := &products[n], &products[n-1]
		b, before := p.A.Packed.(*lowInput), last.A.Packed.(*lowInput).from
		if b.lowGroup != a.lowGroup || p.Rows != first.Rows || unsafe.SliceData(p.X) != unsafe.SliceData(first.X) ||
			b.from < before || b.from == before && p.Scale != last.Scale {
			break
		}
	}
	return products[:n]
}

// cutLow appends blocks of rows, about three for each thread if products have as many rows. If there are fewer groups
// than threads, blocks may be as small as half a tile.
func (s *Set) cutLow(pieces []piece, products []kernel.LowRank[float32], threads int) []piece {
	groups, tall := 0, len(s.dense.tiles)-1
	for i := 0; i < len(products); i += len(lowRun(products[i:])) {
		groups++
	}
	for i := 0; i < len(products); i += len(lowRun(products[i:])) {
		t := products[i].Rows
		blocks := max((t+lowRows-1)/lowRows, min((3*threads-1)/groups+1, t/(2*tall)), 1)
		if groups < threads {
			blocks = max(blocks, min((threads+groups-1)/groups, t/max(1, tall/2)))
		}
		for lo, left := 0, blocks; left > 0; left-- {
			hi := lo + (t-lo+left-1)/left
			if hi > lo {
				pieces = append(pieces, piece{i, lo, hi})
			}
			lo = hi
		}
	}
	return pieces
}

// lowBlock computes rows lo..hi-1 of products with the same A. next is the A of the next block, or nil.
func (s *Set) lowBlock(w *gemmScratch, products []kernel.LowRank[float32], lo, hi int, next *lowGroup) {
	p, o := &products[0], s.dense
	g, rows, in := p.A.Packed.(*lowInput).lowGroup, hi-lo, p.A.Cols
	width := roundUp(g.ranks, lanes)
	if need := rows * width; len(w.lowU) < need {
		w.lowU = make([]float32, need)
	}
	if len(w.low) == 0 {
		w.low, w.lowPanels = make([]float32, gemmMaxRows*lowStride), make([]gemmPanels, 1)
	}
	if in == 0 || width == 0 {
		return // a sum of nothing
	}
	strips := (rows + len(o.tiles) - 2) / (len(o.tiles) - 1)
	panels := &w.lowPanels[0]

	// u = x·Aᵀ. Columns after the last rank are computed from what follows in memory, and not used.
	w.next.reset()
	for i := range products {
		w.next.run(products[i].B.Packed.(*lowOutput).data)
	}
	w.next.spread((in + lowDepth - 1) / lowDepth * strips * ((width + o.wide - 1) / o.wide))
	w.near.reset()
	w.up = gemmCall{c: w.lowU, ldc: width, a: rowsOf(p.X[lo*in:], in), m: rows, n: width, k: in}
	*panels = gemmPanels{to: width, whole: columnsOf(g.data, g.ranks)}
	for k := 0; k < in; k += lowDepth {
		w.up.add = k > 0
		for i, left := 0, strips; left > 0; left-- {
			n := (rows - i + left - 1) / left
			w.up.strip(o, w, panels, i, n, k, min(lowDepth, in-k))
			i += n
		}
	}
	s.scaleLow(w.lowU, products, rows, width)

	// y += u·Bᵀ, some columns at a time.
	w.next.reset()
	calls := 0
	for i := range products {
		calls += strips * (products[i].B.Rows + o.wide - 1) / o.wide
	}
	if next != nil {
		w.next.run(next.data)
		w.next.spread(calls)
	}
	for i := range products {
		s.lowAdd(w, &products[i], lo, rows, width, strips)
	}
	w.next.reset()
	w.up, w.down, *panels = gemmCall{}, gemmCall{}, gemmPanels{} // their memory may be unmapped with the adapter
}

// scaleLow multiplies u by the scale of each product.
func (s *Set) scaleLow(u []float32, products []kernel.LowRank[float32], rows, width int) {
	done := 0 // columns; products of a fused matrix share theirs
	for i := range products {
		p := &products[i]
		from := p.A.Packed.(*lowInput).from
		if from < done {
			continue
		}
		done = from + p.A.Rows
		for r := range rows {
			s.Scale(u[r*width+from:r*width+done], p.Scale)
		}
	}
}

// lowAdd adds the second half of a product to rows of y from lo on.
func (s *Set) lowAdd(w *gemmScratch, p *kernel.LowRank[float32], lo, rows, width, strips int) {
	rank, out, panels := p.A.Rows, p.B.Rows, &w.lowPanels[0]
	b, u := p.B.Packed.(*lowOutput).data, w.lowU[p.A.Packed.(*lowInput).from:]
	for from := 0; from < out; from += lowColumns {
		n := min(lowColumns, out-from)
		*panels = gemmPanels{data: b[from*rank:], to: n, depth: rank}
		for i, left := 0, strips; left > 0; left-- {
			m := (rows - i + left - 1) / left
			w.down = gemmCall{c: w.low, ldc: lowStride, a: rowsOf(u[i*width:], width), m: m, n: n, k: rank}
			w.down.strip(s.dense, w, panels, 0, m, 0, rank)
			for r := range m {
				s.add(&p.Y[(lo+i+r)*out+from], &w.low[r*lowStride], n)
			}
			i += m
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
