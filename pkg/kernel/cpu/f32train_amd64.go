package cpu

import "github.com/lamina-mesh/lamina/pkg/kernel"

// trainAVX512 returns the loops for processors with AVX-512.
func trainAVX512() trainOps {
	return trainOps{
		scoreSlopes: scoreSlopes,
		actGrad: [acts]func(dx, y, dy, x *float32, n int){kernel.SiLU: siluGrad, kernel.GELUTanh: geluGrad,
			kernel.GELU: geluExactGrad},
		gluGrad: [acts]func(dx, dup, y, dy, x, up *float32, n int){kernel.SiLU: siluTimesGrad,
			kernel.GELUTanh: geluTimesGrad, kernel.GELU: geluExactTimesGrad},
		normSlopes: normSlopes, normMeans: normMeans, normColumns: normColumns, sumColumns: sumColumns16,
		sumWideColumns: sumColumns128, sumSquares: sumSquares,
		rowDots: rowDots, moments: rowMoments, rows: &causalOps{causalWeights, causalSlopes, logsOf},
		adamw: func(p, m, v, grad *float32, groups int, k *adamwConstants) {
			adamwStep(p, m, v, grad, groups, (*[9][16]float32)(k))
		},
	}
}

// trainAVX2 returns loops that process whole groups of lanes in assembly and the last elements in plain Go.
func trainAVX2(o *ops) trainOps {
	plain := trainPortable()
	t := trainOps{
		scoreSlopes: func(dw, w *float32, n int, scale, lse, delta float32) {
			scoreSlopesWide(dw, w, n, scale, lse, delta)
			if whole := n &^ (lanes - 1); whole < n {
				plain.scoreSlopes(at(dw, whole), at(w, whole), n-whole, scale, lse, delta)
			}
		},
		normSlopes: func(dx, x, dy, g *float32, n int, mean, inv, meanE, meanEN float32) {
			normSlopesWide(dx, x, dy, g, n, mean, inv, meanE, meanEN)
			if whole := n &^ (lanes - 1); whole < n {
				plain.normSlopes(at(dx, whole), at(x, whole), at(dy, whole), at(g, whole), n-whole, mean, inv, meanE,
					meanEN)
			}
		},
		normMeans: normMeansWide, normColumns: normColumnsWide, sumColumns: sumColumns16Wide,
		sumWideColumns: sumColumns128Wide, sumSquares: sumSquaresWide,
		adamw: func(p, m, v, grad *float32, groups int, k *adamwConstants) {
			adamwStepWide(p, m, v, grad, groups, (*[9][16]float32)(k))
		},
	}
	for act, loop := range map[kernel.Act]struct {
		of    func(dx, y, dy, x *float32, n int)
		times func(dx, dup, y, dy, x, up *float32, n int)
	}{kernel.SiLU: {siluGradWide, siluTimesGradWide}, kernel.GELUTanh: {geluGradWide, geluTimesGradWide},
		kernel.GELU: {geluExactGradWide, geluExactTimesGradWide}} {
		t.actGrad[act] = func(dx, y, dy, x *float32, n int) {
			loop.of(dx, y, dy, x, n)
			if whole := n &^ (lanes - 1); whole < n {
				gatedGrad(o, at(dx, whole), nil, at(y, whole), at(dy, whole), at(x, whole), nil, n-whole, act)
			}
		}
		t.gluGrad[act] = func(dx, dup, y, dy, x, up *float32, n int) {
			loop.times(dx, dup, y, dy, x, up, n)
			if whole := n &^ (lanes - 1); whole < n {
				gatedGrad(o, at(dx, whole), at(dup, whole), at(y, whole), at(dy, whole), at(x, whole), at(up, whole),
					n-whole, act)
			}
		}
	}
	t.rowDots, t.moments = rowDotsOf(o), momentsOf(o)
	return t
}
