package cpu

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Products of 16-bit floats. Both operands are bfloat16 and sums are float32. Each pair of inputs takes
// two fused multiply-adds, first for the odd input and then for the even one, as VDPBF16PS does. Float16
// weights are rounded to bfloat16 when they are packed: they keep eight of their eleven significant bits.

// pairMatrix is a matrix of 16-bit floats in panels of 16 rows: [pairs][16 rows][2].
type pairMatrix struct {
	rows   int
	pairs  int // of a row
	panels int
	stride int // bytes of a panel
	data   []byte
	owner  *chunk // of data
}

// pairOps are the bfloat16 loops of one instruction family.
type pairOps struct {
	round  func(dst *uint16, x *float32, n int)
	group  func(dst *byte, x *float32, ldx, count int)    // 32 inputs of tileRows rows, count times; or nil
	vector func(y *float32, w, x *byte, pairs, fours int) // four panels at a time, one row; or nil
	tile   map[int]pairFunc                               // by rows of activations: 1, 2, 4, 8, 16
}

type pairFunc func(y *float32, ldy int, w, x *byte, pairs int)

// pairBytes is the size of one pair of inputs for all rows of a panel.
const pairBytes = 4 * panelRows

// swapsFrom is the number of rows from which a panel is widened to float32, on processors where two
// fused multiply-adds are faster than VDPBF16PS.
const swapsFrom = 8

// pairable reports whether a matrix is multiplied as 16-bit floats.
func pairable(w *kernel.Matrix[float32]) bool {
	return w.Dense == nil && !plain(w) && (w.DType == tensor.F16 || w.DType == tensor.BF16)
}

// newPairs computes the layout of a matrix's panels; it allocates nothing.
func newPairs(w *kernel.Matrix[float32]) *pairMatrix {
	m := &pairMatrix{rows: w.Rows, pairs: (w.Cols + 1) / 2, panels: (w.Rows + panelRows - 1) / panelRows}
	m.stride = m.pairs * pairBytes
	return m
}

// packPairs writes panel i of w.
func (s *Set) packPairs(dst []byte, w *kernel.Matrix[float32], i int) {
	line := s.buffer(2 * w.Cols)
	defer s.give(line)
	wide, row := (*line)[:w.Cols], bytesOf((*line)[w.Cols:])[:2*w.Cols]
	for r := range min(panelRows, w.Rows-i*panelRows) {
		raw := w.Raw[(i*panelRows+r)*2*w.Cols:][:2*w.Cols]
		if w.DType == tensor.F16 {
			s.widen(wide, raw)
			s.pair.round((*uint16)(unsafe.Pointer(&row[0])), &wide[0], w.Cols)
			raw = row
		}
		at := 4 * r
		for ; len(raw) >= 4; raw = raw[4:] {
			binary.LittleEndian.PutUint32(dst[at:], binary.LittleEndian.Uint32(raw))
			at += 4 * panelRows
		}
		copy(dst[min(at, len(dst)):], raw) // an odd last input
	}
}

