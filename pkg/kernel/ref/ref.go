// Package ref is the reference kernel set. It computes every operation as its formula is written, over float32 or
// float64. Fast sets are compared with it, and its gradients are checked against differences. Its only optimisation
// is to compute independent rows on several goroutines.
//
// Sums are accumulated in float64 in index order and rounded once.
package ref

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Set implements kernel.Set.
type Set[F tensor.Float] struct {
	kernel.HostOps[F]
	bfloat16 bool // products round both operands to bfloat16
	kv       kernel.KVType
}

// New returns the reference set.
func New[F tensor.Float]() *Set[F] { return &Set[F]{} }

// StoringKV returns a set whose KV caches store t.
func (s *Set[F]) StoringKV(t kernel.KVType) *Set[F] { return &Set[F]{bfloat16: s.bfloat16, kv: t} }

// KV returns the type of the set's KV caches.
func (s *Set[F]) KV() kernel.KVType { return s.kv }

// Name returns "ref".
func (*Set[F]) Name() string { return "ref" }

// Class returns "ref/1" over float32 and "ref64/1" over float64.
func (s *Set[F]) Class() string {
	class := "ref64/1"
	if F(1)/3 == F(float32(1)/3) {
		class = "ref/1"
	}
	if s.bfloat16 {
		class += "+bf16/2"
	}
	if s.kv != kernel.KVFull {
		class += "+kv-" + s.kv.String()
	}
	return class
}

// BFloat16 returns a set whose products round both operands to bfloat16.
func (*Set[F]) BFloat16() kernel.Set[F] { return &Set[F]{bfloat16: true} }

// UsesBFloat16 reports whether the set was made by BFloat16.
func (s *Set[F]) UsesBFloat16() bool { return s.bfloat16 }

// RoundBF16 rounds x in place to bfloat16 and writes the bits to h.
func (s *Set[F]) RoundBF16(h []uint16, x kernel.Buffer[F]) {
	must("round bfloat16", "h", len(h), len(x))
	for i, v := range x {
		h[i] = tensor.BFloat16bits(float32(v))
	}
	s.WidenBF16(x, h)
}

// WidenBF16 converts the bfloat16 bits h to x.
func (*Set[F]) WidenBF16(x kernel.Buffer[F], h []uint16) {
	must("widen bfloat16", "x", len(x), len(h))
	for i, v := range h {
		x[i] = F(math.Float32frombits(uint32(v) << 16))
	}
}

// operand returns x as products read it: rounded to bfloat16 if the set was made by BFloat16.
func (s *Set[F]) operand(x []F) []F {
	if !s.bfloat16 {
		return x
	}
	out := make([]F, len(x))
	for i, v := range x {
		out[i] = F(math.Float32frombits(uint32(tensor.BFloat16bits(float32(v))) << 16))
	}
	return out
}

// matrix returns a dense matrix as products read it.
func (s *Set[F]) matrix(w *kernel.Matrix[F]) *kernel.Matrix[F] {
	if !s.bfloat16 || w.Dense == nil {
		return w
	}
	return &kernel.Matrix[F]{Rows: w.Rows, Cols: w.Cols, Dense: s.operand(w.Dense)}
}

// must panics with the operation's name unless a slice has the wanted length.
func must(op, name string, got, want int) {
	if got != want {
		panic(fmt.Sprintf("%s: %s has %d elements, want %d", op, name, got, want))
	}
}

// each calls body for 0..n-1 on several goroutines. Calls are independent.
func each(n int, body func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers <= 1 {
		for i := range n {
			body(i)
		}
		return
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w * n / workers; i < (w+1)*n/workers; i++ {
				body(i)
			}
		})
	}
	wg.Wait()
}

// row decodes row n of w into buf and returns it.
func row[F tensor.Float](w *kernel.Matrix[F], n int, buf []F) []F {
	if w.Dense != nil {
		return w.Dense[n*w.Cols : (n+1)*w.Cols]
	}
	size := w.DType.RowBytes(w.Cols)
	tensor.Dequantize(buf, w.Raw[n*size:(n+1)*size], w.DType)
	return buf
}

