package cpu

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

const (
	tile      = 4  // rows of a register tile either way
	denseRows = 64 // weight rows of a piece of parallel work
	rawRows   = 32 // the same where they are decoded first
)

// gemm computes y[i*ldy+j] = Σ_k x[i*ldx+k]·w[j*ldw+k] for i < t, j < n. With
// accumulate the sum is added to y instead.
func (s *Set) gemm(y []float32, ldy int, x []float32, ldx int, w []float32, ldw, t, n, k int, accumulate bool) {
	if t == 0 || n == 0 {
		return
	}
	if k == 0 {
		if !accumulate {
			for i := range t {
				clear(y[i*ldy : i*ldy+n])
			}
		}
		return
	}
	var out [tile * tile]float32
	put := func(i, j, rows, cols int) {
		for a := range rows {
			dst := y[(i+a)*ldy+j:][:cols]
			for b := range dst {
				if accumulate {
					dst[b] += out[a*cols+b]
				} else {
					dst[b] = out[a*cols+b]
				}
			}
		}
	}
	for i := 0; i < t; {
		rows := 1
		if i+tile <= t {
			rows = tile
		}
		j := 0
		for ; j+tile <= n; j += tile {
			if rows == tile {
				s.dots4x4(&out[0], &x[i*ldx], 4*ldx, &w[j*ldw], 4*ldw, k)
			} else {
				s.dots1x4(&out[0], &x[i*ldx], 4*ldx, &w[j*ldw], 4*ldw, k)
			}
			put(i, j, rows, tile)
		}
		for ; j < n; j++ {
			for a := range rows {
				s.dots1x1(&out[0], &x[(i+a)*ldx], 4*ldx, &w[j*ldw], 4*ldw, k)
				put(i+a, j, 1, 1)
			}
		}
		i += rows
	}
}

// rows decodes rows lo..hi of a raw matrix into dst.
func (s *Set) rows(dst []float32, w *kernel.Matrix[float32], lo, hi int) {
	size := w.DType.RowBytes(w.Cols)
	src := w.Raw[lo*size : hi*size]
	if d, ok := s.decode[w.DType]; ok && w.Cols%d.group == 0 {
		d.run(&dst[0], &src[0], (hi-lo)*w.Cols/d.group)
		return
	}
	tensor.Dequantize(dst, src, w.DType)
}

// transpose writes x[r,c], rows ldx apart, to out[c,r].
func transpose(out, x []float32, ldx, r, c int) {
	const block = 16
	for i0 := 0; i0 < r; i0 += block {
		for j0 := 0; j0 < c; j0 += block {
			for i := i0; i < min(i0+block, r); i++ {
				for j := j0; j < min(j0+block, c); j++ {
					out[j*r+i] = x[i*ldx+j]
				}
			}
		}
	}
}

// MatMulGrad adds dx[T,I] += dy[T,N]·W, dw[N,I] += dyᵀ·x, dbias[N] += Σ_t dy. Each
// is a product of transposes by the same loops.
func (s *Set) MatMulGrad(dx, dw, dbias, dy, x []float32, w *kernel.Matrix[float32], t int) {
	must("matmul grad", "dy", len(dy), t*w.Rows)
	n, k := w.Rows, w.Cols
	if dx != nil {
		must("matmul grad", "dx", len(dx), t*k)
		b := s.buffer(n * k)
		if w.Dense != nil {
			s.transposeAll(*b, w.Dense, n, k)
		} else {
			d := s.buffer(n * k)
			s.rows(*d, w, 0, n)
			s.transposeAll(*b, *d, n, k)
			s.give(d)
		}
		s.blocks(dx, k, dy, n, *b, n, t, k, n)
		s.give(b)
	}
	if dw == nil && dbias == nil {
		return
	}
	dyT := s.buffer(n * t)
	s.transposeAll(*dyT, dy, t, n)
	if dw != nil {
		must("matmul grad", "x", len(x), t*k)
		must("matmul grad", "dw", len(dw), n*k)
		xT := s.buffer(k * t)
		s.transposeAll(*xT, x, t, k)
		s.blocks(dw, k, *dyT, t, *xT, t, n, k, t)
		s.give(xT)
	}
	if dbias != nil {
		must("matmul grad", "dbias", len(dbias), n)
		for i := range dbias {
			dbias[i] += s.sum(&(*dyT)[i*t], t)
		}
	}
	s.give(dyT)
}

// transposeAll transposes x[r,c] by strips of columns.
func (s *Set) transposeAll(out, x []float32, r, c int) {
	const strip = 64
	s.each((c+strip-1)/strip, r*c, func(i int) {
		lo, hi := i*strip, min((i+1)*strip, c)
		transpose(out[lo*r:], x[lo:], c, r, hi-lo)
	})
}

// blocks adds x[t,k]·w[n,k]ᵀ to y[t,n], in pieces that fit the caches.
func (s *Set) blocks(y []float32, ldy int, x []float32, ldx int, w []float32, ldw, t, n, k int) {
	const rows, cols = 64, 64
	across := (n + cols - 1) / cols
	s.each((t+rows-1)/rows*across, t*n*k, func(i int) {
		r, c := i/across*rows, i%across*cols
		s.gemm(y[r*ldy+c:], ldy, x[r*ldx:], ldx, w[c*ldw:], ldw, min(rows, t-r), min(cols, n-c), k, true)
	})
}

// Embed copies rows of w[V,C].
func (s *Set) Embed(y []float32, w *kernel.Matrix[float32], ids []int32) {
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
func (s *Set) EmbedGrad(dw, dy []float32, ids []int32, c int) {
	must("embed grad", "dy", len(dy), len(ids)*c)
	for t, id := range ids {
		s.add(&dw[int(id)*c], &dy[t*c], c)
	}
}

// Add computes y += x.
func (s *Set) Add(y, x []float32) {
	must("add", "x", len(x), len(y))
	if len(x) > 0 {
		s.add(&y[0], &x[0], len(x))
	}
}
