package cpu

import "unsafe"

// gemmPortable returns the loops in plain Go.
func gemmPortable() gemmOps {
	o := gemmOps{
		wide: lanes, unit: 1, prefetch: func(uintptr, int, int, int) {},
		fromRows: func(dst *float32, ldd int, src *float32, lds, k int) {
			for c := range lanes {
				for i, v := range unsafe.Slice(at(src, c*lds/4), k) {
					*at(dst, i*ldd/4+c) = v
				}
			}
		},
		fromColumns: func(dst *float32, ldd int, src *float32, lds, k, columns int) {
			for i := range k {
				copy(unsafe.Slice(at(dst, i*ldd/4), columns), unsafe.Slice(at(src, i*lds/4), columns))
			}
		},
	}
	o.tiles = plainTiles(fma32)
	o.narrow = o.tiles
	return o
}

// plainTiles returns tiles of up to four rows and lanes columns.
func plainTiles(fma func(x, y, z float32) float32) []gemmTile {
	tiles := []gemmTile{nil}
	for rows := 1; rows <= 4; rows++ {
		tiles = append(tiles, func(c *float32, ldc int, init *float32, ldi, istep int, a *float32, rs, cs int,
			b *float32, ldb, step, k, panels int) {
			for panel := range panels {
				for i := range rows {
					var acc [lanes]float32
					copy(acc[:], unsafe.Slice(at(init, (i*ldi+panel*istep)/4), lanes))
					for p := range k {
						v := *at(a, (i*rs+p*cs)/4)
						for j, w := range unsafe.Slice(at(b, (p*ldb+panel*step)/4), lanes) {
							acc[j] = fma(v, w, acc[j])
						}
					}
					copy(unsafe.Slice(at(c, i*ldc/4+panel*lanes), lanes), acc[:])
				}
			}
		})
	}
	return tiles
}
