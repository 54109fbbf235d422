package cpu

import (
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// dot is Σ a·b in the canonical order.
func (s *Set) dot(a, b []float32) float32 { return s.ops.dot(&a[0], &b[0], len(a)) }

// RMSNorm divides each row by its root mean square.
func (s *Set) RMSNorm(y, x, g []float32, eps float64, t, c int) {
	must("rmsnorm", "x", len(x), t*c)
	must("rmsnorm", "y", len(y), t*c)
	must("rmsnorm", "g", len(g), c)
	s.each(t, t*c*4, func(r int) {
		in, out := x[r*c:(r+1)*c], y[r*c:(r+1)*c]
		inv := float32(1 / math.Sqrt(float64(s.dot(in, in))/float64(c)+eps))
		s.element.norm(&out[0], &in[0], &g[0], c, inv)
	})
}

// RMSNormGrad adds the gradients of RMSNorm.
func (s *Set) RMSNormGrad(dx, dg, dy, x, g []float32, eps float64, t, c int) {
	must("rmsnorm grad", "dy", len(dy), t*c)
	must("rmsnorm grad", "x", len(x), t*c)
	n := make([]float32, c)
	for r := range t {
		in, grad := x[r*c:(r+1)*c], dy[r*c:(r+1)*c]
		inv := float32(1 / math.Sqrt(float64(s.dot(in, in))/float64(c)+eps))
		var mean float64
		for i, v := range in {
			n[i] = v * inv
			e := float32(grad[i] * g[i])
			mean += float64(e) * float64(n[i])
		}
		m := float32(mean / float64(c))
		if dg != nil {
			for i, v := range n {
				dg[i] += float32(grad[i] * v)
			}
		}
		if dx != nil {
			out := dx[r*c : (r+1)*c]
			for i, v := range n {
				out[i] += float32(inv * (float32(grad[i]*g[i]) - float32(v*m)))
			}
		}
	}
}

// moments are a row's mean and the inverse of its standard deviation.
func (s *Set) moments(x []float32, eps float64) (float32, float32) {
	mean := s.sum(&x[0], len(x)) / float32(len(x))
	b := s.buffer(len(x))
	defer s.give(b)
	s.element.shift(&(*b)[0], &x[0], len(x), mean)
	return mean, float32(1 / math.Sqrt(float64(s.dot(*b, *b))/float64(len(x))+eps))
}

// LayerNorm centres each row, scales it to unit variance and applies g and b.
func (s *Set) LayerNorm(y, x, g, b []float32, eps float64, t, c int) {
	must("layernorm", "x", len(x), t*c)
	must("layernorm", "y", len(y), t*c)
	must("layernorm", "g", len(g), c)
	s.each(t, t*c*8, func(r int) {
		in, out := x[r*c:(r+1)*c], y[r*c:(r+1)*c]
		mean, inv := s.moments(in, eps)
		s.element.shift(&out[0], &in[0], c, mean)
		s.element.norm(&out[0], &out[0], &g[0], c, inv)
		if b != nil {
			s.add(&out[0], &b[0], c)
		}
	})
}

// LayerNormGrad adds the gradients of LayerNorm.
func (s *Set) LayerNormGrad(dx, dg, db, dy, x, g []float32, eps float64, t, c int) {
	must("layernorm grad", "dy", len(dy), t*c)
	must("layernorm grad", "x", len(x), t*c)
	n, e := make([]float32, c), make([]float32, c)
	for r := range t {
		in, grad := x[r*c:(r+1)*c], dy[r*c:(r+1)*c]
		mean, inv := s.moments(in, eps)
		for i, v := range in {
			n[i] = float32((v - mean) * inv)
			e[i] = grad[i] * g[i]
		}
		meanE := s.sum(&e[0], c) / float32(c)
		meanEN := s.dot(e, n) / float32(c)
		if dg != nil {
			for i, v := range n {
				dg[i] += float32(grad[i] * v)
			}
		}
		if db != nil {
			s.add(&db[0], &grad[0], c)
		}
		if dx != nil {
			out := dx[r*c : (r+1)*c]
			for i, v := range n {
				out[i] += float32(inv * (e[i] - meanE - float32(v*meanEN)))
			}
		}
	}
}

// pieceLen is how many elements share a piece of elementwise work.
const pieceLen = 4096

// pieces calls body for ranges of n elements.
func (s *Set) pieces(n int, body func(lo, hi int)) {
	s.each((n+pieceLen-1)/pieceLen, n*16, func(i int) { body(i*pieceLen, min((i+1)*pieceLen, n)) })
}

// sigmoid writes 1/(1+exp(-a·x)) to out.
func (o *ops) sigmoid(out, x []float32, a float32) {
	o.exp(&out[0], &x[0], len(x), -a, 0)
	for i, e := range out {
		out[i] = 1 / (1 + e)
	}
}

// gate is the factor of x in an activation x·gate(x), in out; for the tanh GELU
// 0.5·(1+tanh u) = sigmoid(2u).
func (o *ops) gate(out, x []float32, act kernel.Act) {
	switch act {
	case kernel.SiLU:
		o.sigmoid(out, x, 1)
	case kernel.GELUTanh:
		for i, v := range x {
			out[i] = v * float32(1+float32(0.044715*float32(v*v)))
		}
		o.sigmoid(out, out, float32(2*math.Sqrt(2/math.Pi)))
	case kernel.GELU:
		for i, v := range x {
			out[i] = float32(0.5 * (1 + math.Erf(float64(v)/math.Sqrt2)))
		}
	default:
		panic("activate: unknown activation")
	}
}

// slope is the activation's derivative at v, whose gate is q.
func slope(v, q float32, act kernel.Act) float32 {
	switch act {
	case kernel.SiLU:
		return float32(q * (1 + float32(v*(1-q))))
	case kernel.GELUTanh:
		k := float32(2 * math.Sqrt(2/math.Pi))
		du := float32(k * (1 + float32(3*0.044715*float32(v*v))))
		return q + float32(float32(v*float32(q*(1-q)))*du)
	}
	return q + float32(float64(v)*math.Exp(-float64(v)*float64(v)/2)/math.Sqrt(2*math.Pi))
}

// gated computes act(x), times up unless that is nil, by way of the gate.
func gated(o *ops, y, x, up *float32, n int, act kernel.Act) {
	var buf [lanes]float32
	for i := 0; i < n; i += lanes {
		part := min(lanes, n-i)
		in, out := unsafe.Slice(at(x, i), part), unsafe.Slice(at(y, i), part)
		o.gate(buf[:part], in, act)
		for j, v := range in {
			g := float32(v * buf[j])
			if up != nil {
				g *= *at(up, i+j)
			}
			out[j] = g
		}
	}
}

// GLU computes act(gate)·up.
func (s *Set) GLU(y, gate, up []float32, act kernel.Act) {
	must("glu", "gate", len(gate), len(y))
	must("glu", "up", len(up), len(y))
	s.pieces(len(y), func(lo, hi int) {
		if loop := s.element.glu[act]; loop != nil {
			loop(&y[lo], &gate[lo], &up[lo], hi-lo)
			return
		}
		gated(&s.ops, &y[lo], &gate[lo], &up[lo], hi-lo, act)
	})
}

// GLUGrad adds the gradients of GLU.
func (s *Set) GLUGrad(dgate, dup, dy, gate, up []float32, act kernel.Act) {
	must("glu grad", "dy", len(dy), len(gate))
	must("glu grad", "up", len(up), len(gate))
	s.pieces(len(dy), func(lo, hi int) {
		b := s.buffer(hi - lo)
		s.gate(*b, gate[lo:hi], act)
		for i, q := range *b {
			v, d := gate[lo+i], dy[lo+i]
			dgate[lo+i] += float32(float32(d*up[lo+i]) * slope(v, q, act))
			dup[lo+i] += float32(d * float32(v*q))
		}
		s.give(b)
	})
}

// Activate computes act(x).
func (s *Set) Activate(y, x []float32, act kernel.Act) {
	must("activate", "x", len(x), len(y))
	s.pieces(len(y), func(lo, hi int) {
		if loop := s.element.act[act]; loop != nil {
			loop(&y[lo], &x[lo], hi-lo)
			return
		}
		gated(&s.ops, &y[lo], &x[lo], nil, hi-lo, act)
	})
}

// ActivateGrad adds the gradient of Activate.
func (s *Set) ActivateGrad(dx, dy, x []float32, act kernel.Act) {
	must("activate grad", "dy", len(dy), len(x))
	s.pieces(len(dy), func(lo, hi int) {
		b := s.buffer(hi - lo)
		s.gate(*b, x[lo:hi], act)
		for i, q := range *b {
			dx[lo+i] += float32(dy[lo+i] * slope(x[lo+i], q, act))
		}
		s.give(b)
	})
}

// LogSumExp returns log Σ exp(x).
func (s *Set) LogSumExp(x []float32) float64 {
	b := s.buffer(len(x))
	defer s.give(b)
	best := s.max(&x[0], len(x))
	s.exp(&(*b)[0], &x[0], len(x), 1, best)
	return float64(best) + math.Log(float64(s.sum(&(*b)[0], len(x))))
}

// CrossEntropy is the negative log-likelihood and its gradient.
func (s *Set) CrossEntropy(loss []float64, dlogits, logits []float32, targets []int32, scale float64, t, v int) {
	must("cross entropy", "logits", len(logits), t*v)
	must("cross entropy", "targets", len(targets), t)
	must("cross entropy", "loss", len(loss), t)
	if dlogits != nil {
		must("cross entropy", "dlogits", len(dlogits), t*v)
	}
	s.each(t, t*v*16, func(r int) {
		x, target := logits[r*v:(r+1)*v], targets[r]
		b := s.buffer(v)
		defer s.give(b)
		e := *b
		best := s.max(&x[0], v)
		s.exp(&e[0], &x[0], v, 1, best)
		sum := s.sum(&e[0], v)
		loss[r] = 0
		if target >= 0 {
			loss[r] = float64(best) + math.Log(float64(sum)) - float64(x[target])
		}
		if dlogits == nil {
			return
		}
		out := dlogits[r*v : (r+1)*v]
		if target < 0 {
			clear(out)
			return
		}
		k := float32(scale / float64(sum))
		for i, w := range e {
			out[i] = w * k
		}
		out[target] -= float32(scale)
	})
}
