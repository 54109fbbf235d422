package cpu

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// MatMul computes y[T,N] = x[T,I]·Wᵀ + bias[N].
func (s *Set) MatMul(y, x kernel.Buffer[float32], w *kernel.Matrix[float32], bias kernel.Buffer[float32], t int) {
	s.MatMuls(x, t, kernel.Product[float32]{Y: y, W: w, Bias: bias})
}

// MatMuls computes several products of one x. Products of quantised weights share the quantised x and
// one loop over all their panels.
func (s *Set) MatMuls(x kernel.Buffer[float32], t int, products ...kernel.Product[float32]) {
	for _, p := range products {
		must("matmul", "x", len(x), t*p.W.Cols)
		must("matmul", "y", len(p.Y), t*p.W.Rows)
		if p.Bias != nil {
			must("matmul", "bias", len(p.Bias), p.W.Rows)
		}
	}
	if t == 0 {
		return
	}
	for lo := 0; lo < len(products); {
		method, hi := methodOf(products[lo].W), lo+1
		for hi < len(products) && methodOf(products[hi].W) == method {
			hi++
		}
		switch run := products[lo:hi]; method {
		case byBlocks:
			s.quantised(x, t, run)
		case byPairs:
			s.paired(x, t, run)
		default:
			s.floats(x, t, run)
		}
		lo = hi
	}
}

// The methods by which a matrix is multiplied.
const (
	byFloats = iota // as float32
	byPairs         // as bfloat16
	byBlocks        // as quantised blocks
)

// methodOf returns the method for a matrix.
func methodOf(w *kernel.Matrix[float32]) int {
	switch {
	case packable(w):
		return byBlocks
	case pairable(w):
		return byPairs
	}
	return byFloats
}

// piece is a run of panels of one product.
type piece struct {
	product int
	lo, hi  int
}

// pieceBytes is about the number of bytes of weights that a thread takes at a time in a matrix-vector
// product.
const pieceBytes = 16 << 10

// quantised computes products of quantised weights.
func (s *Set) quantised(x []float32, t int, products []kernel.Product[float32]) {
	cols := products[0].W.Cols
	acts := s.activations(x, t, cols)
	defer s.give(acts)
	list := s.cuts.Get().(*[]piece)
	defer s.cuts.Put(list)
	pieces, cost := (*list)[:0], 0
	for i, p := range products {
		m, ok := p.W.Packed.(*packed)
		if !ok {
			m = newPacked(p.W)
		}
		step := 1
		if t == 1 {
			step = max(1, pieceBytes/m.stride)
		}
		for lo := 0; lo < m.panels; lo += step {
			pieces = append(pieces, piece{i, lo, min(lo+step, m.panels)})
		}
		cost += t * p.W.Rows * cols
	}
	*list = pieces
	s.each(len(pieces), cost/8, func(i int) {
		pieces := *list
		p := &products[pieces[i].product]
		m, _ := p.W.Packed.(*packed)
		if m != nil {
			s.panels(p, m, m.data[pieces[i].lo*m.stride:], bytesOf(*acts), t, pieces[i].lo, pieces[i].hi)
			return
		}
		m = newPacked(p.W) // not packed at load: a panel at a time
		b := s.buffer(m.stride / 4)
		defer s.give(b)
		for panel := pieces[i].lo; panel < pieces[i].hi; panel++ {
			clear(*b)
			packPanel(m, bytesOf(*b), p.W, panel)
			s.panels(p, m, bytesOf(*b), bytesOf(*acts), t, panel, panel+1)
		}
	})
}

// actMargin is the number of bytes that a loop may read past the last row of a group of activations.
const actMargin = tileRows * 128

// activations quantises x[T,cols] in groups of tileRows rows; the last group has the remaining ones.
// The blocks of the rows of a group are interleaved: block 0 of every row, block 1 of every row, ...
func (s *Set) activations(x []float32, t, cols int) *[]float32 {
	size, blocks := s.quant.act, cols/blockLen
	b := s.buffer((t*blocks*size + actMargin) / 4)
	out := bytesOf(*b)
	s.each((t+tileRows-1)/tileRows, t*cols, func(i int) {
		row := i * tileRows
		rows := min(tileRows, t-row)
		for r := range rows {
			s.quant.quantize(&out[(row*blocks+r)*size], rows*size, &x[(row+r)*cols], blocks)
		}
	})
	return b
}

// panels computes panels lo to hi-1 of one product. The first of them is at w. The fastest loop depends on the number
// of rows of activations. One row is bound by memory: packed codes are read once and unpacked in registers. For a
// small number of rows this unpacking is shared by up to rowsMax rows. For more rows each panel is unpacked to the
// cache and multiplied by tiles of rows, if there is a loop for that.
func (s *Set) panels(p *kernel.Product[float32], m *packed, w, acts []byte, t, lo, hi int) {
	var sums spill
	switch gemv, packedRows := s.quant.gemv[m.dtype], s.quant.packedRows[m.dtype]; {
	case t == 1 && gemv != nil:
		s.vector(p, m, w, acts, lo, hi)
	case packedRows != nil && (t < s.quant.unpackRows() || s.quant.unpack[m.dtype] == nil):
		for panel := lo; panel < hi; panel++ {
			for row := 0; row < t; {
				group := row - row%tileRows // whose blocks are interleaved
				rows := min(tileRows, t-group)
				n := evenRows(group + rows - row)
				y, ldy := sums.of(p.Y, m.rows, row, panel)
				packedRows(y, ldy, &w[(panel-lo)*m.stride], &acts[(group*m.blocks+row-group)*s.quant.act], m.blocks, n,
					rows*s.quant.act)
				sums.spill(p.Y, m.rows, row, n, panel)
				row += n
			}
		}
	case s.quant.amx[m.kind] != nil:
		s.tiled(p, m, w, acts, t, lo, hi)
	default:
		s.matrix(p, m, w, acts, t, lo, hi)
	}
	s.bias(p, t, lo*panelRows, min(hi*panelRows, m.rows))
}

