package cpu

import (
	"encoding/binary"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Readers of the codes of block b (32 inputs) of a row, as unsigned numbers. The
// layouts are those that pkg/tensor decodes.

func codeReader(d tensor.DType) func(dst *[blockLen]byte, row []byte, b int) {
	switch d {
	case tensor.Q4_0, tensor.IQ4_NL:
		return nibblesAt(18, 2)
	case tensor.Q4_1:
		return nibblesAt(20, 4)
	case tensor.MXFP4:
		return nibblesAt(17, 1)
	case tensor.Q5_0:
		return fiveAt(22, 2)
	case tensor.Q5_1:
		return fiveAt(24, 4)
	case tensor.Q8_0:
		return codesQ8
	case tensor.Q2_K:
		return codesQ2K
	case tensor.Q3_K:
		return codesQ3K
	case tensor.Q4_K:
		return codesQ4K
	case tensor.Q5_K:
		return codesQ5K
	case tensor.Q6_K:
		return codesQ6K
	case tensor.IQ4_XS:
		return codesIQ4XS
	}
	return nil
}

// spread writes the low nibbles of 16 bytes and then the high ones.
func spread(dst *[blockLen]byte, q []byte) {
	for i, v := range q[:16] {
		dst[i], dst[16+i] = v&15, v>>4
	}
}

func nibblesAt(size, at int) func(*[blockLen]byte, []byte, int) {
	return func(dst *[blockLen]byte, row []byte, b int) { spread(dst, row[b*size+at:]) }
}

func fiveAt(size, at int) func(*[blockLen]byte, []byte, int) {
	return func(dst *[blockLen]byte, row []byte, b int) {
		block := row[b*size+at:]
		high := binary.LittleEndian.Uint32(block)
		spread(dst, block[4:])
		for i := range dst {
			dst[i] |= byte(high>>i&1) << 4
		}
	}
}

func codesQ8(dst *[blockLen]byte, row []byte, b int) {
	for i, v := range row[b*34+2 : b*34+34] {
		dst[i] = v ^ 0x80
	}
}

func codesQ2K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*84+16:], b%superLen
	for i := range dst {
		dst[i] = block[32*(sub/4)+i] >> (2 * (sub % 4)) & 3
	}
}

func codesQ3K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*110:], b%superLen
	for i := range dst {
		dst[i] = block[32+32*(sub/4)+i]>>(2*(sub%4))&3 | block[i]>>sub&1<<2
	}
}

// scaleQ3K is the scale of sub-block j, of 16 inputs.
func scaleQ3K(s []byte, j int) int8 {
	v := s[j%8] >> (4 * (j / 8)) & 15
	v |= s[8+j%4] >> (2 * (j / 4)) & 3 << 4
	return int8(v) - 32
}

func codesQ4K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*144+16:], b%superLen
	for i := range dst {
		dst[i] = block[32*(sub/2)+i] >> (4 * (sub % 2)) & 15
	}
}

func codesQ5K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*176+16:], b%superLen
	for i := range dst {
		dst[i] = block[32+32*(sub/2)+i]>>(4*(sub%2))&15 | block[i]>>sub&1<<4
	}
}

// scaleQ4K is the scale and the minimum of sub-block j of Q4_K and Q5_K.
func scaleQ4K(s []byte, j int) (scale, low byte) {
	if j < 4 {
		return s[j] & 63, s[j+4] & 63
	}
	return s[j+4]&15 | s[j-4]>>6<<4, s[j+4]>>4 | s[j]>>6<<4
}

func codesQ6K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*210:], b%superLen
	part, within := sub/4, sub%4*32
	for i := range dst {
		e := within + i
		low := block[64*part+e%64] >> (4 * (e / 64)) & 15
		dst[i] = low | block[128+32*part+i]>>(2*(sub%4))&3<<4
	}
}

func codesIQ4XS(dst *[blockLen]byte, row []byte, b int) {
	spread(dst, row[b/superLen*136+8+16*(b%superLen):])
}

// scaleIQ4XS is the scale of sub-block j, of 32 inputs.
func scaleIQ4XS(block []byte, j int) int8 {
	v := block[4+j/2] >> (4 * (j % 2)) & 15
	v |= byte(binary.LittleEndian.Uint16(block[2:])>>(2*j)&3) << 4
	return int8(v) - 32
}
