package cpu

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// table holds the sines and cosines of a rotary embedding by position.
type table struct{ sin, cos []float32 } // [positions, Dims/2]

// angles returns tables for positions below n. They grow by doubling. The values of a position are
// computed in float64 from the position alone.
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
		for i := range r.Freq {
			sin, cos := math.Sincos(float64(p) * r.At(p, i))
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

// Rotate rotates each head of x[T,H,D] by the angles of its row's position.
func (s *Set) Rotate(x kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int) {
	s.rotate(x, r, pos, h, d, 1)
}

// RotateGrad rotates gradients by the opposite angles.
func (s *Set) RotateGrad(dx kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int) {
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
			s.element.rotate(&v[0], &v[half], &sins[0], &coss[0], half, direction)
		}
	})
}

// first returns the first position that position p attends to.
func first(p int, a kernel.Heads) int {
	if a.Window > 0 {
		return max(0, p-a.Window+1)
	}
	return 0
}
