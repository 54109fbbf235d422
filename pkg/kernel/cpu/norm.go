package cpu

import (
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// dot returns Σ a·b in the canonical order.
func (s *Set) dot(a, b []float32) float32 { return s.ops.dot(&a[0], &b[0], len(a)) }

// RMSNorm divides each row by its root mean square.
func (s *Set) RMSNorm(y, x, g kernel.Buffer[float32], eps float64, t, c int) {
	must("rmsnorm", "x", len(x), t*c)
	must("rmsnorm", "y", len(y), t*c)
	must("rmsnorm", "g", len(g), c)
	s.each(t, t*c*4, func(r int) {
		in, out := x[r*c:(r+1)*c], y[r*c:(r+1)*c]
		inv := float32(1 / math.Sqrt(float64(s.dot(in, in))/float64(c)+eps))
		s.element.norm(&out[0], &in[0], &g[0], c, inv)
	})
}

// normRows is the number of rows in a piece of a norm's work.
const normRows = 16

// moments writes the means of rows of c elements and the inverses of their standard
// deviations, in pairs.
func (s *Set) moments(stats, x []float32, eps float64, c int) {
	s.train.moments(&stats[0], &x[0], 4*c, c, len(x)/c)
	for i := 1; i < len(stats); i += 2 {
		stats[i] = float32(1 / math.Sqrt(float64(stats[i])/float64(c)+eps))
	}
}

// LayerNorm centres each row, scales it to unit variance and applies g and b.
func (s *Set) LayerNorm(y, x, g, b kernel.Buffer[float32], eps float64, t, c int) {
	must("layernorm", "x", len(x), t*c)
	must("layernorm", "y", len(y), t*c)
	must("layernorm", "g", len(g), c)
	s.each((t+normRows-1)/normRows, t*c*8, func(i int) {
		lo, hi := i*normRows, min((i+1)*normRows, t)
		room := s.buffer(2 * (hi - lo))
		defer s.give(room)
		stats := *room
		s.moments(stats, x[lo*c:hi*c], eps, c)
		for r := lo; r < hi; r++ {
			in, out, mean, inv := &x[r*c], &y[r*c], stats[2*(r-lo)], stats[2*(r-lo)+1]
			if b != nil {
				s.element.centre(out, in, &g[0], &b[0], c, mean, inv)
				continue
			}
			s.element.shift(out, in, c, mean)
			s.element.norm(out, out, &g[0], c, inv)
		}
	})
}

// pieceLen is the number of elements in a piece of elementwise work.
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

// gate writes the factor gate(x) of an activation x·gate(x) to out. For the tanh GELU it uses
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
			out[i], _ = normal32(v)
		}
	default:
		panic("activate: unknown activation")
	}
}

// gated computes act(x), times up unless that is nil, from the gate.
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
func (s *Set) GLU(y, gate, up kernel.Buffer[float32], act kernel.Act) {
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

// Activate computes act(x).
func (s *Set) Activate(y, x kernel.Buffer[float32], act kernel.Act) {
	must("activate", "x", len(x), len(y))
	s.pieces(len(y), func(lo, hi int) {
		if loop := s.element.act[act]; loop != nil {
			loop(&y[lo], &x[lo], hi-lo)
			return
		}
		gated(&s.ops, &y[lo], &x[lo], nil, hi-lo, act)
	})
}

// LogSumExp returns log Σ exp(x).
func (s *Set) LogSumExp(x kernel.Buffer[float32]) float64 {
	b := s.buffer(len(x))
	defer s.give(b)
	best := s.max(&x[0], len(x))
	s.exp(&(*b)[0], &x[0], len(x), 1, best)
	return float64(best) + math.Log(float64(s.sum(&(*b)[0], len(x))))
}
