package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Dequantize decodes len(dst) elements of type d from src. Values are computed in
// float32 with the operations of llama.cpp's Python decoder, in the same order and each
// rounded, so that they equal its values bit for bit. F float64 holds the same values; an
// F64, I32 or I64 element is converted to F directly. Dequantize panics unless len(dst) is a
// whole number of blocks and src has exactly those blocks.
//
// Source of the block layouts: the structs of ggml-common.h.
func Dequantize[F Float](dst []F, src []byte, d DType) {
	if !d.Valid() || len(dst)%d.BlockLen() != 0 || len(src) != d.RowBytes(len(dst)) {
		panic(fmt.Sprintf("dequantize %v: %d bytes for %d elements", d, len(src), len(dst)))
	}
	n, size := d.BlockLen(), d.BlockBytes()
	if block := blockDecoder[F](d); block != nil {
		for ; len(dst) > 0; dst, src = dst[n:], src[size:] {
			block(dst[:n], src[:size])
		}
		return
	}
	plain(dst, src, d)
}

// plain decodes elements of a type without blocks.
func plain[F Float](dst []F, src []byte, d DType) {
	le := binary.LittleEndian
	switch d {
	case F32:
		for i := range dst {
			dst[i] = F(math.Float32frombits(le.Uint32(src[4*i:])))
		}
	case F16:
		for i := range dst {
			dst[i] = F(Float16(le.Uint16(src[2*i:])))
		}
	case BF16:
		for i := range dst {
			dst[i] = F(BFloat16(le.Uint16(src[2*i:])))
		}
	case F64:
		for i := range dst {
			dst[i] = F(math.Float64frombits(le.Uint64(src[8*i:])))
		}
	case I8:
		for i := range dst {
			dst[i] = F(int8(src[i]))
		}
	case I16:
		for i := range dst {
			dst[i] = F(int16(le.Uint16(src[2*i:])))
		}
	case I32:
		for i := range dst {
			dst[i] = F(int32(le.Uint32(src[4*i:])))
		}
	case I64:
		for i := range dst {
			dst[i] = F(int64(le.Uint64(src[8*i:])))
		}
	case U8, Bool:
		for i := range dst {
			dst[i] = F(src[i])
		}
	}
}

// blockDecoder returns the decoder of one block, or nil for a plain type.
func blockDecoder[F Float](d DType) func(dst []F, b []byte) {
	switch d {
	case Q4_0:
		return q4_0[F]
	case Q4_1:
		return q4_1[F]
	case Q5_0:
		return q5_0[F]
	case Q5_1:
		return q5_1[F]
	case Q8_0:
		return q8_0[F]
	case Q2_K:
		return q2_K[F]
	case Q3_K:
		return q3_K[F]
	case Q4_K:
		return q4_K[F]
	case Q5_K:
		return q5_K[F]
	case Q6_K:
		return q6_K[F]
	case IQ4_NL:
		return iq4_NL[F]
	case IQ4_XS:
		return iq4_XS[F]
	case TQ1_0:
		return tq1_0[F]
	case TQ2_0:
		return tq2_0[F]
	case MXFP4:
		return mxfp4[F]
	case NVFP4:
		return nvfp4[F]
	case Q1_0:
		return q1_0[F]
	}
	if c := CodebookOf(d); c != nil {
		return codebookBlock[F](c)
	}
	return nil
}

// readFloat16 returns the float16 at the beginning of b.
func readFloat16(b []byte) float32 { return Float16(binary.LittleEndian.Uint16(b)) }

// Q4_0: a float16 scale and 16 bytes, whose low nibbles are elements 0..15 and whose high nibbles are 16..31.
func q4_0[F Float](dst []F, b []byte) {
	d := readFloat16(b)
	for i, q := range b[2:18] {
		dst[i] = F(d * float32(int(q&15)-8))
		dst[i+16] = F(d * float32(int(q>>4)-8))
	}
}

// Q4_1: as Q4_0, with a float16 minimum instead of the offset.
func q4_1[F Float](dst []F, b []byte) {
	d, m := readFloat16(b), readFloat16(b[2:])
	for i, q := range b[4:20] {
		lo, hi := float32(d*float32(q&15)), float32(d*float32(q>>4))
		dst[i] = F(lo + m)
		dst[i+16] = F(hi + m)
	}
}

