package tensor

import "encoding/binary"

// The K types have super-blocks of 256 elements, with a scale and often a minimum for each sub-block. These scales
// and minima are quantised, too.

// Q2_K: 16 bytes of 4-bit scales and minima, 64 bytes of 2-bit values, float16 d and dmin.
func q2_K[F Float](dst []F, b []byte) {
	d, dmin := readFloat16(b[80:]), readFloat16(b[82:])
	for sub := range 16 {
		scale := float32(d * float32(b[sub]&15))
		low := float32(dmin * float32(b[sub]>>4))
		// 128 elements share 32 bytes, with two bits each; a sub-block has 16 elements.
		half, shift, side := sub/8, 2*(sub%8/2), sub%2
		for i, q := range b[16+32*half+16*side:][:16] {
			product := float32(scale * float32(q>>shift&3))
			dst[16*sub+i] = F(product - low)
		}
	}
}

// Q3_K: 32 bytes of high bits, 64 bytes of low pairs of bits, 12 bytes of packed 6-bit scales, float16 d.
func q3_K[F Float](dst []F, b []byte) {
	high, low, packed, d := b[:32], b[32:96], b[96:108], readFloat16(b[108:])
	for sub := range 16 {
		s := packed[sub%8] >> (4 * (sub / 8)) & 15
		s |= packed[8+sub%4] >> (2 * (sub / 4)) & 3 << 4
		scale := float32(d * float32(int(s)-32))
		half, shift, side := sub/8, 2*(sub%8/2), sub%2
		bit := sub / 2
		for i := range 16 {
			q := int(low[32*half+16*side+i] >> shift & 3)
			if high[16*side+i]>>bit&1 == 0 {
				q -= 4
			}
			dst[16*sub+i] = F(scale * float32(q))
		}
	}
}

// packedScale returns the 6-bit scale and minimum of sub-block j of Q4_K and Q5_K.
func packedScale(s []byte, j int) (scale, low byte) {
	if j < 4 {
		return s[j] & 63, s[j+4] & 63
	}
	return s[j+4]&15 | s[j-4]>>6<<4, s[j+4]>>4 | s[j]>>6<<4
}

// Q4_K: float16 d and dmin, 12 bytes of packed scales, 128 bytes of nibbles.
func q4_K[F Float](dst []F, b []byte) {
	d, dmin := readFloat16(b), readFloat16(b[2:])
	for sub := range 8 {
		s, m := packedScale(b[4:16], sub)
		scale, low := float32(d*float32(s)), float32(dmin*float32(m))
		for i, q := range b[16+32*(sub/2):][:32] {
			product := float32(scale * float32(q>>(4*(sub%2))&15))
			dst[32*sub+i] = F(product - low)
		}
	}
}

// Q5_K: as Q4_K, with 32 bytes of fifth bits before the nibbles.
func q5_K[F Float](dst []F, b []byte) {
	d, dmin := readFloat16(b), readFloat16(b[2:])
	high := b[16:48]
	for sub := range 8 {
		s, m := packedScale(b[4:16], sub)
		scale, low := float32(d*float32(s)), float32(dmin*float32(m))
		for i, q := range b[48+32*(sub/2):][:32] {
			q = q>>(4*(sub%2))&15 | high[i]>>sub&1<<4
			product := float32(scale * float32(q))
			dst[32*sub+i] = F(product - low)
		}
	}
}

// Q6_K: 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 signed scales, float16 d.
func q6_K[F Float](dst []F, b []byte) {
	low, high, scales, d := b[:128], b[128:192], b[192:208], readFloat16(b[208:])
	for sub := range 16 {
		scale := float32(d * float32(int8(scales[sub])))
		// 128 elements use 64 bytes of nibbles (of elements i and i+64) and 32 bytes of high bits.
		part, within := sub/8, sub%8*16
		for i := range 16 {
			e := within + i
			q := low[64*part+e%64] >> (4 * (e / 64)) & 15
			q |= high[32*part+e%32] >> (2 * (e / 32)) & 3 << 4
			dst[16*sub+i] = F(scale * float32(int(q)-32))
		}
	}
}

// IQ4_XS: float16 d, 2 bytes with the high two bits of each scale, 4 bytes with the low four bits, and nibbles that
// are indices of the non-linear levels of IQ4_NL.
func iq4_XS[F Float](dst []F, b []byte) {
	d, high := readFloat16(b), binary.LittleEndian.Uint16(b[2:])
	for sub := range 8 {
		s := int(b[4+sub/2]>>(4*(sub%2))&15) | int(high>>(2*sub)&3)<<4
		scale := float32(d * float32(s-32))
		for i, q := range b[8+16*sub:][:16] {
			dst[32*sub+i] = F(scale * iq4Values[q&15])
			dst[32*sub+16+i] = F(scale * iq4Values[q>>4])
		}
	}
}
