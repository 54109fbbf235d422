package model

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// DoRA scales outputs one by one, for which kernel sets have no operation. These are few operations, so the
// host computes them.

// Changed tells the stage that its adapter's tensors have new values.
func (s *Stage[F]) Changed() {
	if s.adapter == nil {
		return
	}
	for _, p := range s.adapter.sites {
		if p != nil {
			p.lengths = nil
		}
	}
}

// measure computes the lengths of the rows of W + s·B·A and the gains, unless they are known.
func (s *Stage[F]) measure(p *lora[F]) {
	if p.lengths != nil {
		return
	}
	a, b, m := s.set.Host(p.a.Dense), s.set.Host(p.b.Dense), s.set.Host(p.magnitude)
	n, in, rank := p.b.Rows, p.a.Cols, p.a.Rows
	p.lengths = make([]float64, n)
	gains := make([]F, n)
	row, sum := make([]F, in), make([]float64, in)
	for i := range n {
		s.weightRow(row, p.base, i)
		for j, v := range row {
			sum[j] = float64(v)
		}
		for k := range rank {
			f := p.scale * float64(b[i*rank+k])
			for j, v := range a[k*in : (k+1)*in] {
				sum[j] += f * float64(v)
			}
		}
		var squares float64
		for _, v := range sum {
			squares += v * v
		}
		p.lengths[i] = math.Sqrt(squares)
		gains[i] = F(float64(m[i]) / p.lengths[i])
	}
	if p.gain == nil {
		p.gain = p.memory.Alloc(n)
	}
	s.set.Upload(p.gain, gains)
}

// weightRow decodes a row of a matrix.
func (s *Stage[F]) weightRow(dst []F, l *linear[F], row int) {
	if l.Dense != nil {
		s.set.Download(dst, l.Dense[row*l.Cols:(row+1)*l.Cols])
		return
	}
	size := l.DType.RowBytes(l.Cols)
	tensor.Dequantize(dst, l.Raw[row*size:(row+1)*size], l.DType)
}

// magnitudes returns the lengths of the rows of a matrix, the initial magnitudes of DoRA.
func (s *Stage[F]) magnitudes(l *linear[F]) []F {
	out, row := make([]F, l.Rows), make([]F, l.Cols)
	for i := range out {
		s.weightRow(row, l, i)
		var squares float64
		for _, v := range row {
			squares += float64(v) * float64(v)
		}
		out[i] = F(math.Sqrt(squares))
	}
	return out
}

// magnify turns the product y[T,N] of a matrix into that with DoRA: y = bias + gain·(y - bias + v).
func (s *Stage[F]) magnify(p *lora[F], y, v kernel.Buffer[F], t int) {
	s.measure(p)
	gain, low := s.set.Host(p.gain), s.set.Host(v)
	out := make([]F, len(y))
	s.set.Download(out, y)
	var bias []F
	if p.base.bias != nil {
		bias = s.set.Host(p.base.bias)
	}
	n := p.b.Rows
	for r := range t {
		for i, g := range gain {
			at := r*n + i
			if bias == nil {
				out[at] = F(g * F(out[at]+low[at]))
				continue
			}
			out[at] = bias[i] + F(g*F(F(out[at]-bias[i])+low[at]))
		}
	}
	s.set.Upload(y, out)
}

// magnifyGrad returns gain·dy, the gradient of the product before DoRA's scaling, and adds the gradients of the
// magnitudes, for which it computes the product again. A nil x leaves them out.
func (s *Stage[F]) magnifyGrad(p *lora[F], dy, x kernel.Buffer[F], t int, g *Params[F]) kernel.Buffer[F] {
	s.measure(p)
	n := p.b.Rows
	gain, in := s.set.Host(p.gain), s.set.Host(dy)
	dM := g.at(p.atM)
	if dM != nil && x != nil && s.trained == s.adapter {
		z := s.low.take(t * n)
		s.set.MatMul(z, x, &p.base.Matrix, nil, t)
		u, _ := s.lowInput(p, x, t)
		v := s.low.take(t * n)
		s.set.MatMul(v, u, &p.b, nil, t)
		s.set.Add(z, v)
		product := s.set.Host(z)
		sums := make([]F, n)
		s.set.Download(sums, dM)
		for i := range n {
			var sum float64
			for r := range t {
				sum += float64(in[r*n+i]) * float64(product[r*n+i])
			}
			sums[i] += F(sum / p.lengths[i])
		}
		s.set.Upload(dM, sums)
	}
	out := make([]F, len(dy))
	for r := range t {
		for i, f := range gain {
			out[r*n+i] = f * in[r*n+i]
		}
	}
	scaled := s.low.take(len(dy))
	s.set.Upload(scaled, out)
	return scaled
}
