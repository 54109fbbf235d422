package cpu

import "github.com/lamina-mesh/lamina/pkg/kernel"

// elementsAVX512 returns the loops for processors with AVX-512.
func elementsAVX512() elementOps {
	return elementOps{
		act: [acts]func(y, x *float32, n int){kernel.SiLU: siluOf, kernel.GELUTanh: geluOf, kernel.GELU: geluExactOf},
		glu: [acts]func(y, x, up *float32, n int){kernel.SiLU: siluTimes, kernel.GELUTanh: geluTimes,
			kernel.GELU: geluExactTimes},
		norm: scaleTimes, shift: shiftTo, centre: centreTo, scale: scaleTo, rotate: rotatePairs,
	}
}

// elementsAVX2 returns loops that process whole groups of lanes in assembly and the last elements in plain Go.
func elementsAVX2(o *ops) elementOps {
	plain := elementsPortable()
	e := elementOps{
		norm: func(y, x, g *float32, n int, s float32) {
			scaleTimesWide(y, x, g, n, s)
			if whole := n &^ (lanes - 1); whole < n {
				plain.norm(at(y, whole), at(x, whole), at(g, whole), n-whole, s)
			}
		},
		shift: func(y, x *float32, n int, s float32) {
			shiftToWide(y, x, n, s)
			if whole := n &^ (lanes - 1); whole < n {
				plain.shift(at(y, whole), at(x, whole), n-whole, s)
			}
		},
		centre: func(y, x, g, b *float32, n int, mean, inv float32) {
			centreToWide(y, x, g, b, n, mean, inv)
			if whole := n &^ (lanes - 1); whole < n {
				plain.centre(at(y, whole), at(x, whole), at(g, whole), at(b, whole), n-whole, mean, inv)
			}
		},
		scale: func(y, x *float32, n int, s float32) {
			scaleToWide(y, x, n, s)
			if whole := n &^ (lanes - 1); whole < n {
				plain.scale(at(y, whole), at(x, whole), n-whole, s)
			}
		},
		rotate: func(lo, hi, sin, cos *float32, n int, forward float32) {
			rotatePairsWide(lo, hi, sin, cos, n, forward)
			if whole := n &^ (lanes - 1); whole < n {
				plain.rotate(at(lo, whole), at(hi, whole), at(sin, whole), at(cos, whole), n-whole, forward)
			}
		},
	}
	for act, loop := range map[kernel.Act]struct {
		of    func(y, x *float32, n int)
		times func(y, x, up *float32, n int)
	}{kernel.SiLU: {siluOfWide, siluTimesWide}, kernel.GELUTanh: {geluOfWide, geluTimesWide},
		kernel.GELU: {geluExactOfWide, geluExactTimesWide}} {
		e.act[act] = func(y, x *float32, n int) {
			loop.of(y, x, n)
			if whole := n &^ (lanes - 1); whole < n {
				gated(o, at(y, whole), at(x, whole), nil, n-whole, act)
			}
		}
		e.glu[act] = func(y, x, up *float32, n int) {
			loop.times(y, x, up, n)
			if whole := n &^ (lanes - 1); whole < n {
				gated(o, at(y, whole), at(x, whole), at(up, whole), n-whole, act)
			}
		}
	}
	return e
}
