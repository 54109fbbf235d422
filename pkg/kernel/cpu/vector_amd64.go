package cpu

import "unsafe"

//go:noescape
func axpyWide(y, x *float32, groups int, s float32)

//go:noescape
func addWide(y, x *float32, groups int)

//go:noescape
func dotWide(lanes, a, b *float32, groups int)

//go:noescape
func sumWide(lanes, x *float32, groups int)

//go:noescape
func maxWide(lanes, x *float32, groups int)

//go:noescape
func expWide(dst, src *float32, groups int, s, sub float32)

// vectorAVX2 replaces the plain loops by AVX2 loops over whole groups of lanes. The plain loops process the last
// elements.
func vectorAVX2(o *ops) {
	plain := *o
	o.axpy = func(y, x *float32, n int, s float32) {
		if n >= lanes {
			axpyWide(y, x, n/lanes, s)
		}
		if whole := n &^ (lanes - 1); whole < n {
			plain.axpy(at(y, whole), at(x, whole), n-whole, s)
		}
	}
	o.add = func(y, x *float32, n int) {
		if n >= lanes {
			addWide(y, x, n/lanes)
		}
		if whole := n &^ (lanes - 1); whole < n {
			plain.add(at(y, whole), at(x, whole), n-whole)
		}
	}
	o.exp = func(dst, src *float32, n int, s, sub float32) {
		if n >= lanes {
			expWide(dst, src, n/lanes, s, sub)
		}
		if whole := n &^ (lanes - 1); whole < n {
			plain.exp(at(dst, whole), at(src, whole), n-whole, s, sub)
		}
	}
	o.sum = func(x *float32, n int) float32 {
		var acc [lanes]float32
		if n >= lanes {
			sumWide(&acc[0], x, n/lanes)
		}
		for i := n &^ (lanes - 1); i < n; i++ {
			acc[i%lanes] += *at(x, i)
		}
		return fold(&acc)
	}
	o.max = func(x *float32, n int) float32 {
		if n < lanes {
			return plain.max(x, n)
		}
		acc := *(*[lanes]float32)(unsafe.Pointer(x))
		maxWide(&acc[0], x, n/lanes)
		best := plain.max(&acc[0], lanes)
		for i := n &^ (lanes - 1); i < n; i++ {
			best = max(best, *at(x, i))
		}
		return best
	}
	o.dot = func(a, b *float32, n int) float32 {
		var acc [lanes]float32
		if n >= lanes {
			dotWide(&acc[0], a, b, n/lanes)
		}
		for i := n &^ (lanes - 1); i < n; i++ {
			acc[i%lanes] = fma32(*at(a, i), *at(b, i), acc[i%lanes])
		}
		return fold(&acc)
	}
}

// joinAVX2 is join with AVX2.
func joinAVX2(y, x *float32, n int, a, b float32) {
	if n >= lanes {
		joinSumsWide(y, x, n/lanes, a, b)
	}
	if whole := n &^ (lanes - 1); whole < n {
		plainJoin(at(y, whole), at(x, whole), n-whole, a, b)
	}
}
