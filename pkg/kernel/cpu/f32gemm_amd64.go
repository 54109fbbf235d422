package cpu

func gemmAVX512() gemmOps {
	return gemmOps{
		wide: 2 * lanes, tiles: gemmTiles32(), narrow: gemmTiles16(), fromColumns: panelOfColumns, prefetch: prefetchRows,
		fromRows: func(dst *float32, ldd int, src *float32, lds, k int) { panelOfRows(dst, ldd, src, lds, k/lanes) },
	}
}

func gemmAVX2() gemmOps {
	const half = lanes / 2
	return gemmOps{
		wide: lanes, tiles: gemmTiles16Wide(), narrow: gemmTiles16Wide(), prefetch: prefetchRows,
		fromRows: func(dst *float32, ldd int, src *float32, lds, k int) {
			panelOfRowsWide(dst, ldd, src, lds, k/half)
			panelOfRowsWide(at(dst, half), ldd, at(src, half*lds/4), lds, k/half)
		},
		fromColumns: func(dst *float32, ldd int, src *float32, lds, k, columns int) {
			for done := 0; done < columns; done += half {
				var mask [half]uint32
				for i := range min(half, columns-done) {
					mask[i] = ^uint32(0)
				}
				panelOfColumnsWide(at(dst, done), ldd, at(src, done), lds, k, &mask)
			}
		},
	}
}
