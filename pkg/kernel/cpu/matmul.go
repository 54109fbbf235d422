package cpu

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// rawRows is the number of rows of weights that are decoded at a time.
const rawRows = 32

// rows decodes rows lo..hi-1 of a raw matrix into dst.
func (s *Set) rows(dst []float32, w *kernel.Matrix[float32], lo, hi int) {
	size := w.DType.RowBytes(w.Cols)
	src := w.Raw[lo*size : hi*size]
	if d, ok := s.decode[w.DType]; ok && w.Cols%d.group == 0 {
		d.run(&dst[0], &src[0], (hi-lo)*w.Cols/d.group)
		return
	}
	tensor.Dequantize(dst, src, w.DType)
}

// floats computes products in float32: of dense weights, of decoded ones, and of types without a packed
// form, whose rows are decoded first.
func (s *Set) floats(x []float32, t int, products []kernel.Product[float32]) {
	var calls []gemmCall
	for _, p := range products {
		weights := p.W.Dense
		if m, ok := p.W.Packed.(*decoded); ok {
			weights = m.dense
		}
		if weights == nil {
			s.decodeAndMultiply(x, t, &p)
			continue
		}
		calls = append(calls, gemmCall{c: p.Y, ldc: p.W.Rows, bias: p.Bias, a: rowsOf(x, p.W.Cols),
			b: rowsOf(weights, p.W.Cols), m: t, n: p.W.Rows, k: p.W.Cols})
	}
	if len(calls) > 0 {
		s.multiply(s.dense, calls)
	}
}

// decodeAndMultiply decodes rawRows rows of weights at a time and multiplies them.
func (s *Set) decodeAndMultiply(x []float32, t int, p *kernel.Product[float32]) {
	n, k := p.W.Rows, p.W.Cols
	s.each((n+rawRows-1)/rawRows, t*n*k, func(i int) {
		lo, hi := i*rawRows, min((i+1)*rawRows, n)
		b := s.buffer((hi - lo) * k)
		defer s.give(b)
		s.rows(*b, p.W, lo, hi)
		g := gemmCall{c: p.Y[lo:], ldc: n, a: rowsOf(x, k), b: rowsOf(*b, k), m: t, n: hi - lo, k: k}
		if p.Bias != nil {
			g.bias = p.Bias[lo:hi]
		}
		s.multiply(s.dense, []gemmCall{g})
	})
}

// MatMulGrad overwrites dx[T,I] with Σ dy[T,N]·W over products of one x and adds
// dw[N,I] += dyᵀ·x and dbias[N] += Σ_t dy. The sums run over the products' outputs and
// over rows in order.
func (s *Set) MatMulGrad(dx, x kernel.Buffer[float32], t int, products ...kernel.ProductGrad[float32]) {
	raw := dx != nil && slices.ContainsFunc(products, func(p kernel.ProductGrad[float32]) bool {
		return denseOf(p.W) == nil
	})
	var groups [][]gemmCall
	var chain *gemmCall
	for i := len(products) - 1; i >= 0; i-- {
		p := &products[i]
		n, k := p.W.Rows, p.W.Cols
		must("matmul grad", "dy", len(p.DY), t*n)
		if dx != nil {
			must("matmul grad", "dx", len(dx), t*k)
		}
		if dx != nil && !raw {
			chain = &gemmCall{c: dx, ldc: k, a: rowsOf(p.DY, n), b: columnsOf(denseOf(p.W), k), m: t, n: k, k: n,
				then: chain}
		}
		if p.DW != nil {
			must("matmul grad", "x", len(x), t*k)
			must("matmul grad", "dw", len(p.DW), n*k)
			groups = append(groups, []gemmCall{{c: p.DW, ldc: k, add: !p.Fresh, a: columnsOf(p.DY, n),
				b: columnsOf(x, k), m: n, n: k, k: t}})
		}
		if p.DBias != nil {
			must("matmul grad", "dbias", len(p.DBias), n)
			s.columnSums(p.DBias, p.DY, t, n)
		}
	}
	if chain != nil {
		groups = append(groups, []gemmCall{*chain})
	}
	if len(groups) > 0 {
		s.multiply(s.dense, groups...)
	}
	if raw {
		s.rawGrad(dx, t, products)
	}
}

// denseOf returns the weights of a matrix in float32, or nil if they have to be decoded.
func denseOf(w *kernel.Matrix[float32]) []float32 {
	if m, ok := w.Packed.(*decoded); ok && w.Dense == nil {
		return m.dense
	}
	return w.Dense
}

// gradFloats is about the number of weights that rawGrad decodes at a time.
const gradFloats = 1 << 20

// rawGrad overwrites dx[T,I] with Σ dy·W where weights are quantised. It decodes a block of rows at a time, so
// the memory does not grow with the matrix. The number of rows depends on I alone, and so does the order of the
// sum.
func (s *Set) rawGrad(dx []float32, t int, products []kernel.ProductGrad[float32]) {
	add := false
	for i := range products {
		p := &products[i]
		n, k := p.W.Rows, p.W.Cols
		call := gemmCall{c: dx, ldc: k, m: t, n: k}
		if dense := denseOf(p.W); dense != nil {
			call.a, call.b, call.k, call.add = rowsOf(p.DY, n), columnsOf(dense, k), n, add
			s.multiply(s.dense, []gemmCall{call})
			add = true
			continue
		}
		block := max(rawRows, gradFloats/k/rawRows*rawRows)
		b := s.buffer(min(block, n) * k)
		for from := 0; from < n; from += block {
			rows := min(block, n-from)
			s.each((rows+rawRows-1)/rawRows, rows*k, func(j int) {
				lo, hi := j*rawRows, min((j+1)*rawRows, rows)
				s.rows((*b)[lo*k:hi*k], p.W, from+lo, from+hi)
			})
			call.a, call.b, call.k, call.add = rowsOf(p.DY[from:], n), columnsOf(*b, k), rows, add
			s.multiply(s.dense, []gemmCall{call})
			add = true
		}
		s.give(b)
	}
}

// Embed copies rows of w[V,C].
func (s *Set) Embed(y kernel.Buffer[float32], w *kernel.Matrix[float32], ids []int32) {
	must("embed", "y", len(y), len(ids)*w.Cols)
	for t, id := range ids {
		out := y[t*w.Cols : (t+1)*w.Cols]
		if w.Dense != nil {
			copy(out, w.Dense[int(id)*w.Cols:(int(id)+1)*w.Cols])
		} else {
			s.rows(out, w, int(id), int(id)+1)
		}
	}
}

// EmbedGrad adds rows of dy to rows of dw.
func (s *Set) EmbedGrad(dw, dy kernel.Buffer[float32], ids []int32, c int) {
	must("embed grad", "dy", len(dy), len(ids)*c)
	for t, id := range ids {
		s.add(&dw[int(id)*c], &dy[t*c], c)
	}
}

// Add computes y += x.
func (s *Set) Add(y, x kernel.Buffer[float32]) {
	must("add", "x", len(x), len(y))
	s.pieces(len(y), func(lo, hi int) { s.add(&y[lo], &x[lo], hi-lo) })
}
