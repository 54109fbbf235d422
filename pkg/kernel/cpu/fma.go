package cpu

import "math"

// fma32 returns x·y + z rounded once, as the processor's fused multiply-add does. The product is exact in
// float64. The sum is rounded to odd there: its error decides the last bit, so that the second rounding,
// to float32, gives the correctly rounded sum (Boldo and Melquiond, 2008).
func fma32(x, y, z float32) float32 {
	p, c := float64(x)*float64(y), float64(z)
	s := p + c
	t := s - p
	err := (p - (s - t)) + (c - t)
	if err != 0 && !math.IsInf(s, 0) {
		if bits := math.Float64bits(s); bits&1 == 0 {
			if err > 0 == (s > 0) {
				s = math.Float64frombits(bits + 1)
			} else {
				s = math.Float64frombits(bits - 1)
			}
		}
	}
	return float32(s)
}
