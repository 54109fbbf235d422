package kernel

import "github.com/lamina-mesh/lamina/pkg/tensor"

// Dropout sets a share of values to zero and scales the others by 1/(1-Rate). Whether a value is kept
// depends on the key, the value's row and its index in the row only (counter-based random numbers), so a
// backward pass makes the same choice again, and nothing depends on threads or the order of the work.
type Dropout struct {
	Rate float64 // from 0 (none) to below 1
	Key  uint64
	From int // number of the first row
}

// row returns the key of a row, and the bound below which a random number drops its value.
func (d Dropout) row(row int) (key uint64, threshold uint32) {
	return mix(d.Key + uint64(d.From+row+1)*golden), uint32(d.Rate * (1 << 32))
}

// golden is 2^64 divided by the golden ratio: the increment of SplitMix64.
const golden = 0x9e3779b97f4a7c15

// mix is SplitMix64's finalizer (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Drop drops values of a row in place; x[0] is at index from.
func Drop[F tensor.Float](x []F, d Dropout, row, from int) {
	if d.Rate == 0 {
		return
	}
	key, threshold := d.row(row)
	scale := F(1 / (1 - d.Rate))
	// One random number has the bits of two values, the lower half those of the even index.
	for i := range x {
		at := uint64(from + i)
		bits := uint32(mix(key+(at/2+1)*golden) >> (at % 2 * 32))
		if bits < threshold {
			x[i] = 0
		} else {
			x[i] *= scale
		}
	}
}

// Dropout drops values of the rows of x[T,C].
func (HostOps[F]) Dropout(x Buffer[F], d Dropout, t, c int) {
	sameLength("dropout", len(x), t*c)
	for r := range t {
		Drop(x[r*c:(r+1)*c], d, r, 0)
	}
}
