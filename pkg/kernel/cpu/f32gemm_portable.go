package cpu

import "unsafe"

// gemmPortable are the loops in plain Go.
func gemmPortable() gemmOps {
	o := gemmOps{
		wide: lanes, tiles: []gemmTile{nil}, prefetch: func(uintptr, int, int, int) {},
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
	for rows := 1; rows <= 4; rows++ {
		o.tiles = append(o.tiles, func(c *float32, ldc int, init *float32, ldi, istep int, a *float32, rs, cs int, b *float32, ldb, step, k, panels int) {
			for panel := range panels {
				for i := range rows {
					var acc [lanes]float32
					copy(acc[:], unsafe.Slice(at(init, (i*ldi+panel*istep)/4), lanes))
					for p := range k {
						v := *at(a, (i*rs+p*cs)/4)
						for j, w := range unsafe.Slice(at(b, (p*ldb+panel*step)/4), lanes) {
							acc[j] = fma32(v, w, acc[j])
						}
					}
					copy(unsafe.Slice(at(c, i*ldc/4+panel*lanes), lanes), acc[:])
				}
			}
		})
	}
	o.narrow = o.tiles
	return o
}
