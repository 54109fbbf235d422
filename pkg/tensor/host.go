package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
)

// PutF32LE writes len(src) values to dst as little-endian float32. It panics where
// dst holds fewer than 4*len(src) bytes.
func PutF32LE(dst []byte, src []float32) {
	dst = dst[:4*len(src)]
	if littleEndian() {
		copy(dst, Bytes(src))
		return
	}
	for i, v := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}

// F32LE reads len(dst) little-endian float32 values from src. It panics where src
// holds fewer than 4*len(dst) bytes.
func F32LE(dst []float32, src []byte) {
	src = src[:4*len(dst)]
	if littleEndian() {
		copy(Bytes(dst), src)
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// PutBF16LE writes len(src) values to dst as little-endian bfloat16, rounded to the
// nearest, even on a tie. It panics where dst holds fewer than 2*len(src) bytes.
func PutBF16LE(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], BFloat16bits(v))
	}
}

// PutF16LE writes len(src) values to dst as little-endian binary16, rounded to the
// nearest, even on a tie. It panics where dst holds fewer than 2*len(src) bytes.
func PutF16LE(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], Float16bits(v))
	}
}

// Encode writes src to dst as elements of type d: F32, F16, BF16 or F64,
// little-endian, rounded to the nearest, even on a tie. It panics on another type
// and unless dst is exactly as long as src needs.
func Encode(dst []byte, src []float32, d DType) {
	if !d.Valid() || len(dst) != d.RowBytes(len(src)) {
		panic(fmt.Sprintf("encode %v: %d bytes for %d elements", d, len(dst), len(src)))
	}
	switch d {
	case F32:
		PutF32LE(dst, src)
	case F16:
		PutF16LE(dst, src)
	case BF16:
		PutBF16LE(dst, src)
	case F64:
		for i, v := range src {
			binary.LittleEndian.PutUint64(dst[8*i:], math.Float64bits(float64(v)))
		}
	default:
		panic(fmt.Sprintf("encode %v: not a plain float type", d))
	}
}

// Bytes returns the memory of x as bytes, in the host's byte order and without a copy.
func Bytes[F Float](x []F) []byte {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), len(x)*int(unsafe.Sizeof(x[0])))
}

// littleEndian reports whether the host is little-endian. The compiler folds it to a constant.
func littleEndian() bool {
	one := uint16(1)
	return *(*byte)(unsafe.Pointer(&one)) == 1
}
