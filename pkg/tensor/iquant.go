package tensor

import (
	"encoding/binary"
	"math/bits"
)

// The IQ1, IQ2 and IQ3 types: super-blocks of 256 elements whose codes are looked up in a codebook,
// several elements at a time. An element is D × Factor × scale × level, where the scale is an odd
// integer that Group elements share, and a 4-bit code selects the level, which is an integer. The product of a float16
// and these small integers is exact in float32, so the order of the factors does not matter.

// superLen is the number of elements of a super-block.
const superLen = 256

// Codebook describes how a codebook type is decoded.
type Codebook struct {
	Levels [16]int8 // by code
	Factor float32  // a power of two
	Group  int      // elements that share a scale: 16 or 32
	read   func(block []byte, codes *[superLen / 8]uint64, scales *[16]uint8) (d uint16)
}

// CodebookOf returns the description of a codebook type, or nil for another type.
func CodebookOf(d DType) *Codebook {
	switch d {
	case IQ1_S:
		return &iq1S
	case IQ1_M:
		return &iq1M
	case IQ2_XXS:
		return &iq2XXS
	case IQ2_XS:
		return &iq2XS
	case IQ2_S:
		return &iq2S
	case IQ3_XXS:
		return &iq3XXS
	case IQ3_S:
		return &iq3S
	}
	return nil
}

// Read splits a super-block into a code for each element (eight to a word, the first in the low
// byte), the scale of each group, and the bits of the float16 D.
func (c *Codebook) Read(block []byte, codes *[superLen / 8]uint64, scales *[16]uint8) (d uint16) {
	return c.read(block, codes, scales)
}

// Levels of the codes. Bit 3 (IQ3) or bit 2 (IQ1, IQ2) of a code is the sign of the element, or for
// IQ1 the sign of a shift by an eighth, which is why IQ1's levels are in eighths.
var (
	iq2Levels    = [16]int8{8, 25, 43, 0, -8, -25, -43, 0}
	iq3XXSLevels = [16]int8{4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62}
	iq3SLevels   = [16]int8{1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15}
	iq1Levels    = [16]int8{-7, 1, 9, 0, -9, -1, 7, 0}
)

var (
	iq1S   = Codebook{iq1Levels, 0.125, 32, readIQ1S}
	iq1M   = Codebook{iq1Levels, 0.125, 16, readIQ1M}
	iq2XXS = Codebook{iq2Levels, 0.125, 32, readIQ2XXS}
	iq2XS  = Codebook{iq2Levels, 0.125, 16, readIQ2XS}
	iq2S   = Codebook{iq2Levels, 0.125, 16, readIQ2S}
	iq3XXS = Codebook{iq3XXSLevels, 0.25, 32, readIQ3XXS}
	iq3S   = Codebook{iq3SLevels, 1, 32, readIQ3S}
)

// codebookBlock decodes a super-block.
func codebookBlock[F Float](c *Codebook) func(dst []F, b []byte) {
	return func(dst []F, b []byte) {
		var codes [superLen / 8]uint64
		var scales [16]uint8
		d := Float16(c.read(b, &codes, &scales)) * c.Factor
		for i := range dst {
			scale := float32(d * float32(scales[i/c.Group]))
			dst[i] = F(scale * float32(c.Levels[codes[i/8]>>(i%8*8)&15]))
		}
	}
}

const (
	everyByte = 0x0101010101010101
	bitOfByte = 0x8040201008040201 // bit i in byte i
)

// signBits spreads the bits of a byte over the low bits of eight bytes.
func signBits(signs byte) uint64 {
	return (uint64(signs)*everyByte&bitOfByte + 0x7f*everyByte) >> 7 & everyByte
}

// evenSigns returns seven sign bits and an eighth, which makes the number of set bits even.
func evenSigns(seven uint32) byte {
	seven &= 127
	return byte(seven) | byte(bits.OnesCount32(seven)&1)<<7
}

// IQ2_XXS: float16 d; for each 32 elements 4 bytes of codebook indices and a word of four 7-bit signs and
// a 4-bit scale.
func readIQ2XXS(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) uint16 {
	book := iq2XXSCodebook()
	for group := range 8 {
		indices := b[2+8*group:]
		word := binary.LittleEndian.Uint32(indices[4:])
		scales[group] = uint8(2*(word>>28) + 1)
		for i := range 4 {
			codes[4*group+i] = book[indices[i]] | signBits(evenSigns(word>>(7*i)))<<2
		}
	}
	return binary.LittleEndian.Uint16(b)
}

