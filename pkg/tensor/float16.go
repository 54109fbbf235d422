package tensor

import "math"

// Float16 returns the value of IEEE 754 binary16 bits.
func Float16(bits uint16) float32 {
	sign := uint32(bits>>15) << 31
	exp := uint32(bits>>10) & 0x1f
	frac := uint32(bits) & 0x3ff
	switch {
	case exp == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	case exp != 0:
		return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
	}
	// A subnormal number is frac units of 2^-24, which is exact in float32.
	return math.Float32frombits(math.Float32bits(float32(frac)*0x1p-24) | sign)
}

// Float16bits rounds x to binary16, to nearest even.
func Float16bits(x float32) uint16 {
	bits := math.Float32bits(x)
	sign := uint16(bits >> 16 & 0x8000)
	bits &= 0x7fffffff
	switch {
	case bits > 0x7f800000:
		return sign | 0x7e00 // NaN, quiet
	case bits >= 0x477ff000:
		return sign | 0x7c00 // rounds to infinity
	case bits < 0x38800000:
		// The result is subnormal: adding 0.5 leaves the rounded number of units of 2^-24 in the low bits.
		sum := math.Float32bits(math.Float32frombits(bits) + 0.5)
		return sign | uint16(sum-math.Float32bits(0.5))
	}
	odd := bits >> 13 & 1
	return sign | uint16((bits-112<<23+0xfff+odd)>>13)
}

// BFloat16 returns the value of bfloat16 bits.
func BFloat16(bits uint16) float32 { return math.Float32frombits(uint32(bits) << 16) }

// BFloat16bits rounds x to bfloat16, to nearest even.
func BFloat16bits(x float32) uint16 {
	bits := math.Float32bits(x)
	if bits&0x7fffffff > 0x7f800000 {
		return uint16(bits>>16) | 0x40 // NaN, quiet
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}
