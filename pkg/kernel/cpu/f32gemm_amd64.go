package cpu

// gemmAVX512 returns the loops for processors with AVX-512.
func gemmAVX512() gemmOps {
	return gemmOps{
		wide: 2 * lanes, unit: 1, tiles: gemmTiles32(), narrow: gemmTiles16(), fromColumns: panelOfColumns,
		prefetch: prefetchRows,
		fromRows: func(dst *float32, ldd int, src *float32, lds, k int) { panelOfRows(dst, ldd, src, lds, k/lanes) },
	}
}

// gemmAVX2 returns the loops for processors with AVX2.
func gemmAVX2() gemmOps {
	const half = lanes / 2
	return gemmOps{
		wide: lanes, unit: 1, tiles: gemmTiles16Wide(), narrow: gemmTiles16Wide(), prefetch: prefetchRows,
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

// pairsAVX512 returns the loops that multiply pairs of bfloat16 with VDPBF16PS.
func pairsAVX512() gemmOps {
	return gemmOps{
		wide: 2 * lanes, unit: 2, tiles: pairGemmTiles32(), narrow: pairGemmTiles16(), prefetch: prefetchRows,
		fromRow: pairsOfRow, fromColumns: pairsOfColumns,
		fromRows: func(dst *float32, ldd int, src *float32, lds,
			k int) {
			pairsOfRows(dst, ldd, src, lds, k/(2*lanes))
		},
	}
}

// swapsAVX512 returns the loops over float32 numbers that are rounded to bfloat16 and swapped in pairs.
func swapsAVX512() gemmOps {
	o := gemmAVX512()
	o.tiles, o.narrow, o.fromColumns, o.fromPairs = flushGemmTiles32(), flushGemmTiles16(), swapOfColumns, swapOfPairs
	o.fromRow = func(dst, src *float32, k int) {
		whole := k &^ (lanes - 1)
		if whole > 0 {
			swapOfRow(dst, src, whole/lanes)
		}
		if whole < k {
			roundRow(at(dst, whole), at(src, whole), k-whole)
		}
	}
	o.fromRows = func(dst *float32, ldd int, src *float32, lds, k int) { swapOfRows(dst, ldd, src, lds, k/lanes) }
	return o
}

// pairsAVX2 returns the loops over float32 numbers that are rounded to bfloat16 and swapped in pairs.
func pairsAVX2() gemmOps {
	const half = lanes / 2
	plain := gemmAVX2()
	o := plain
	o.tiles = flushGemmTiles16Wide()
	o.narrow = o.tiles
	o.fromRow = func(dst, src *float32, k int) {
		whole := k &^ (half - 1)
		if whole > 0 {
			roundRowWide(dst, src, whole/half)
		}
		if whole < k {
			roundRow(at(dst, whole), at(src, whole), k-whole)
		}
	}
	rows := func(dst *float32, ldd, k int) {
		if k > 1 {
			roundRowsWide(dst, ldd, k/2)
		}
		if k%2 == 1 {
			roundRows(at(dst, (k-1)*ldd/4), ldd, 1, lanes)
		}
	}
	o.fromRows = func(dst *float32, ldd int, src *float32, lds, k int) {
		plain.fromRows(dst, ldd, src, lds, k)
		rows(dst, ldd, k)
	}
	o.fromColumns = func(dst *float32, ldd int, src *float32, lds, k, columns int) {
		plain.fromColumns(dst, ldd, src, lds, k, columns)
		rows(dst, ldd, k)
	}
	return o
}
