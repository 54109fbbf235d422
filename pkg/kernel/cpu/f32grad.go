package cpu

import (
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// RMSNormGrad adds the gradients of RMSNorm, which are those of LayerNorm with means of zero.
func (s *Set) RMSNormGrad(dx, dg, dy, x, g kernel.Buffer[float32], eps float64, t, c int) {
	must("rmsnorm grad", "dy", len(dy), t*c)
	must("rmsnorm grad", "x", len(x), t*c)
	s.normGrad(dx, dg, nil, dy, x, g, t, c, func(stats, x []float32) {
		for i := 0; i < len(stats); i += 2 {
			in := x[i/2*c:][:c]
			stats[i], stats[i+1] = 0, float32(1/math.Sqrt(float64(s.dot(in, in))/float64(c)+eps))
		}
	}, false)
}

// LayerNormGrad adds the gradients of LayerNorm.
func (s *Set) LayerNormGrad(dx, dg, db, dy, x, g kernel.Buffer[float32], eps float64, t, c int) {
	must("layernorm grad", "dy", len(dy), t*c)
	must("layernorm grad", "x", len(x), t*c)
	s.normGrad(dx, dg, db, dy, x, g, t, c, func(stats, x []float32) { s.moments(stats, x, eps, c) }, true)
}

// normGrad adds gradients: dx row by row, and then dg and db over the rows in order.
func (s *Set) normGrad(dx, dg, db, dy, x, g []float32, t, c int, moments func(stats, x []float32), centred bool) {
	pieces := (t + normRows - 1) / normRows
	b := s.buffer(2*t + 2*lanes*pieces)
	defer s.give(b)
	stats := (*b)[:2*t]
	s.each(pieces, t*c*8, func(i int) {
		sums := (*b)[2*t+2*lanes*i:][:2*lanes]
		lo, hi := i*normRows, min((i+1)*normRows, t)
		moments(stats[2*lo:2*hi], x[lo*c:hi*c])
		if dx == nil {
			return
		}
		for r := lo; r < hi; r++ {
			in, grad := x[r*c:(r+1)*c], dy[r*c:(r+1)*c]
			mean, inv := stats[2*r], stats[2*r+1]
			meanE, meanEN := s.meansOf(sums, in, grad, g, mean, inv)
			if !centred {
				meanE = 0
			}
			s.train.normSlopes(&dx[r*c], &in[0], &grad[0], &g[0], c, mean, inv, meanE, meanEN)
		}
	})
	if dg == nil && db == nil || t == 0 {
		return
	}
	s.columnPieces(c, t*c*4, func(lo, hi int) {
		var spare [2 * lanes]float32
		for ; lo < hi; lo += lanes {
			gains, biases := &spare[0], &spare[lanes]
			if dg != nil {
				gains = &dg[lo]
			}
			if db != nil {
				biases = &db[lo]
			}
			if lo+lanes <= hi {
				s.train.normColumns(gains, biases, &x[lo], &dy[lo], 4*c, t, &stats[0])
			} else {
				plainColumns(gains, biases, &x[lo], &dy[lo], 4*c, t, hi-lo, &stats[0])
			}
		}
	})
}

// meansOf returns the means of e = dy·g and of e·n over a row, summed in canonical lanes.
func (s *Set) meansOf(sums, x, dy, g []float32, mean, inv float32) (e, en float32) {
	clear(sums)
	groups := len(x) / lanes
	if groups > 0 {
		s.train.normMeans(&sums[0], &x[0], &dy[0], &g[0], groups, mean, inv)
	}
	plainMeans(sums, &x[0], &dy[0], &g[0], groups*lanes, len(x), mean, inv)
	n := float32(len(x))
	return s.sum(&sums[0], lanes) / n, s.sum(&sums[lanes], lanes) / n
}

// slope returns the derivative of the activation at v, where q is its gate.
func slope(v, q float32, act kernel.Act) float32 {
	switch act {
	case kernel.SiLU:
		return float32(q * (1 + float32(v*(1-q))))
	case kernel.GELUTanh:
		k := float32(2 * math.Sqrt(2/math.Pi))
		du := float32(k * (1 + float32(3*0.044715*float32(v*v))))
		return q + float32(float32(v*float32(q*(1-q)))*du)
	}
	_, e := normal32(v)
	return q + float32(float32(v*e)*float32(1/math.Sqrt(2*math.Pi)))
}

// gatedGrad computes an activation, times up unless that is nil, and its gradient from the gate.
func gatedGrad(o *ops, dx, dup, y, dy, x, up *float32, n int, act kernel.Act) {
	var buf [lanes]float32
	for i := 0; i < n; i += lanes {
		part := min(lanes, n-i)
		in := unsafe.Slice(at(x, i), part)
		o.gate(buf[:part], in, act)
		for j, v := range in {
			d, q := *at(dy, i+j), buf[j]
			out := float32(v * q)
			if up != nil {
				factor := *at(up, i+j)
				d, *at(dup, i+j) = float32(d*factor), d*out
				out *= factor
			}
			*at(y, i+j) = out
			*at(dx, i+j) = d * slope(v, q, act)
		}
	}
}

// GLUGrad overwrites dgate and dup, one of which may be dy, and y unless it is nil.
func (s *Set) GLUGrad(dgate, dup, y, dy, gate, up kernel.Buffer[float32], act kernel.Act) {
	must("glu grad", "dy", len(dy), len(gate))
	must("glu grad", "up", len(up), len(gate))
	must("glu grad", "dgate", len(dgate), len(gate))
	must("glu grad", "dup", len(dup), len(gate))
	s.activated("glu grad", y, len(gate), func(y *float32, lo, n int) {
		if loop := s.train.gluGrad[act]; loop != nil {
			loop(&dgate[lo], &dup[lo], y, &dy[lo], &gate[lo], &up[lo], n)
			return
		}
		gatedGrad(&s.ops, &dgate[lo], &dup[lo], y, &dy[lo], &gate[lo], &up[lo], n, act)
	})
}

// ActivateGrad overwrites dx, which may be dy, and y unless it is nil.
func (s *Set) ActivateGrad(dx, y, dy, x kernel.Buffer[float32], act kernel.Act) {
	must("activate grad", "dy", len(dy), len(x))
	must("activate grad", "dx", len(dx), len(x))
	s.activated("activate grad", y, len(x), func(y *float32, lo, n int) {
		if loop := s.train.actGrad[act]; loop != nil {
			loop(&dx[lo], y, &dy[lo], &x[lo], n)
			return
		}
		gatedGrad(&s.ops, &dx[lo], nil, y, &dy[lo], &x[lo], nil, n, act)
	})
}

// activated calls body for pieces of n elements, with the memory for their activations: a piece of y,
// or scratch if y is nil.
func (s *Set) activated(op string, y []float32, n int, body func(y *float32, lo, n int)) {
	if y != nil {
		must(op, "y", len(y), n)
		s.pieces(n, func(lo, hi int) { body(&y[lo], lo, hi-lo) })
		return
	}
	s.pieces(n, func(lo, hi int) {
		var discarded [pieceLen]float32
		body(&discarded[0], lo, hi-lo)
	})
}

// CrossEntropy computes the negative log-likelihood and its gradient.
func (s *Set) CrossEntropy(loss []float64, dlogits, logits kernel.Buffer[float32], targets []int32, scale float64, t,
	v int) {
	must("cross entropy", "logits", len(logits), t*v)
	must("cross entropy", "targets", len(targets), t)
	must("cross entropy", "loss", len(loss), t)
	if dlogits != nil {
		must("cross entropy", "dlogits", len(dlogits), t*v)
	}
	s.each(t, t*v*16, func(r int) {
		x, target := logits[r*v:(r+1)*v], targets[r]
		loss[r] = 0
		if target < 0 {
			if dlogits != nil {
				clear(dlogits[r*v : (r+1)*v])
			}
			return
		}
		var e []float32
		if dlogits != nil {
			e = dlogits[r*v : (r+1)*v]
		} else {
			b := s.buffer(v)
			defer s.give(b)
			e = *b
		}
		best := s.max(&x[0], v)
		wanted := float64(x[target]) // dlogits may be logits
		s.exp(&e[0], &x[0], v, 1, best)
		sum := s.sum(&e[0], v)
		loss[r] = float64(best) + logOf(float64(sum)) - wanted
		if dlogits != nil {
			s.element.scale(&e[0], &e[0], v, float32(scale/float64(sum)))
			e[target] -= float32(scale)
		}
	})
}
