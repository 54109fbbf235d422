package ref

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// RMSNorm divides each row by its root mean square.
func (*Set[F]) RMSNorm(y, x, g kernel.Buffer[F], eps float64, t, c int) {
	must("rmsnorm", "x", len(x), t*c)
	must("rmsnorm", "y", len(y), t*c)
	must("rmsnorm", "g", len(g), c)
	for r := range t {
		in := x[r*c : (r+1)*c]
		inv := 1 / math.Sqrt(dot(in, in)/float64(c)+eps)
		for i, v := range in {
			y[r*c+i] = F(float64(v) * inv * float64(g[i]))
		}
	}
}

// RMSNormGrad adds dx = inv·(dy·g - n·mean(dy·g·n)) and dg = Σ dy·n, where n = x·inv is the normalised row.
func (*Set[F]) RMSNormGrad(dx, dg, dy, x, g kernel.Buffer[F], eps float64, t, c int) {
	must("rmsnorm grad", "dy", len(dy), t*c)
	must("rmsnorm grad", "x", len(x), t*c)
	sums := make([]float64, c)
	for r := range t {
		in, grad := x[r*c:(r+1)*c], dy[r*c:(r+1)*c]
		inv := 1 / math.Sqrt(dot(in, in)/float64(c)+eps)
		var mean float64
		for i, v := range in {
			n := float64(v) * inv
			mean += float64(grad[i]) * float64(g[i]) * n / float64(c)
			sums[i] += float64(grad[i]) * n
		}
		if dx == nil {
			continue
		}
		for i, v := range in {
			dx[r*c+i] += F(inv * (float64(grad[i])*float64(g[i]) - float64(v)*inv*mean))
		}
	}
	addTo(dg, sums)
}

// LayerNorm centres each row, scales it to unit variance and applies g and b.
func (*Set[F]) LayerNorm(y, x, g, b kernel.Buffer[F], eps float64, t, c int) {
	must("layernorm", "x", len(x), t*c)
	must("layernorm", "y", len(y), t*c)
	for r := range t {
		in := x[r*c : (r+1)*c]
		mean, inv := moments(in, eps)
		for i, v := range in {
			n := (float64(v) - mean) * inv * float64(g[i])
			if b != nil {
				n += float64(b[i])
			}
			y[r*c+i] = F(n)
		}
	}
}

// LayerNormGrad adds dx = inv·(e - mean(e) - n·mean(e·n)), dg = Σ dy·n and db = Σ dy, where n is the normalised row
// and e = dy·g.
func (*Set[F]) LayerNormGrad(dx, dg, db, dy, x, g kernel.Buffer[F], eps float64, t, c int) {
	must("layernorm grad", "dy", len(dy), t*c)
	must("layernorm grad", "x", len(x), t*c)
	sumsG, sumsB := make([]float64, c), make([]float64, c)
	for r := range t {
		in, grad := x[r*c:(r+1)*c], dy[r*c:(r+1)*c]
		mean, inv := moments(in, eps)
		var meanE, meanEN float64
		for i, v := range in {
			n, e := (float64(v)-mean)*inv, float64(grad[i])*float64(g[i])
			meanE += e / float64(c)
			meanEN += e * n / float64(c)
			sumsG[i] += float64(grad[i]) * n
			sumsB[i] += float64(grad[i])
		}
		if dx == nil {
			continue
		}
		for i, v := range in {
			n, e := (float64(v)-mean)*inv, float64(grad[i])*float64(g[i])
			dx[r*c+i] += F(inv * (e - meanE - n*meanEN))
		}
	}
	addTo(dg, sumsG)
	addTo(db, sumsB)
}

// moments returns the mean of a row and the inverse of its standard deviation.
func moments[F tensor.Float](x []F, eps float64) (mean, inv float64) {
	for _, v := range x {
		mean += float64(v)
	}
	mean /= float64(len(x))
	var variance float64
	for _, v := range x {
		variance += (float64(v) - mean) * (float64(v) - mean)
	}
	return mean, 1 / math.Sqrt(variance/float64(len(x))+eps)
}

// addTo adds sums to dst.
func addTo[F tensor.Float](dst []F, sums []float64) {
	for i := range dst {
		dst[i] += F(sums[i])
	}
}

// act returns the activation of x and its derivative.
func act(x float64, a kernel.Act) (y, dy float64) {
	switch a {
	case kernel.SiLU:
		s := 1 / (1 + math.Exp(-x))
		return x * s, s * (1 + x*(1-s))
	case kernel.GELUTanh:
		k := math.Sqrt(2 / math.Pi)
		th := math.Tanh(k * (x + 0.044715*x*x*x))
		return 0.5 * x * (1 + th), 0.5*(1+th) + 0.5*x*(1-th*th)*k*(1+3*0.044715*x*x)
	case kernel.GELU:
		phi := 0.5 * math.Erfc(-x/math.Sqrt2) // 1 + erf would lose the tail
		return x * phi, phi + x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi)
	}
	panic("activate: unknown activation")
}

// GLU computes act(gate)·up.
func (*Set[F]) GLU(y, gate, up kernel.Buffer[F], a kernel.Act) {
	must("glu", "gate", len(gate), len(y))
	must("glu", "up", len(up), len(y))
	for i := range y {
		v, _ := act(float64(gate[i]), a)
		y[i] = F(v * float64(up[i]))
	}
}

// GLUGrad writes the gradients of GLU and, unless y is nil, its result.
func (*Set[F]) GLUGrad(dgate, dup, y, dy, gate, up kernel.Buffer[F], a kernel.Act) {
	must("glu grad", "dy", len(dy), len(gate))
	for i := range dy {
		v, d := act(float64(gate[i]), a)
		if y != nil {
			y[i] = F(v * float64(up[i]))
		}
		dgate[i], dup[i] = F(float64(dy[i])*float64(up[i])*d), F(float64(dy[i])*v)
	}
}

// Activate computes act(x).
func (*Set[F]) Activate(y, x kernel.Buffer[F], a kernel.Act) {
	must("activate", "x", len(x), len(y))
	for i := range y {
		v, _ := act(float64(x[i]), a)
		y[i] = F(v)
	}
}

// ActivateGrad writes the gradient of Activate and, unless y is nil, its result.
func (*Set[F]) ActivateGrad(dx, y, dy, x kernel.Buffer[F], a kernel.Act) {
	must("activate grad", "dy", len(dy), len(x))
	for i := range dy {
		v, d := act(float64(x[i]), a)
		if y != nil {
			y[i] = F(v)
		}
		dx[i] = F(float64(dy[i]) * d)
	}
}
