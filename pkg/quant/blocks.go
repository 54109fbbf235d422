package quant

import (
	"encoding/binary"
	"math"
)

// Blocks of 32 elements. Without importances every operation is that of quants.py, in float32 and in its order, so the
// bytes are equal. The conversions to float32 around products keep the compiler from fusing them with a sum.

const blockLen = 32

// inverse returns 1/d, or 0 where that is no finite number: the scale of such a block is 0 in float16.
func inverse(d float32) float32 {
	if d == 0 || math.IsInf(float64(1/d), 0) {
		return 0
	}
	return 1 / d
}

// code truncates v and limits it to [0,top].
func code(v float32, top int) byte {
	if !(v > 0) {
		return 0
	}
	return byte(min(int(min(v, 255)), top))
}

// extreme returns the element of largest magnitude, the first one where several have it.
func extreme(x []float32) float32 {
	out := x[0]
	for _, v := range x {
		if math.Abs(float64(v)) > math.Abs(float64(out)) {
			out = v
		}
	}
	return out
}

// symmetricCodes returns the scale and the codes of a block whose code q stands for d*(q-half).
func symmetricCodes(x, w []float32, half int, q *[blockLen]byte) (d float32) {
	if w == nil {
		d = extreme(x) / float32(-half)
		id := inverse(d)
		for i, v := range x {
			q[i] = code(float32(v*id)+(float32(half)+0.5), 2*half-1)
		}
		return d
	}
	var levels [blockLen]int8
	scale := finite16(fitSymmetric(x, w, half, levels[:]))
	nearestSymmetric(x, float64(scale), half, levels[:])
	for i, l := range levels {
		q[i] = byte(int(l) + half)
	}
	return scale
}

// affineCodes returns the scale, the minimum and the codes of a block whose code q stands for d*q+m.
func affineCodes(x, w []float32, top int, q *[blockLen]byte) (d, m float32) {
	if w == nil {
		low, high := x[0], x[0]
		for _, v := range x {
			low, high = min(low, v), max(high, v)
		}
		d, m = (high-low)/float32(top), low
		id := inverse(d)
		for i, v := range x {
			q[i] = code(float32((v-m)*id)+0.5, top)
		}
		return d, m
	}
	scale, low := fitAffine(x, w, top, false, q[:])
	d, m = finite16(scale), finite16(low)
	nearestAffine(x, float64(d), float64(m), top, q[:])
	return d, m
}

// putNibbles writes the low four bits of the codes: those of elements i and i+16 share byte i.
func putNibbles(dst []byte, q *[blockLen]byte) {
	for i := range dst[:blockLen/2] {
		dst[i] = q[i]&15 | q[i+blockLen/2]<<4
	}
}

// fifthBits returns the fifth bits of the codes, that of element i at bit i.
func fifthBits(q *[blockLen]byte) (bits uint32) {
	for i, c := range q {
		bits |= uint32(c>>4&1) << i
	}
	return bits
}

func q4_0(dst []byte, x, w []float32) {
	var q [blockLen]byte
	putFloat16(dst, symmetricCodes(x, w, 8, &q))
	putNibbles(dst[2:], &q)
}

func q5_0(dst []byte, x, w []float32) {
	var q [blockLen]byte
	putFloat16(dst, symmetricCodes(x, w, 16, &q))
	binary.LittleEndian.PutUint32(dst[2:], fifthBits(&q))
	putNibbles(dst[6:], &q)
}

func q4_1(dst []byte, x, w []float32) {
	var q [blockLen]byte
	d, m := affineCodes(x, w, 15, &q)
	putFloat16(dst, d)
	putFloat16(dst[2:], m)
	putNibbles(dst[4:], &q)
}

func q5_1(dst []byte, x, w []float32) {
	var q [blockLen]byte
	d, m := affineCodes(x, w, 31, &q)
	putFloat16(dst, d)
	putFloat16(dst[2:], m)
	binary.LittleEndian.PutUint32(dst[4:], fifthBits(&q))
	putNibbles(dst[8:], &q)
}

// q8_0 rounds half away from zero.
func q8_0(dst []byte, x []float32) {
	d := float32(math.Abs(float64(extreme(x)))) / 127
	id := inverse(d)
	putFloat16(dst, d)
	for i, v := range x {
		dst[2+i] = byte(int8(math.Round(float64(float32(v * id)))))
	}
}
