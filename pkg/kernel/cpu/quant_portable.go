package cpu

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// The loops over quantised weights in plain Go. They take the same steps as the assembly: integer sums are exact in any
// order, and every float32 operation is rounded in the same way.

const (
	plainAct   = 64  // bytes of an activation block
	plainCodes = 512 // bytes of an unpacked block's codes
	plainFlat  = plainCodes + 4*4*panelRows
)

// quantPortable returns the loops in plain Go.
func quantPortable() quantOps {
	q := quantOps{
		act: plainAct, unpacked: [kinds]int{plainFlat, plainFlat, plainFlat, plainFlat, plainFlat},
		quantize: plainQuantize,
	}
	for d, p := range packings {
		if p.size > 0 {
			q.unpack[d] = plainUnpack(tensor.DType(d), p)
		}
	}
	for k := range kinds {
		q.tile[k], q.unpackedRows[k] = plainTile(k), plainUnpackedRows(k)
	}
	return q
}

func putFloat(b []byte, v float32) { binary.LittleEndian.PutUint32(b, math.Float32bits(v)) }
func getFloat(b []byte) float32    { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }
func putInt(b []byte, v int32)     { binary.LittleEndian.PutUint32(b, uint32(v)) }
func getInt(b []byte) int32        { return int32(binary.LittleEndian.Uint32(b)) }

// tiny bounds the maximum of a block that is quantised to zero.
const tiny = 1e-30

// plainQuantize quantises blocks of activations; see quantize in gen.
func plainQuantize(dst *byte, stride int, x *float32, blocks int) {
	in := unsafe.Slice(x, blocks*blockLen)
	for b := range blocks {
		out := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(dst), b*stride)), plainAct)
		values := in[b*blockLen : (b+1)*blockLen]
		var most uint32
		for _, v := range values {
			most = max(most, math.Float32bits(v)&0x7fffffff)
		}
		scale, inverse := float32(0), float32(0)
		if m := math.Float32frombits(most); !(m < tiny) {
			scale, inverse = m/127, 127/m
		}
		var low, high int32
		for i, v := range values {
			q := roundByte(v * inverse)
			out[i] = byte(q)
			if i < blockLen/2 {
				low += int32(q)
			} else {
				high += int32(q)
			}
		}
		sum := low + high
		putFloat(out[actScale:], scale)
		putFloat(out[actSum:], float32(sum)*scale)
		putInt(out[actLess8:], -8*sum)
		putInt(out[actLess16:], -16*sum)
		putInt(out[actLess128:], -128*sum)
		putInt(out[actLow:], -32*low)
		putInt(out[actHigh:], -32*high)
	}
}

// roundByte rounds to nearest even. Numbers out of range and NaN become -128, as in the assembly.
func roundByte(v float32) int8 {
	r := math.RoundToEven(float64(v))
	if !(math.Abs(r) <= 127) {
		return -128
	}
	return int8(r)
}

// plainUnpack returns the loop that unpacks a panel of a type.
func plainUnpack(d tensor.DType, p packing) unpackFunc {
	return func(dst, panel *byte, blocks int) {
		size := p.scale + p.super*p.size
		from := unsafe.Slice(panel, blocks/p.super*size)
		for b := range blocks {
			out := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(dst), b*plainFlat)), plainFlat)
			s := from[b/p.super*size:][:size]
			expand(d, out, s[p.scale+b%p.super*p.size:][:p.size], s)
			for r := range panelRows {
				for i, v := range scalesOf(d, s, b%p.super, r) {
					putFloat(out[plainCodes+4*(panelRows*i+r):], v)
				}
			}
		}
	}
}

// expand unpacks a block to 512 codes, [8][16 rows][4 inputs]. scales are those of its super-block.
func expand(d tensor.DType, out, in, scales []byte) {
	field := func(at, j, e, width int) byte { // the bits of byte e of group j in the planes that begin at byte at
		n := 8 / width
		return in[at+64*(j/n)+e] >> (j % n * width) & (1<<width - 1)
	}
	for j := range 8 {
		for e := range 64 {
			nibble := byte(0)
			if len(in) >= 256 {
				nibble = in[64*(j/2)+e] >> (4 * (j % 2)) & 15
			}
			c := &out[64*j+e]
			switch d {
			case tensor.Q8_0:
				*c = in[64*j+e]
			case tensor.Q5_0, tensor.Q5_1, tensor.Q5_K:
				*c = nibble | field(256, j, e, 1)<<4
			case tensor.Q6_K:
				*c = nibble | field(256, j, e, 2)<<4
			case tensor.Q2_K:
				*c = field(0, j, e, 2)
			case tensor.Q3_K:
				*c = field(0, j, e, 2)<<3 | field(128, j, e, 1)<<5
			case tensor.IQ4_NL, tensor.IQ4_XS:
				*c = byte(levelsIQ4Plain[nibble] + 128)
			case tensor.IQ1_S, tensor.IQ1_M, tensor.IQ2_XXS, tensor.IQ2_XS, tensor.IQ2_S, tensor.IQ3_XXS, tensor.IQ3_S:
				*c = scales[codebookLevels+nibble]
			case tensor.MXFP4:
				*c = byte(levelsFP4Plain[nibble] + 16)
			default:
				*c = nibble
			}
		}
	}
}

