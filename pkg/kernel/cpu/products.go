package cpu

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// MatMul computes y[T,N] = x[T,I]·Wᵀ + bias[N].
func (s *Set) MatMul(y, x []float32, w *kernel.Matrix[float32], bias []float32, t int) {
	s.MatMuls(x, t, kernel.Product[float32]{Y: y, W: w, Bias: bias})
}

// MatMuls computes several products of one x. Those over quantised weights quantise
// it once and share one loop over all their panels.
func (s *Set) MatMuls(x []float32, t int, products ...kernel.Product[float32]) {
	var quantised, paired, floats []kernel.Product[float32]
	for _, p := range products {
		must("matmul", "x", len(x), t*p.W.Cols)
		must("matmul", "y", len(p.Y), t*p.W.Rows)
		if p.Bias != nil {
			must("matmul", "bias", len(p.Bias), p.W.Rows)
		}
		switch {
		case t == 0:
		case packable(p.W):
			quantised = append(quantised, p)
		case pairable(p.W):
			paired = append(paired, p)
		default:
			floats = append(floats, p)
		}
	}
	if len(quantised) > 0 {
		s.quantised(x, t, quantised)
	}
	if len(paired) > 0 {
		s.paired(x, t, paired)
	}
	if len(floats) > 0 {
		s.floats(x, t, floats)
	}
}

// piece is a run of panels of one product.
type piece struct {
	product int
	lo, hi  int
}

// pieceBytes is about how many bytes of weights a thread takes at a time in a
// matrix-vector product.
const pieceBytes = 16 << 10

// quantised computes products over block types.
func (s *Set) quantised(x []float32, t int, products []kernel.Product[float32]) {
	cols := products[0].W.Cols
	acts := s.activations(x, t, cols)
	defer s.give(acts)
	var pieces []piece
	cost := 0
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
	s.each(len(pieces), cost/8, func(i int) {
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

// activations quantises x[T,cols] in groups of tileMost rows and a last one of the
// rest. The blocks of a group's rows lie interleaved.
func (s *Set) activations(x []float32, t, cols int) *[]float32 {
	size, blocks := s.quant.act, cols/blockLen
	b := s.buffer(t * blocks * size / 4)
	out := bytesOf(*b)
	s.each((t+tileMost-1)/tileMost, t*cols, func(i int) {
		row := i * tileMost
		rows := min(tileMost, t-row)
		for r := range rows {
			s.quant.quantize(&out[(row*blocks+r)*size], rows*size, &x[(row+r)*cols], blocks)
		}
	})
	return b
}

// panels computes panels lo to hi, which begin at w, of one product.
func (s *Set) panels(p *kernel.Product[float32], m *packed, w, acts []byte, t, lo, hi int) {
	switch gemv, few := s.quant.gemv[m.dtype], s.quant.few[m.dtype]; {
	case t == 1 && gemv != nil:
		s.vector(p, m, w, acts, lo, hi)
	case t < tileMost && few != nil:
		var out [tileMost * panelRows]float32
		for panel := lo; panel < hi; panel++ {
			few(&out[0], &w[(panel-lo)*m.stride], &acts[0], m.blocks, t)
			spill(p.Y, out[:], m.rows, 0, t, panel)
		}
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

// matrix computes panels of a matrix-matrix product: each is unpacked once.
func (s *Set) matrix(p *kernel.Product[float32], m *packed, w, acts []byte, t, lo, hi int) {
	n, kind, word := m.rows, m.kind, m.word()
	unpack, tile, rest := s.quant.unpack[m.dtype], s.quant.tile[kind], s.quant.rest[kind]
	b := s.buffer(m.blocks * s.quant.unpacked[kind] / 4)
	defer s.give(b)
	flat := &bytesOf(*b)[0]
	var out [tileMost * panelRows]float32
	for panel := lo; panel < hi; panel++ {
		unpack(flat, &w[(panel-lo)*m.stride], m.blocks)
		col := panel * panelRows
		for row := 0; row < t; row += tileMost {
			x := &acts[row*m.blocks*s.quant.act]
			switch rows := min(tileMost, t-row); {
			case rows < tileMost || tile == nil:
				rest(&out[0], flat, x, m.blocks, rows, word)
				spill(p.Y, out[:], n, row, rows, panel)
			case col+panelRows <= n:
				tile(&p.Y[row*n+col], 4*n, flat, x, m.blocks, word)
			default:
				tile(&out[0], 4*panelRows, flat, x, m.blocks, word)
				spill(p.Y, out[:], n, row, rows, panel)
			}
		}
	}
}

// spill copies sums[rows][16] of a panel to rows row on of y[T,N].
func spill(y, sums []float32, n, row, rows, panel int) {
	col := panel * panelRows
	cols := min(panelRows, n-col)
	for r := range rows {
		copy(y[(row+r)*n+col:][:cols], sums[r*panelRows:])
	}
}

// bias adds outputs lo to hi of a product's bias.
func (s *Set) bias(p *kernel.Product[float32], t, lo, hi int) {
	if p.Bias == nil {
		return
	}
	for r := range t {
		s.add(&p.Y[r*p.W.Rows+lo], &p.Bias[lo], hi-lo)
	}
}