// vector computes panels of a matrix-vector product.
func (s *Set) vector(p *kernel.Product[float32], m *packed, w, acts []byte, lo, hi int) {
	gemv, whole := s.quant.gemv[m.dtype], min(hi, m.rows/panelRows)
	if whole > lo {
		gemv(&p.Y[lo*panelRows], &w[0], &acts[0], m.blocks, whole-lo)
	}
	if whole < hi {
		var last [panelRows]float32
		gemv(&last[0], &w[(whole-lo)*m.stride], &acts[0], m.blocks, 1)
		copy(p.Y[whole*panelRows:], last[:])
	}
}

// matrix computes panels of a matrix-matrix product. Each panel is unpacked once and multiplied with
// all rows while it is in the cache.
func (s *Set) matrix(p *kernel.Product[float32], m *packed, w, acts []byte, t, lo, hi int) {
	n, kind, word := m.rows, m.kind, m.word()
	unpack, tile, unpackedRows := s.quant.unpack[m.dtype], s.quant.tile[kind], s.quant.unpackedRows[kind]
	b := s.buffer(m.blocks * s.quant.unpacked[kind] / 4)
	defer s.give(b)
	flat := &bytesOf(*b)[0]
	var sums spill
	for panel := lo; panel < hi; panel++ {
		unpack(flat, &w[(panel-lo)*m.stride], m.blocks)
		for first := 0; first < t; first += tileRows {
			rows, x := min(tileRows, t-first), acts[first*m.blocks*s.quant.act:]
			for row := 0; row < rows; {
				y, ldy := sums.of(p.Y, n, first+row, panel)
				size := rows
				if rows == tileRows && tile != nil {
					tile(y, ldy, flat, &x[0], m.blocks, word)
				} else {
					size = evenRows(rows - row)
					unpackedRows(y, ldy, flat, &x[row*s.quant.act], m.blocks, size, rows*s.quant.act, word)
				}
				sums.spill(p.Y, n, first+row, size, panel)
				row += size
			}
		}
	}
}

// tiled is matrix with AMX tiles, which multiply all full groups of rows in one call.
func (s *Set) tiled(p *kernel.Product[float32], m *packed, w, acts []byte, t, lo, hi int) {
	unpack, amx, flat := s.quant.unpack[m.dtype], s.quant.amx[m.kind], m.blocks*s.quant.unpacked[m.kind]
	b := s.buffer((flat + tileScratch) / 4)
	defer s.give(b)
	codes, scratch := &bytesOf(*b)[0], &bytesOf(*b)[flat]
	var sums spill
	for panel := lo; panel < hi; panel++ {
		unpack(codes, &w[(panel-lo)*m.stride], m.blocks)
		for row := 0; row < t; {
			rows, groups := min(tileRows, t-row), 1
			y, ldy := sums.of(p.Y, m.rows, row, panel)
			if sums == nil {
				groups = max(1, (t-row)/tileRows)
			}
			amx(y, ldy, codes, &acts[row*m.blocks*s.quant.act], scratch, m.blocks, rows, groups)
			sums.spill(p.Y, m.rows, row, rows, panel)
			row += rows * groups
		}
	}
}

// evenRows returns how many of the remaining rows are multiplied next, so that the parts, of at most rowsMax rows,
// have nearly equal sizes.
func evenRows(rows int) int {
	parts := (rows + rowsMax - 1) / rowsMax
	return (rows + parts - 1) / parts
}

// spill receives the sums of a panel that has rows past the matrix's end.
type spill []float32

// of returns where the sums of a panel for row and the rows after it go, which is in y[T,n] or in the
// spill, and the number of bytes between rows.
func (s *spill) of(y []float32, n, row, panel int) (*float32, int) {
	if col := panel * panelRows; col+panelRows <= n {
		return &y[row*n+col], 4 * n
	}
	if *s == nil {
		*s = make(spill, tileRows*panelRows)
	}
	return &(*s)[0], 4 * panelRows
}

// spill copies the sums of rows from the spill to y, if they went there.
func (s spill) spill(y []float32, n, row, rows, panel int) {
	col := panel * panelRows
	if col+panelRows <= n {
		return
	}
	for r := range rows {
		copy(y[(row+r)*n+col:(row+r+1)*n], s[r*panelRows:])
	}
}

// bias adds elements lo to hi-1 of a product's bias.
func (s *Set) bias(p *kernel.Product[float32], t, lo, hi int) {
	if p.Bias == nil {
		return
	}
	for r := range t {
		s.add(&p.Y[r*p.W.Rows+lo], &p.Bias[lo], hi-lo)
	}
}