var (
	levelsIQ4Plain = [16]int{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
	levelsFP4Plain = [16]int{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}
)

// scalesOf returns the scales and then the minima of block sub for row r.
func scalesOf(d tensor.DType, s []byte, sub, r int) [4]float32 {
	float16 := func(at int) float32 { return float32(tensor.Float16(binary.LittleEndian.Uint16(s[at+2*r:]))) }
	switch d {
	case tensor.Q4_1, tensor.Q5_1:
		return [4]float32{float16(0), float16(32)}
	case tensor.MXFP4:
		return [4]float32{math.Float32frombits(uint32(s[r]) << 23)}
	case tensor.Q4_K, tensor.Q5_K:
		return [4]float32{float32(s[64+32*sub+r]) * float16(0), float32(s[80+32*sub+r]) * float16(32)}
	case tensor.Q6_K:
		return [4]float32{float32(int8(s[32+32*sub+r])) * float16(0), float32(int8(s[48+32*sub+r])) * float16(0)}
	case tensor.Q3_K:
		d := float16(0) * 0.125
		return [4]float32{float32(int8(s[32+32*sub+r])) * d, float32(int8(s[48+32*sub+r])) * d}
	case tensor.IQ4_XS:
		return [4]float32{float32(int8(s[32+16*sub+r])) * float16(0)}
	case tensor.IQ1_S, tensor.IQ2_XXS, tensor.IQ3_XXS, tensor.IQ3_S:
		return [4]float32{float32(int8(s[codebookScales+16*sub+r])) * (float16(0) * getFloat(s[codebookFactor:]))}
	case tensor.IQ1_M, tensor.IQ2_XS, tensor.IQ2_S:
		d, at := float16(0)*getFloat(s[codebookFactor:]), codebookScales+32*sub+r
		return [4]float32{float32(int8(s[at])) * d, float32(int8(s[at+16])) * d}
	case tensor.Q2_K:
		d, m := float16(0), float16(32)*0.03125
		a, b := s[64+32*sub+r], s[80+32*sub+r]
		return [4]float32{float32(a&15) * d, float32(b&15) * d, float32(a>>4) * m, float32(b>>4) * m}
	}
	return [4]float32{float16(0)}
}

// plainTile returns the loop that multiplies an unpacked panel by tileRows rows.
func plainTile(k kind) tileFunc {
	return func(y *float32, ldy int, w, x *byte, blocks, word int) {
		plainRows(k, y, ldy, w, x, blocks, tileRows, tileRows*plainAct, word)
	}
}

// plainUnpackedRows returns the loop that multiplies an unpacked panel by any number of rows.
func plainUnpackedRows(k kind) unpackedRowsFunc {
	return func(y *float32, ldy int, w, x *byte, blocks, rows, stride, word int) {
		plainRows(k, y, ldy, w, x, blocks, rows, stride, word)
	}
}

// plainRows multiplies an unpacked panel by rows of activations.
func plainRows(k kind, y *float32, ldy int, w, x *byte, blocks, rows, stride, word int) {
	for t := range rows {
		out := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(y), t*ldy)), panelRows)
		var acc [panelRows]float32
		for b := range blocks {
			flat := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(w), b*plainFlat)), plainFlat)
			act := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(x), b*stride+t*plainAct)), plainAct)
			for r := range acc {
				acc[r] = plainBlock(k, acc[r], flat, act, r, word)
			}
		}
		copy(out, acc[:])
	}
}

// plainBlock adds the product of a block of row r to a sum.
func plainBlock(k kind, sum float32, flat, act []byte, r, word int) float32 {
	factor := func(i int) float32 { return getFloat(flat[plainCodes+4*(panelRows*i+r):]) }
	dot := func(lo, hi int, start int32) float32 {
		for j := lo; j < hi; j++ {
			for i := range 4 {
				start += int32(flat[64*j+4*r+i]) * int32(int8(act[4*j+i]))
			}
		}
		return float32(start)
	}
	d := getFloat(act[actScale:])
	switch k {
	case kindOneScale:
		return fma32(dot(0, 8, getInt(act[word:])), factor(0)*d, sum)
	case kindOneScaleMin:
		sum = fma32(dot(0, 8, 0), factor(0)*d, sum)
		return fma32(getFloat(act[actSum:]), factor(1), sum)
	case kindTwoScales, kindTwoScales64:
		low, high := getInt(act[actLow:]), getInt(act[actHigh:])
		if k == kindTwoScales64 {
			low, high = 2*low, 2*high
		}
		sum = fma32(dot(0, 4, low), factor(0)*d, sum)
		return fma32(dot(4, 8, high), factor(1)*d, sum)
	}
	sum = fma32(dot(0, 4, 0), factor(0)*d, sum)
	sum = fma32(float32(getInt(act[actLow:]))*d, factor(2), sum)
	sum = fma32(dot(4, 8, 0), factor(1)*d, sum)
	return fma32(float32(getInt(act[actHigh:]))*d, factor(3), sum)
}
