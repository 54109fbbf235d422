package cpu

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// table holds the sines and cosines of a rotary embedding by position.
type table struct{ sin, cos []float32 } // [positions, Dims/2]

// angles returns tables for positions below n. They grow by doubling, so a
// position's values are computed once, in float64, and never depend on the call.
func (s *Set) angles(r *kernel.Rotary, n int) *table {
	s.mu.Lock()
	defer s.mu.Unlock()
	half := r.Dims / 2
	t := s.tables[r]
	have := 0
	if t != nil {
		have = len(t.sin) / half
	}
	if have >= n {
		return t
	}
	size := max(256, 2*have, n)
	grown := &table{make([]float32, size*half), make([]float32, size*half)}
	for p := range size {
		for i, f := range r.Freq {
			sin, cos := math.Sincos(float64(p) * f)
			grown.sin[p*half+i], grown.cos[p*half+i] = float32(sin*r.Scale), float32(cos*r.Scale)
		}
	}
	if len(s.tables) >= maxTables {
		clear(s.tables)
	}
	s.tables[r] = grown
	return grown
}

// maxTables bounds the rotary embeddings whose tables are kept.
const maxTables = 64

// Rotate turns each head of x[T,H,D] to its row's position.
func (s *Set) Rotate(x []float32, r *kernel.Rotary, pos []int32, h, d int) {
	s.rotate(x, r, pos, h, d, 1)
}

// RotateGrad turns gradients back.
func (s *Set) RotateGrad(dx []float32, r *kernel.Rotary, pos []int32, h, d int) {
	s.rotate(dx, r, pos, h, d, -1)
}

func (s *Set) rotate(x []float32, r *kernel.Rotary, pos []int32, h, d int, direction float32) {
	must("rotate", "x", len(x), len(pos)*h*d)
	must("rotate", "freq", len(r.Freq), r.Dims/2)
	highest := 0
	for _, p := range pos {
		highest = max(highest, int(p))
	}
	t, half := s.angles(r, highest+1), r.Dims/2
	s.each(len(pos), len(x)*2, func(row int) {
		at := int(pos[row]) * half
		sins, coss := t.sin[at:at+half], t.cos[at:at+half]
		for head := range h {
			v := x[(row*h+head)*d:][:d]
			if r.Interleaved {
				for i, sin := range sins {
					sin *= direction
					a, b := v[2*i], v[2*i+1]
					v[2*i], v[2*i+1] = float32(a*coss[i])-float32(b*sin), float32(a*sin)+float32(b*coss[i])
				}
				continue
			}
			s.element.turn(&v[0], &v[half], &sins[0], &coss[0], half, direction)
		}
	})
}

// first is the first position that position p sees.
func first(p int, a kernel.Heads) int {
	if a.Window > 0 {
		return max(0, p-a.Window+1)
	}
	return 0
}

// AttendCausal is attention over whole sequences. One head of one sequence is a
// piece of work; its scores [T,T] live in scratch.
func (s *Set) AttendCausal(y, lse, q, k, v []float32, b, t int, a kernel.Heads) {
	must("attend causal", "q", len(q), b*t*a.H*a.D)
	must("attend causal", "y", len(y), b*t*a.H*a.D)
	must("attend causal", "k", len(k), b*t*a.K*a.D)
	must("attend causal", "v", len(v), b*t*a.K*a.D)
	must("attend causal", "lse", len(lse), b*t*a.H)
	qw, kw := a.H*a.D, a.K*a.D
	s.each(b*a.H, 2*b*t*t*qw, func(i int) {
		seq, head := i/a.H, i%a.H
		kv := head / (a.H / a.K)
		qo, ko := seq*t*qw+head*a.D, seq*t*kw+kv*a.D
		buf := s.buffer(t*t + t*a.D)
		defer s.give(buf)
		scores, vT := (*buf)[:t*t], (*buf)[t*t:]
		s.dotsGemm(scores, t, q[qo:], qw, k[ko:], kw, t, t, a.D, false)
		for p := range t {
			lse[(seq*t+p)*a.H+head] = s.softmax(scores[p*t:(p+1)*t], p, a)
		}
		transpose(vT, v[ko:], kw, t, a.D)
		s.dotsGemm(y[qo:], qw, scores, t, vT, t, t, a.D, t, false)
	})
}

