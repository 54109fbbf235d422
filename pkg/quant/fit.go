package quant

import "math"

// The searches below look for a scale, and a minimum where the type has one, that minimise the weighted squared error
// of a few elements with integer codes. For fixed codes the best scale has a closed form (least squares), and for a
// fixed scale the best codes are the nearest ones. The search tries a range of first scales, because these two steps in
// turns end in the nearest local minimum only, and then repeats the two steps from the best one.
//
// Sums are in float64. Products are converted before they are added, so no compiler fuses them and the result is the
// same on every machine.

const (
	tries  = 21 // first scales that are tried
	spread = 0.1
	turns  = 8 // at most, of the two steps
)

// weightAt returns the weight of element i.
func weightAt(w []float32, i int) float64 {
	if w == nil {
		return 1
	}
	return float64(w[i])
}

// nearest rounds v half up and limits it to [low,high].
func nearest(v float64, low, high int) int {
	if !(v > float64(low)) {
		return low
	}
	if v >= float64(high) {
		return high
	}
	return int(v-float64(low)+0.5) + low // the conversion truncates, and the sum is positive
}

// moments are the weighted sums that determine the error of scale*q + low for given codes.
type moments struct{ w, x, q, qq, qx float64 }

// affine returns the scale and the minimum of the least error, and by how much the error is below that of all zeros.
// With notAbove, the minimum is at most 0.
func (m *moments) affine(notAbove bool) (scale, low, gain float64) {
	if det := float64(m.w*m.qq) - float64(m.q*m.q); det > 0 {
		scale = (float64(m.w*m.qx) - float64(m.q*m.x)) / det
		low = (float64(m.qq*m.x) - float64(m.q*m.qx)) / det
	} else if m.w > 0 { // all codes are equal
		scale, low = 0, m.x/m.w
	}
	if notAbove && low > 0 {
		scale, low = 0, 0
		if m.qq > 0 {
			scale = m.qx / m.qq
		}
	}
	if scale < 0 {
		return 0, 0, 0
	}
	cross := float64(scale*m.qx) + float64(low*m.x)
	square := float64(scale*scale*m.qq) + float64(2*scale*low*m.q) + float64(low*low*m.w)
	return scale, low, 2*cross - square
}

// affineMoments sums over the elements with their nearest codes in [0,top].
func affineMoments(x, w []float32, scale, low float64, top int) (m moments) {
	inv := 0.0
	if scale > 0 {
		inv = 1 / scale
	}
	for i, v := range x {
		wi, xi := weightAt(w, i), float64(v)
		q := float64(nearest((xi-low)*inv, 0, top))
		wq := wi * q
		m.w += wi
		m.x += float64(wi * xi)
		m.q += wq
		m.qq += float64(wq * q)
		m.qx += float64(wq * xi)
	}
	return m
}

// fitAffine looks for scale >= 0 and low such that scale*q + low is near x for codes q in [0,top], and sets q. With
// notAbove, low is at most 0.
func fitAffine(x, w []float32, top int, notAbove bool, q []byte) (scale, low float64) {
	smallest, largest := float64(x[0]), float64(x[0])
	for _, v := range x {
		smallest, largest = min(smallest, float64(v)), max(largest, float64(v))
	}
	if notAbove {
		smallest = min(smallest, 0)
	}
	if !(largest > smallest) {
		clear(q)
		return 0, smallest
	}
	best := math.Inf(-1)
	for try := range tries {
		first := (largest - smallest) / (float64(top) + spread*float64(try-tries/2))
		m := affineMoments(x, w, first, smallest, top)
		s, l, gain := m.affine(notAbove)
		if gain > best {
			scale, low, best = s, l, gain
		}
	}
	for range turns {
		m := affineMoments(x, w, scale, low, top)
		s, l, gain := m.affine(notAbove)
		if gain <= best {
			break
		}
		scale, low, best = s, l, gain
	}
	nearestAffine(x, scale, low, top, q)
	return scale, low
}

// nearestAffine sets the codes nearest to x.
func nearestAffine(x []float32, scale, low float64, top int, q []byte) {
	inv := 0.0
	if scale > 0 {
		inv = 1 / scale
	}
	for i, v := range x {
		q[i] = byte(nearest((float64(v)-low)*inv, 0, top))
	}
}

// symmetricMoments sums over the elements with their nearest codes in [-half,half-1].
func symmetricMoments(x, w []float32, scale float64, half int) (qq, qx float64) {
	inv := 0.0
	if scale != 0 {
		inv = 1 / scale
	}
	for i, v := range x {
		xi := float64(v)
		q := float64(nearest(xi*inv, -half, half-1))
		wq := weightAt(w, i) * q
		qq += float64(wq * q)
		qx += float64(wq * xi)
	}
	return qq, qx
}

// fitSymmetric looks for a scale of either sign such that scale*q is near x for codes q in [-half,half-1], and sets q.
func fitSymmetric(x, w []float32, half int, q []int8) (scale float64) {
	most := float64(extreme(x))
	best := 0.0
	take := func(first float64) bool {
		qq, qx := symmetricMoments(x, w, first, half)
		if !(qq > 0) || qx*qx/qq <= best {
			return false
		}
		scale, best = qx/qq, qx*qx/qq
		return true
	}
	if most != 0 {
		for try := range tries {
			take(-most / (float64(half) + spread*float64(try-tries/2)))
		}
		for turn := 0; turn < turns && take(scale); turn++ {
		}
	}
	nearestSymmetric(x, scale, half, q)
	return scale
}

// nearestSymmetric sets the codes nearest to x.
func nearestSymmetric(x []float32, scale float64, half int, q []int8) {
	inv := 0.0
	if scale != 0 {
		inv = 1 / scale
	}
	for i, v := range x {
		q[i] = int8(nearest(float64(v)*inv, -half, half-1))
	}
}