// Q5_0: as Q4_0, with the fifth bits in 32 bits before the nibbles.
func q5_0[F Float](dst []F, b []byte) {
	d, high := readFloat16(b), binary.LittleEndian.Uint32(b[2:])
	for i, q := range b[6:22] {
		dst[i] = F(d * float32(int(q&15)|int(high>>i&1)<<4-16))
		dst[i+16] = F(d * float32(int(q>>4)|int(high>>(i+16)&1)<<4-16))
	}
}

// Q5_1: as Q4_1, with the fifth bits in 32 bits before the nibbles.
func q5_1[F Float](dst []F, b []byte) {
	d, m, high := readFloat16(b), readFloat16(b[2:]), binary.LittleEndian.Uint32(b[4:])
	for i, q := range b[8:24] {
		lo := float32(d * float32(uint32(q&15)|high>>i&1<<4))
		hi := float32(d * float32(uint32(q>>4)|high>>(i+16)&1<<4))
		dst[i] = F(lo + m)
		dst[i+16] = F(hi + m)
	}
}

// Q8_0: a float16 scale and 32 signed bytes.
func q8_0[F Float](dst []F, b []byte) {
	d := readFloat16(b)
	for i, q := range b[2:34] {
		dst[i] = F(d * float32(int8(q)))
	}
}

// iq4Values are the levels of IQ4_NL and IQ4_XS; mxfp4Values are twice the levels of FP4.
var (
	iq4Values   = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
	mxfp4Values = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}
)

// IQ4_NL: as Q4_0, but the nibbles are indices of non-linear levels.
func iq4_NL[F Float](dst []F, b []byte) {
	d := readFloat16(b)
	for i, q := range b[2:18] {
		dst[i] = F(d * iq4Values[q&15])
		dst[i+16] = F(d * iq4Values[q>>4])
	}
}

// MXFP4: a byte with the exponent (2^(e-128), because the levels are doubled) and 16 bytes of nibbles.
func mxfp4[F Float](dst []F, b []byte) {
	var d float32
	if e := uint32(b[0]); e < 2 {
		d = math.Float32frombits(0x00200000 << e)
	} else {
		d = math.Float32frombits((e - 1) << 23)
	}
	for i, q := range b[1:17] {
		dst[i] = F(d * mxfp4Values[q&15])
		dst[i+16] = F(d * mxfp4Values[q>>4])
	}
}

// NVFP4: four scale bytes, one for each 16 elements, then 8 bytes of nibbles for each: low nibbles are
// the first eight elements.
func nvfp4[F Float](dst []F, b []byte) {
	for sub, scale := range b[:4] {
		d := unsignedE4M3(scale) / 2 // the levels are doubled
		for i, q := range b[4+8*sub:][:8] {
			dst[16*sub+i] = F(d * mxfp4Values[q&15])
			dst[16*sub+8+i] = F(d * mxfp4Values[q>>4])
		}
	}
}

// unsignedE4M3 returns the value of a float of 4 exponent bits (bias 7) and 3 fraction bits without a
// sign. 0x7f is NaN in the standard and zero in the format.
func unsignedE4M3(x byte) float32 {
	exponent, fraction := x>>3&15, float32(x&7)
	switch {
	case x == 0x7f:
		return 0
	case exponent == 0:
		return fraction * 0x1p-9
	}
	return (8 + fraction) * math.Float32frombits(uint32(exponent+127-10)<<23)
}

// Q1_0: a float16 d and 16 bytes of signs: a set bit is d, a clear bit is -d.
func q1_0[F Float](dst []F, b []byte) {
	d := readFloat16(b)
	for i := range dst {
		dst[i] = F(-d)
		if b[2+i/8]>>(i%8)&1 == 1 {
			dst[i] = F(d)
		}
	}
}

// TQ1_0: bytes with five ternary digits each, as a number in base 3 scaled to 256, and then a float16 scale.
func tq1_0[F Float](dst []F, b []byte) {
	d := readFloat16(b[52:])
	at := 0
	digits := func(bytes []byte, count int) {
		power := byte(1)
		for range count {
			for _, q := range bytes {
				dst[at] = F(d * float32(int(uint16(q*power)*3>>8)-1))
				at++
			}
			power *= 3
		}
	}
	digits(b[:32], 5)
	digits(b[32:48], 5)
	digits(b[48:52], 4)
}

// TQ2_0: bytes with four digits of two bits each, and then a float16 scale.
func tq2_0[F Float](dst []F, b []byte) {
	d := readFloat16(b[64:])
	for group := range 2 {
		for j := range 4 {
			for i, q := range b[32*group : 32*group+32] {
				dst[128*group+32*j+i] = F(d * float32(int(q>>(2*j)&3)-1))
			}
		}
	}
}