// dot returns Σ a·b in index order.
func dot[F tensor.Float](a, b []F) float64 {
	var sum float64
	for i, x := range a {
		sum += float64(x) * float64(b[i])
	}
	return sum
}

// MatMul computes y = x·Wᵀ + bias.
func (s *Set[F]) MatMul(y, x kernel.Buffer[F], w *kernel.Matrix[F], bias kernel.Buffer[F], t int) {
	must("matmul", "x", len(x), t*w.Cols)
	must("matmul", "y", len(y), t*w.Rows)
	if bias != nil {
		must("matmul", "bias", len(bias), w.Rows)
	}
	if w.Dense != nil {
		x, w = s.operand(x), s.matrix(w)
	}
	const tile = 64
	each((w.Rows+tile-1)/tile, func(i int) {
		buf := make([]F, w.Cols)
		for n := i * tile; n < min((i+1)*tile, w.Rows); n++ {
			weights := row(w, n, buf)
			for r := range t {
				sum := dot(x[r*w.Cols:(r+1)*w.Cols], weights)
				if bias != nil {
					sum += float64(bias[n])
				}
				y[r*w.Rows+n] = F(sum)
			}
		}
	})
}

// Pack does nothing: rows are decoded when they are needed.
func (*Set[F]) Pack(*kernel.Matrix[F]) {}

// MatMuls computes one product after another.
func (s *Set[F]) MatMuls(x kernel.Buffer[F], t int, products ...kernel.Product[F]) {
	for _, p := range products {
		s.MatMul(p.Y, x, p.W, p.Bias, t)
	}
}

// MatMulGrad computes the gradient of MatMuls.
func (s *Set[F]) MatMulGrad(dx, x kernel.Buffer[F], t int, products ...kernel.ProductGrad[F]) {
	products = slices.Clone(products)
	for i := range products {
		p := &products[i]
		must("matmul grad", "dy", len(p.DY), t*p.W.Rows)
		if p.DBias != nil {
			biasGrad(p, t)
		}
		p.DY, p.W = s.operand(p.DY), s.matrix(p.W)
	}
	x = s.operand(x)
	if dx != nil {
		cols := products[0].W.Cols
		must("matmul grad", "dx", len(dx), t*cols)
		each(t, func(r int) {
			sums, buf := make([]float64, cols), make([]F, cols)
			for _, p := range products {
				for n := range p.W.Rows {
					g := float64(p.DY[r*p.W.Rows+n])
					for i, v := range row(p.W, n, buf) {
						sums[i] += g * float64(v)
					}
				}
			}
			put(dx[r*cols:(r+1)*cols], sums)
		})
	}
	for _, p := range products {
		if p.DW != nil {
			weightGrad(&p, x, t)
		}
	}
}

// weightGrad adds the gradient of a product's weights.
func weightGrad[F tensor.Float](p *kernel.ProductGrad[F], x []F, t int) {
	rows, cols := p.W.Rows, p.W.Cols
	must("matmul grad", "x", len(x), t*cols)
	must("matmul grad", "dw", len(p.DW), rows*cols)
	if p.Fresh {
		clear(p.DW)
	}
	each(rows, func(n int) {
		sums := make([]float64, cols)
		for r := range t {
			g := float64(p.DY[r*rows+n])
			for i, v := range x[r*cols : (r+1)*cols] {
				sums[i] += g * float64(v)
			}
		}
		addTo(p.DW[n*cols:(n+1)*cols], sums)
	})
}

// biasGrad adds the gradient of a product's bias.
func biasGrad[F tensor.Float](p *kernel.ProductGrad[F], t int) {
	rows := p.W.Rows
	must("matmul grad", "dbias", len(p.DBias), rows)
	for n := range rows {
		var sum float64
		for r := range t {
			sum += float64(p.DY[r*rows+n])
		}
		p.DBias[n] += F(sum)
	}
}

// Embed copies rows of w.
func (*Set[F]) Embed(y kernel.Buffer[F], w *kernel.Matrix[F], ids []int32) {
	must("embed", "y", len(y), len(ids)*w.Cols)
	for t, id := range ids {
		out := y[t*w.Cols : (t+1)*w.Cols]
		copy(out, row(w, int(id), out))
	}
}

