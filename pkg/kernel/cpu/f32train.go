package cpu

import (
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// trainOps are elementwise loops that only training needs. Every operation is rounded as written, except
// that the column sums of products are fused multiply-adds. Loops over groups take full groups of lanes
// only.
type trainOps struct {
	// scoreSlopes: w = exp(w·scale - lse), dw = w·(dw - delta)·scale.
	scoreSlopes func(dw, w *float32, n int, scale, lse, delta float32)
	actGrad     [acts]func(dx, y, dy, x *float32, n int)          // nil: computed from the gate
	gluGrad     [acts]func(dx, dup, y, dy, x, up *float32, n int) // nil: computed from the gate
	// dx += inv·(e - meanE - n·meanEN)
	normSlopes func(dx, x, dy, g *float32, n int, mean, inv, meanE, meanEN float32)
	// sums[16] += e, sums[16:] += e·n
	normMeans func(sums, x, dy, g *float32, groups int, mean, inv float32)
	// 16 columns: dg += dy·n, db += dy
	normColumns    func(dg, db, x, dy *float32, ld, rows int, stats *float32)
	sumColumns     func(y, x *float32, ld, rows int)           // 16 columns: y += x
	sumWideColumns func(y, x *float32, ld, rows int)           // columnPiece columns
	sumSquares     func(sums *float64, x *float32, groups int) // sums[16] += x²
	adamw          func(p, m, v, grad *float32, groups int, constants *adamwConstants)

	// rows is nil if rows are computed one at a time.
	rows *causalOps

	rowDots func(out, a *float32, lda int, b *float32, ldb, n, rows int) // of rows lda and ldb bytes apart
	// pairs of a mean and the sum of squared differences from it; ld is in bytes
	moments func(stats, x *float32, ld, n, rows int)
}

// momentsOf builds moments from an instruction family's sums.
func momentsOf(o *ops) func(stats, x *float32, ld, n, rows int) {
	return func(stats, x *float32, ld, n, rows int) {
		centred := make([]float32, n)
		for r := range rows {
			in := at(x, r*ld/4)
			mean := o.sum(in, n) / float32(n)
			o.element.shift(&centred[0], in, n, mean)
			*at(stats, 2*r), *at(stats, 2*r+1) = mean, o.dot(&centred[0], &centred[0], n)
		}
	}
}

// rowDotsOf builds rowDots from an instruction family's dot.
func rowDotsOf(o *ops) func(out, a *float32, lda int, b *float32, ldb, n, rows int) {
	return func(out, a *float32, lda int, b *float32, ldb, n, rows int) {
		for i := range rows {
			*at(out, i) = o.dot(at(a, i*lda/4), at(b, i*ldb/4), n)
		}
	}
}

// adamwConstants are the constants of an AdamW step, each repeated for all lanes.
type adamwConstants [9][lanes]float32

// trainPortable returns the loops in plain Go.
func trainPortable() trainOps {
	return trainOps{
		scoreSlopes: func(dw, w *float32, n int, scale, lse, delta float32) {
			slopes := unsafe.Slice(dw, n)
			for i, s := range unsafe.Slice(w, n) {
				e := exp32(float32(s*scale) - lse)
				*at(w, i) = e
				slopes[i] = float32(e*(slopes[i]-delta)) * scale
			}
		},
		normSlopes: func(dx, x, dy, g *float32, n int, mean, inv, meanE, meanEN float32) {
			in, grads, gains := unsafe.Slice(x, n), unsafe.Slice(dy, n), unsafe.Slice(g, n)
			for i, v := range in {
				n, e := float32((v-mean)*inv), float32(grads[i]*gains[i])
				*at(dx, i) += float32(inv * (e - meanE - float32(n*meanEN)))
			}
		},
		normMeans: func(sums, x, dy, g *float32, groups int, mean, inv float32) {
			plainMeans(unsafe.Slice(sums, 2*lanes), x, dy, g, 0, groups*lanes, mean, inv)
		},
		normColumns: func(dg, db, x, dy *float32, ld, rows int, stats *float32) {
			plainColumns(dg, db, x, dy, ld, rows, lanes, stats)
		},
		sumColumns:     func(y, x *float32, ld, rows int) { plainSums(y, x, ld, rows, lanes) },
		sumWideColumns: func(y, x *float32, ld, rows int) { plainSums(y, x, ld, rows, columnPiece) },
		sumSquares: func(sums *float64, x *float32, groups int) {
			plainSquares(unsafe.Slice(sums, lanes), unsafe.Slice(x, groups*lanes))
		},
		adamw: func(p, m, v, grad *float32, groups int, k *adamwConstants) {
			n := groups * lanes
			plainAdamW(unsafe.Slice(p, n), unsafe.Slice(m, n), unsafe.Slice(v, n), unsafe.Slice(grad, n), k)
		},
	}
}

// plainMeans adds elements from..to-1 to the lanes of normMeans.
func plainMeans(sums []float32, x, dy, g *float32, from, to int, mean, inv float32) {
	for i := from; i < to; i++ {
		n, e := float32((*at(x, i)-mean)*inv), float32(*at(dy, i)**at(g, i))
		sums[i%lanes] += e
		sums[lanes+i%lanes] = fma32(e, n, sums[lanes+i%lanes])
	}
}

// plainColumns is normColumns of any number of columns.
func plainColumns(dg, db, x, dy *float32, ld, rows, columns int, stats *float32) {
	for r := range rows {
		mean, inv := *at(stats, 2*r), *at(stats, 2*r+1)
		for i := range columns {
			d := *at(dy, r*ld/4+i)
			*at(dg, i) = fma32(d, float32((*at(x, r*ld/4+i)-mean)*inv), *at(dg, i))
			*at(db, i) += d
		}
	}
}

// plainSums is sumColumns of any number of columns.
func plainSums(y, x *float32, ld, rows, columns int) {
	for r := range rows {
		for i := range columns {
			*at(y, i) += *at(x, r*ld/4+i)
		}
	}
}

func plainSquares(sums []float64, x []float32) {
	for i, v := range x {
		sums[i%lanes] += float64(float64(v) * float64(v))
	}
}

func plainAdamW(p, m, v, grad []float32, k *adamwConstants) {
	for i, x := range grad {
		x = float32(x * k[0][0])
		m[i] = float32(m[i]*k[1][0]) + float32(x*k[2][0])
		v[i] = float32(v[i]*k[3][0]) + float32(float32(x*k[4][0])*x)
		step := float32(m[i]*k[5][0]) / (float32(math.Sqrt(float64(float32(v[i]*k[6][0])))) + k[7][0])
		p[i] = float32(p[i]*k[8][0]) - step
	}
}

// sumLen is the number of squares in a partial sum.
const sumLen = 1 << 16

// SumSquares adds squares in float64: each part of sumLen elements in lanes, which are folded, and then
// the parts in order.
func (s *Set) SumSquares(x kernel.Buffer[float32]) float64 {
	parts := make([]float64, (len(x)+sumLen-1)/sumLen)
	s.each(len(parts), len(x), func(i int) {
		part := x[i*sumLen : min((i+1)*sumLen, len(x))]
		var sums [lanes]float64
		groups := len(part) / lanes
		if groups > 0 {
			s.train.sumSquares(&sums[0], &part[0], groups)
		}
		plainSquares(sums[:], part[groups*lanes:])
		for half := lanes / 2; half > 0; half /= 2 {
			for j := range half {
				sums[j] += sums[j+half]
			}
		}
		parts[i] = sums[0]
	})
	var sum float64
	for _, v := range parts {
		sum += v
	}
	return sum
}

// AdamW steps weights in one pass over them, their moments and their gradient.
func (s *Set) AdamW(p, m, v, grad kernel.Buffer[float32], o kernel.AdamW) {
	must("adamw", "m", len(m), len(p))
	must("adamw", "v", len(v), len(p))
	must("adamw", "grad", len(grad), len(p))
	var k adamwConstants
	for i, c := range [...]float64{o.Scale, o.Beta1, 1 - o.Beta1, o.Beta2, 1 - o.Beta2, o.Size, o.Root, o.Epsilon,
		o.Keep} {
		for j := range k[i] {
			k[i][j] = float32(c)
		}
	}
	s.pieces(len(p), func(lo, hi int) {
		whole := lo + (hi-lo)&^(lanes-1)
		if whole > lo {
			s.train.adamw(&p[lo], &m[lo], &v[lo], &grad[lo], (whole-lo)/lanes, &k)
		}
		plainAdamW(p[whole:hi], m[whole:hi], v[whole:hi], grad[whole:hi], &k)
	})
}

// columnSums adds rows of x[T,n] to y.
func (s *Set) columnSums(y, x []float32, t, n int) {
	if t == 0 {
		return
	}
	s.columnPieces(n, t*n*4, func(lo, hi int) {
		if hi-lo == columnPiece {
			s.train.sumWideColumns(&y[lo], &x[lo], 4*n, t)
			return
		}
		for ; lo+lanes <= hi; lo += lanes {
			s.train.sumColumns(&y[lo], &x[lo], 4*n, t)
		}
		if lo < hi {
			plainSums(&y[lo], &x[lo], 4*n, t, hi-lo)
		}
	})
}

// columnPiece is the number of columns in a piece of work.
const columnPiece = 8 * lanes

// columnPieces calls body for pieces of n columns.
func (s *Set) columnPieces(n, cost int, body func(lo, hi int)) {
	s.each((n+columnPiece-1)/columnPiece, cost, func(i int) { body(i*columnPiece, min((i+1)*columnPiece, n)) })
}
