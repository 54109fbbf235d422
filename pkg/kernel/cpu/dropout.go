package cpu

import "github.com/lamina-mesh/lamina/pkg/kernel"

// Dropout drops values of the rows of x[T,C].
func (s *Set) Dropout(x kernel.Buffer[float32], d kernel.Dropout, t, c int) {
	must("dropout", "x", len(x), t*c)
	if d.Rate == 0 {
		return
	}
	s.each(t, 4*t*c, func(r int) { kernel.Drop(x[r*c:(r+1)*c], d, r, 0) })
}