// nibbleScales reads a 4-bit scale s for each group and returns 2s+1.
func nibbleScales(packed []byte, scales *[16]uint8) {
	for i, s := range packed {
		scales[2*i], scales[2*i+1] = 2*(s&15)+1, 2*(s>>4)+1
	}
}

// IQ2_XS: float16 d, 32 words of a 9-bit index and 7 signs, 8 bytes of 4-bit scales.
func readIQ2XS(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) uint16 {
	book := iq2XSCodebook()
	for i := range codes {
		word := binary.LittleEndian.Uint16(b[2+2*i:])
		codes[i] = book[word&511] | signBits(evenSigns(uint32(word>>9)))<<2
	}
	nibbleScales(b[66:74], scales)
	return binary.LittleEndian.Uint16(b)
}

// IQ2_S: float16 d, 32 low bytes of indices, 32 bytes of signs, 8 bytes of high index bits, 8 bytes of
// 4-bit scales.
func readIQ2S(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) uint16 {
	book := iq2SCodebook()
	low, signs, high := b[2:34], b[34:66], b[66:74]
	for i := range codes {
		index := int(low[i]) | int(high[i/4]>>(2*(i%4))&3)<<8
		codes[i] = book[index] | signBits(signs[i])<<2
	}
	nibbleScales(b[74:82], scales)
	return binary.LittleEndian.Uint16(b)
}

// IQ3_XXS: float16 d, 64 bytes of indices of four elements, 8 words of four 7-bit signs and a 4-bit scale.
func readIQ3XXS(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) uint16 {
	book := iq3XXSCodebook()
	for group := range 8 {
		word := binary.LittleEndian.Uint32(b[66+4*group:])
		scales[group] = uint8(2*(word>>28) + 1)
		for i := range 4 {
			at := 4*group + i
			codes[at] = book[b[2+2*at]] | book[b[3+2*at]]<<32 | signBits(evenSigns(word>>(7*i)))<<3
		}
	}
	return binary.LittleEndian.Uint16(b)
}

// IQ3_S: float16 d, 64 low bytes of indices, 8 bytes of their ninth bits, 32 bytes of signs, 4 bytes of
// 4-bit scales.
func readIQ3S(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) uint16 {
	book := iq3SCodebook()
	low, high, signs := b[2:66], b[66:74], b[74:106]
	entry := func(i int) uint64 { return book[int(low[i])|int(high[i/8]>>(i%8)&1)<<8] }
	for i := range codes {
		codes[i] = entry(2*i) | entry(2*i+1)<<32 | signBits(signs[i])<<3
	}
	nibbleScales(b[106:110], scales)
	return binary.LittleEndian.Uint16(b)
}

// IQ1_S: float16 d, 32 low bytes of indices, 8 words of four 3-bit high parts, a 3-bit scale and the sign
// of the shift.
func readIQ1S(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) uint16 {
	book := iq1SCodebook()
	for group := range 8 {
		word := binary.LittleEndian.Uint16(b[34+2*group:])
		scales[group] = uint8(2*(word>>12&7) + 1)
		shift := uint64(word>>15) * everyByte << 2
		for i := range 4 {
			index := int(b[2+4*group+i]) | int(word>>(3*i)&7)<<8
			codes[4*group+i] = book[index] | shift
		}
	}
	return binary.LittleEndian.Uint16(b)
}

// IQ1_M: 32 low bytes of indices, 16 bytes of two 3-bit high parts and shift signs, 4 words of four
// 3-bit scales each with a quarter of d in its top bits.
func readIQ1M(b []byte, codes *[superLen / 8]uint64, scales *[16]uint8) (d uint16) {
	book := iq1SCodebook()
	for i := range codes {
		high := b[32+i/2] >> (4 * (i % 2))
		shift := uint64(high>>3&1) * everyByte << 2
		codes[i] = book[int(b[i])|int(high&7)<<8] | shift
	}
	for i := range 4 {
		word := binary.LittleEndian.Uint16(b[48+2*i:])
		d |= word >> 12 << (4 * i)
		for j := range 4 {
			scales[4*i+j] = uint8(2*(word>>(3*j)&7) + 1)
		}
	}
	return d
}