// softmax turns a row of raw scores into weights, zero outside what position p sees,
// and returns the log-sum-exp of the scaled scores.
func (s *Set) softmax(row []float32, p int, a kernel.Heads) float32 {
	lo, n := first(p, a), p+1
	scale := float32(a.Scale)
	best := s.max(&row[lo], n-lo) * scale
	s.exp(&row[lo], &row[lo], n-lo, scale, best)
	sum := s.sum(&row[lo], n-lo)
	inv := 1 / sum
	clear(row[:lo])
	clear(row[n:])
	for i := lo; i < n; i++ {
		row[i] *= inv
	}
	return best + float32(math.Log(float64(sum)))
}

// AttendCausalGrad adds to dq, dk, dv. The weights are computed again from the
// scores and the kept log-sum-exp. Heads that share a key/value head are one piece of
// work, so that their sums meet in one order.
func (s *Set) AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v []float32, b, t int, a kernel.Heads) {
	must("attend causal grad", "dy", len(dy), b*t*a.H*a.D)
	qw, kw, group := a.H*a.D, a.K*a.D, a.H/a.K
	s.each(b*a.K, 5*b*t*t*qw, func(i int) {
		seq, kv := i/a.K, i%a.K
		ko := seq*t*kw + kv*a.D
		buf := s.buffer(4*t*t + 3*t*a.D)
		defer s.give(buf)
		rest := *buf
		take := func(n int) []float32 {
			out := rest[:n]
			rest = rest[n:]
			return out
		}
		weights, ds, weightsT, dsT := take(t*t), take(t*t), take(t*t), take(t*t)
		kT, qT, dyT := take(t*a.D), take(t*a.D), take(t*a.D)
		transpose(kT, k[ko:], kw, t, a.D)
		for head := kv * group; head < (kv+1)*group; head++ {
			qo := seq*t*qw + head*a.D
			s.dotsGemm(weights, t, q[qo:], qw, k[ko:], kw, t, t, a.D, false)
			s.dotsGemm(ds, t, dy[qo:], qw, v[ko:], kw, t, t, a.D, false)
			for p := range t {
				s.scoreGrad(weights[p*t:(p+1)*t], ds[p*t:(p+1)*t], dy[qo+p*qw:][:a.D], y[qo+p*qw:][:a.D], lse[(seq*t+p)*a.H+head], p, a)
			}
			transpose(weightsT, weights, t, t, t)
			transpose(dsT, ds, t, t, t)
			transpose(qT, q[qo:], qw, t, a.D)
			transpose(dyT, dy[qo:], qw, t, a.D)
			s.dotsGemm(dq[qo:], qw, ds, t, kT, t, t, a.D, t, true)
			s.dotsGemm(dk[ko:], kw, dsT, t, qT, t, t, a.D, t, true)
			s.dotsGemm(dv[ko:], kw, weightsT, t, dyT, t, t, a.D, t, true)
		}
	})
}

// scoreGrad turns a row of raw scores into weights, and of dy·v into the scores'
// gradient: w·(dy·v - dy·y)·scale.
func (s *Set) scoreGrad(weights, ds, dy, y []float32, lse float32, p int, a kernel.Heads) {
	lo, n := first(p, a), p+1
	s.exp(&weights[lo], &weights[lo], n-lo, float32(a.Scale), lse)
	delta, scale := s.dot(dy, y), float32(a.Scale)
	clear(weights[:lo])
	clear(weights[n:])
	clear(ds[:lo])
	clear(ds[n:])
	for i := lo; i < n; i++ {
		ds[i] = float32(weights[i]*(ds[i]-delta)) * scale
	}
}