// widen converts float16 to float32.
func (s *Set) widen(dst []float32, src []byte) {
	whole := len(dst) / lanes
	if whole > 0 {
		s.cache.fromFloat16(&dst[0], &src[0], whole)
	}
	for i := whole * lanes; i < len(dst); i++ {
		dst[i] = tensor.Float16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// paired computes products of 16-bit floats.
func (s *Set) paired(x []float32, t int, products []kernel.Product[float32]) {
	cols := products[0].W.Cols
	if s.pairs.fromPairs != nil && t >= swapsFrom && cols%2 == 0 && packedPairs(products) {
		s.swapped(x, t, products)
		return
	}
	acts := s.roundRows(x, t, cols)
	defer s.give(acts)
	list := s.cuts.Get().(*[]piece)
	defer s.cuts.Put(list)
	pieces, cost := (*list)[:0], 0
	for i, p := range products {
		m := newPairs(p.W)
		step := 1
		if t == 1 {
			step = max(4, pieceBytes/m.stride&^3)
		}
		for lo := 0; lo < m.panels; lo += step {
			pieces = append(pieces, piece{i, lo, min(lo+step, m.panels)})
		}
		cost += t * p.W.Rows * cols
	}
	*list = pieces
	s.each(len(pieces), cost/4, func(i int) {
		pieces := *list
		p := &products[pieces[i].product]
		m, _ := p.W.Packed.(*pairMatrix)
		lo := pieces[i].lo
		if fours := (min(pieces[i].hi, p.W.Rows/panelRows) - lo) / 4; t == 1 && m != nil && s.pair.vector != nil &&
			fours > 0 {
			s.pair.vector(&p.Y[lo*panelRows], &m.data[lo*m.stride], &bytesOf(*acts)[0], m.pairs, fours)
			lo += 4 * fours
		}
		for panel := lo; panel < pieces[i].hi; panel++ {
			if m != nil {
				s.pairPanel(p, m, m.data[panel*m.stride:], bytesOf(*acts), t, panel)
				continue
			}
			shape := newPairs(p.W) // not packed at load
			b := s.buffer(shape.stride / 4)
			clear(*b)
			s.packPairs(bytesOf(*b), p.W, panel)
			s.pairPanel(p, shape, bytesOf(*b), bytesOf(*acts), t, panel)
			s.give(b)
		}
		s.bias(p, t, pieces[i].lo*panelRows, min(pieces[i].hi*panelRows, p.W.Rows))
	})
}

// packedPairs reports whether all weights are packed.
func packedPairs(products []kernel.Product[float32]) bool {
	for _, p := range products {
		if m, _ := p.W.Packed.(*pairMatrix); m == nil {
			return false
		}
	}
	return true
}

// swapped is paired with float32 multiply-adds in place of VDPBF16PS. Rows are rounded and widened once,
// panels when they are needed.
func (s *Set) swapped(x []float32, t int, products []kernel.Product[float32]) {
	cols := products[0].W.Cols
	acts := s.buffer(t * cols)
	defer s.give(acts)
	s.each(t, t*cols/2, func(i int) { s.pairs.fromRow(&(*acts)[i*cols], &x[i*cols], cols) })
	o := s.pairs
	o.fromRow = nil
	var calls []gemmCall
	for _, p := range products {
		calls = append(calls, gemmCall{c: p.Y, ldc: p.W.Rows, a: rowsOf(*acts, cols), pairs: p.W.Packed.(*pairMatrix),
			m: t, n: p.W.Rows, k: cols})
	}
	s.multiply(&o, calls)
	for _, p := range products {
		s.bias(&p, t, 0, p.W.Rows)
	}
}

// pairPanel multiplies panel w by all rows: sixteen at a time, and the rest in groups of 8, 4, 2 and 1.
func (s *Set) pairPanel(p *kernel.Product[float32], m *pairMatrix, w, acts []byte, t, panel int) {
	var sums spill
	for row, rows := 0, tileRows; row < t; row += rows {
		for rows > t-row {
			rows /= 2
		}
		x := &acts[row*m.pairs*4]
		y, ldy := sums.of(p.Y, m.rows, row, panel)
		s.pair.tile[rows](y, ldy, &w[0], x, m.pairs)
		sums.spill(p.Y, m.rows, row, rows, panel)
	}
}

// roundRows rounds x[T,cols] to bfloat16. It interleaves the pairs of the rows of each group of pairPanel.
func (s *Set) roundRows(x []float32, t, cols int) *[]float32 {
	pairs := (cols + 1) / 2
	b := s.buffer(t * pairs)
	out := *b
	s.each((t+tileRows-1)/tileRows, t*cols/2, func(i int) {
		line := s.buffer(pairs)
		defer s.give(line)
		clear(*line) // an odd last input is paired with zero
		end := min((i+1)*tileRows, t)
		for row, rows := i*tileRows, tileRows; row < end; row += rows {
			for rows > end-row {
				rows /= 2
			}
			group, done := out[row*pairs:(row+rows)*pairs], 0
			if count := cols / 32; rows == tileRows && count > 0 && s.pair.group != nil {
				s.pair.group((*byte)(unsafe.Pointer(&group[0])), &x[row*cols], 4*cols, count)
				done = 16 * count
			}
			for r := range rows {
				if done == pairs {
					break
				}
				s.pair.round((*uint16)(unsafe.Pointer(&(*line)[0])), &x[(row+r)*cols+2*done], cols-2*done)
				for k := done; k < pairs; k++ {
					group[k*rows+r] = (*line)[k-done]
				}
			}
		}
	})
	return b
}

// pairPortable returns the loops in plain Go.
func pairPortable() pairOps {
	o := pairOps{tile: map[int]pairFunc{}, round: func(dst *uint16, x *float32, n int) {
		out := unsafe.Slice(dst, n)
		for i, v := range unsafe.Slice(x, n) {
			out[i] = tensor.BFloat16bits(v)
		}
	}}
	wide := func(b []byte, i int) float32 {
		return math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
	}
	for rows := 1; rows <= tileRows; rows *= 2 {
		o.tile[rows] = func(y *float32, ldy int, w, x *byte, pairs int) {
			weights, acts := unsafe.Slice(w, pairs*64), unsafe.Slice(x, pairs*4*rows)
			for t := range rows {
				out := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(y), t*ldy)), panelRows)
				for r := range out {
					var sum float32
					for k := range pairs {
						sum = fma32(wide(weights[64*k+4*r:], 1), wide(acts[4*(k*rows+t):], 1), sum)
						sum = fma32(wide(weights[64*k+4*r:], 0), wide(acts[4*(k*rows+t):], 0), sum)
					}
					out[r] = sum
				}
			}
		}
	}
	return o
}
