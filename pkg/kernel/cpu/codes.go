package cpu

import (
	"encoding/binary"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// codeReader returns the function that reads the codes of block b (32 inputs) of a row as unsigned numbers. It is nil
// for codebook types, whose codes packCodebook reads. pkg/tensor documents the layouts of blocks.
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

// eight returns 8 bytes from byte at on.
func eight(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

// everyEighth times a byte is that byte eight times.
const everyEighth = 0x0101010101010101

func put(dst *[blockLen]byte, at int, v uint64) { binary.LittleEndian.PutUint64(dst[at:], v) }

// spread writes the low nibbles of 16 bytes and then the high ones.
func spread(dst *[blockLen]byte, q []byte) {
	for i := 0; i < 16; i += 8 {
		v := eight(q, i)
		put(dst, i, v&(15*everyEighth))
		put(dst, 16+i, v>>4&(15*everyEighth))
	}
}

// field shifts 32 bytes right and writes their bits under mask.
func field(dst *[blockLen]byte, q []byte, shift int, mask uint64) {
	for i := 0; i < blockLen; i += 8 {
		put(dst, i, eight(q, i)>>shift&(mask*everyEighth))
	}
}

// above shifts 32 bytes right and adds their bits under mask to the codes, as bits from top on.
func above(dst *[blockLen]byte, q []byte, shift int, mask uint64, top int) {
	for i := 0; i < blockLen; i += 8 {
		put(dst, i, eight(dst[:], i)|eight(q, i)>>shift&(mask*everyEighth)<<top)
	}
}

// nibblesAt returns a reader of blocks of size bytes whose nibbles begin at byte at.
func nibblesAt(size, at int) func(*[blockLen]byte, []byte, int) {
	return func(dst *[blockLen]byte, row []byte, b int) { spread(dst, row[b*size+at:]) }
}

// fiveAt returns a reader of blocks of size bytes whose 32 fifth bits, followed by nibbles, begin at byte at.
func fiveAt(size, at int) func(*[blockLen]byte, []byte, int) {
	return func(dst *[blockLen]byte, row []byte, b int) {
		block := row[b*size+at:]
		high := binary.LittleEndian.Uint32(block)
		spread(dst, block[4:])
		for i := 0; i < blockLen; i += 8 {
			put(dst, i, eight(dst[:], i)|bitsOf(high>>i)<<4)
		}
	}
}

// bitsOf puts bit i of the low byte into byte i.
func bitsOf(v uint32) uint64 {
	spread := uint64(v&0xff) * everyEighth & 0x8040201008040201
	return (spread + 0x7f7f7f7f7f7f7f7f) >> 7 & everyEighth
}

func codesQ8(dst *[blockLen]byte, row []byte, b int) {
	block := row[b*34+2 : b*34+34]
	for i := 0; i < blockLen; i += 8 {
		put(dst, i, eight(block, i)^0x80*everyEighth)
	}
}

func codesQ2K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*84+16:], b%superLen
	field(dst, block[32*(sub/4):], 2*(sub%4), 3)
}

func codesQ3K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*110:], b%superLen
	field(dst, block[32+32*(sub/4):], 2*(sub%4), 3)
	above(dst, block, sub, 1, 2)
}

// scaleQ3K returns the scale of sub-block j, of 16 inputs.
func scaleQ3K(s []byte, j int) int8 {
	v := s[j%8] >> (4 * (j / 8)) & 15
	v |= s[8+j%4] >> (2 * (j / 4)) & 3 << 4
	return int8(v) - 32
}

func codesQ4K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*144+16:], b%superLen
	field(dst, block[32*(sub/2):], 4*(sub%2), 15)
}

func codesQ5K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*176+16:], b%superLen
	field(dst, block[32+32*(sub/2):], 4*(sub%2), 15)
	above(dst, block, sub, 1, 4)
}

// scaleQ4K returns the scale and the minimum of sub-block j of Q4_K and Q5_K.
func scaleQ4K(s []byte, j int) (scale, low byte) {
	if j < 4 {
		return s[j] & 63, s[j+4] & 63
	}
	return s[j+4]&15 | s[j-4]>>6<<4, s[j+4]>>4 | s[j]>>6<<4
}

func codesQ6K(dst *[blockLen]byte, row []byte, b int) {
	block, sub := row[b/superLen*210:], b%superLen
	part, within := sub/4, sub%4
	field(dst, block[64*part+within%2*32:], within/2*4, 15)
	above(dst, block[128+32*part:], 2*within, 3, 4)
}

func codesIQ4XS(dst *[blockLen]byte, row []byte, b int) {
	spread(dst, row[b/superLen*136+8+16*(b%superLen):])
}

// scaleIQ4XS returns the scale of sub-block j, of 32 inputs.
func scaleIQ4XS(block []byte, j int) int8 {
	v := block[4+j/2] >> (4 * (j % 2)) & 15
	v |= byte(binary.LittleEndian.Uint16(block[2:])>>(2*j)&3) << 4
	return int8(v) - 32
}