// EmbedGrad adds rows of dy to rows of dw.
func (*Set[F]) EmbedGrad(dw, dy kernel.Buffer[F], ids []int32, c int) {
	must("embed grad", "dy", len(dy), len(ids)*c)
	for t, id := range ids {
		for i, g := range dy[t*c : (t+1)*c] {
			dw[int(id)*c+i] += g
		}
	}
}

// Rotate rotates each head by the angles of its row's position.
func (*Set[F]) Rotate(x kernel.Buffer[F], r *kernel.Rotary, pos []int32, h, d int) {
	rotate(x, r, pos, h, d, 1)
}

// RotateGrad rotates gradients by the opposite angles.
func (*Set[F]) RotateGrad(dx kernel.Buffer[F], r *kernel.Rotary, pos []int32, h, d int) {
	rotate(dx, r, pos, h, d, -1)
}

func rotate[F tensor.Float](x []F, r *kernel.Rotary, pos []int32, h, d int, direction float64) {
	must("rotate", "x", len(x), len(pos)*h*d)
	must("rotate", "freq", len(r.Freq), r.Dims/2)
	for t, p := range pos {
		for head := range h {
			v := x[(t*h+head)*d:][:d]
			for i := range r.Freq {
				sin, cos := math.Sincos(float64(p) * r.At(int(p), i))
				sin, cos = sin*r.Scale*direction, cos*r.Scale
				a, b := i, i+r.Dims/2
				if r.Interleaved {
					a, b = 2*i, 2*i+1
				}
				va, vb := float64(v[a]), float64(v[b])
				v[a], v[b] = F(va*cos-vb*sin), F(va*sin+vb*cos)
			}
		}
	}
}

// Add computes y += x.
func (*Set[F]) Add(y, x kernel.Buffer[F]) {
	must("add", "x", len(x), len(y))
	for i, v := range x {
		y[i] += v
	}
}

// LogSumExp returns log Σ exp(x).
func (*Set[F]) LogSumExp(x kernel.Buffer[F]) float64 {
	best := math.Inf(-1)
	for _, v := range x {
		best = max(best, float64(v))
	}
	var sum float64
	for _, v := range x {
		sum += math.Exp(float64(v) - best)
	}
	return best + math.Log(sum)
}

// CrossEntropy computes the negative log-likelihood and its gradient.
func (s *Set[F]) CrossEntropy(loss []float64, dlogits, logits kernel.Buffer[F], targets []int32, scale float64, t,
	v int) {
	must("cross entropy", "logits", len(logits), t*v)
	must("cross entropy", "targets", len(targets), t)
	must("cross entropy", "loss", len(loss), t)
	for r, target := range targets {
		x := logits[r*v : (r+1)*v]
		loss[r] = 0
		lse := s.LogSumExp(x)
		if target >= 0 {
			loss[r] = lse - float64(x[target])
		}
		if dlogits == nil {
			continue
		}
		for i := range x {
			g := 0.0
			if target >= 0 {
				g = math.Exp(float64(x[i]) - lse)
				if i == int(target) {
					g--
				}
			}
			dlogits[r*v+i] = F(scale * g)
		}
	}
}

// SumSquares adds squares in index order.
func (*Set[F]) SumSquares(x kernel.Buffer[F]) float64 { return dot(x, x) }

// AdamW updates weights and rounds after every operation.
func (*Set[F]) AdamW(p, m, v, g kernel.Buffer[F], o kernel.AdamW) {
	must("adamw", "m", len(m), len(p))
	must("adamw", "v", len(v), len(p))
	must("adamw", "g", len(g), len(p))
	for i, x := range g {
		x = F(x * F(o.Scale))
		m[i] = F(m[i]*F(o.Beta1)) + F(x*F(1-o.Beta1))
		v[i] = F(v[i]*F(o.Beta2)) + F(F(x*F(1-o.Beta2))*x)
		step := F(m[i]*F(o.Size)) / (F(math.Sqrt(float64(F(v[i]*F(o.Root))))) + F(o.Epsilon))
		p[i] = F(p[i]*F(o.Keep)) - step
	}
}
