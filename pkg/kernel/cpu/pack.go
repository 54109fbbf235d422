package cpu

import (
	"encoding/binary"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// packed is a matrix in panels of 16 rows. A panel is a sequence of super-blocks: the scales of a
// super-block and then the codes of its blocks. A product reads this memory once from end to end. Rows
// past the matrix's end have scale zero.
type packed struct {
	packing
	dtype  tensor.DType
	rows   int
	blocks int // of a row
	panels int // of 16 rows
	stride int // bytes of a panel
	data   []byte
	owner  *chunk // of data
}

// fewInputs is the number of inputs below which weights are decoded and multiplied in float32, as all
// weights of a narrow model are.
const fewInputs = 512

// decoded is a matrix that was decoded to float32.
type decoded struct{ dense []float32 } // [N,I]

// plain reports whether a matrix is multiplied in float32.
func plain(w *kernel.Matrix[float32]) bool { return w.Plain || w.Cols < fewInputs }

// packable reports whether a matrix is multiplied in its quantised form.
func packable(w *kernel.Matrix[float32]) bool {
	if w.Dense != nil || plain(w) {
		return false
	}
	p := &packings[w.DType]
	return p.size > 0 && w.Cols%(p.super*blockLen) == 0
}

// newPacked computes the layout of a matrix's panels; it allocates nothing.
func newPacked(w *kernel.Matrix[float32]) *packed {
	p := packings[w.DType]
	m := &packed{packing: p, dtype: w.DType, rows: w.Rows, blocks: w.Cols / blockLen,
		panels: (w.Rows + panelRows - 1) / panelRows}
	m.stride = m.blocks / p.super * (p.scale + p.super*p.size)
	return m
}

// Pack puts a matrix of quantised blocks or of 16-bit floats into panels of 16 rows. It decodes a matrix
// that is multiplied in float32.
func (s *Set) Pack(w *kernel.Matrix[float32]) {
	switch {
	case w.Packed != nil, w.Dense != nil, w.Rows == 0:
	case plain(w):
		m := &decoded{make([]float32, w.Rows*w.Cols)}
		s.rows(m.dense, w, 0, w.Rows)
		w.Packed = m
	case packable(w):
		m := newPacked(w)
		m.data, m.owner = s.store.take(m.panels * m.stride)
		s.each(m.panels, w.Rows*w.Cols, func(i int) {
			packPanel(m, m.data[i*m.stride:(i+1)*m.stride], w, i)
		})
		w.Packed = m
	case pairable(w):
		m := newPairs(w)
		m.data, m.owner = s.store.take(m.panels * m.stride)
		s.each(m.panels, w.Rows*w.Cols, func(i int) {
			s.packPairs(m.data[i*m.stride:(i+1)*m.stride], w, i)
		})
		w.Packed = m
	}
}

// packer packs one panel.
type packer struct {
	rows   [panelRows][]byte // nil past the matrix's end
	offset int               // of the codes
	dtype  tensor.DType
	codes  [panelRows][blockLen]byte
	super  [panelRows][superLen * blockLen / 8]uint64 // of a codebook type: the codes of a super-block
}

// packPanel writes panel i of w.
func packPanel(m *packed, dst []byte, w *kernel.Matrix[float32], i int) {
	p := packer{dtype: w.DType, offset: m.offset}
	size := w.DType.RowBytes(w.Cols)
	for r := range p.rows {
		if n := i*panelRows + r; n < w.Rows {
			p.rows[r] = w.Raw[n*size : (n+1)*size]
		}
	}
	read := codeReader(w.DType)
	for super := range m.blocks / m.super {
		m.scales(&p, dst[:m.scale], super)
		dst = dst[m.scale:]
		for b := super * m.super; b < (super+1)*m.super; b++ {
			for r, row := range p.rows {
				switch {
				case row == nil:
				case read != nil:
					read(&p.codes[r], row, b)
				default: // packCodebook has read them
					for i, eight := range p.super[r][b%superLen*blockLen/8:][:blockLen/8] {
						put(&p.codes[r], 8*i, eight)
					}
				}
			}
			m.codes(&p, dst[:m.size], b)
			dst = dst[m.size:]
		}
	}
}

// word returns the codes of inputs 4j..4j+3 of row r, one in each byte.
func (p *packer) word(r, j int) uint32 { return binary.LittleEndian.Uint32(p.codes[r][4*j:]) }

// everyByte times a byte is that byte four times.
const everyByte = 0x01010101

// packNibbles packs the codes of inputs 8i+k and 8i+4+k into the low and the high nibble of byte k.
func packNibbles(p *packer, dst []byte, _ int) {
	for i := range 4 {
		out := dst[64*i : 64*i+64]
		for r := range panelRows {
			v := p.word(r, 2*i)&(15*everyByte) | p.word(r, 2*i+1)&(15*everyByte)<<4
			binary.LittleEndian.PutUint32(out[4*r:], v)
		}
	}
}

// bitPlanes packs width bits of each code, from bit shift on. The bits of input 4j+k go to byte k of
// plane j/n, field j%n, where a byte has n = 8/width fields.
func bitPlanes(p *packer, dst []byte, shift, width int) {
	n, mask := 8/width, uint32(1<<width-1)*everyByte
	for plane := range 8 / n {
		out := dst[64*plane : 64*plane+64]
		for r := range panelRows {
			var v uint32
			for f := range n {
				v |= p.word(r, plane*n+f) >> shift & mask << (f * width)
			}
			binary.LittleEndian.PutUint32(out[4*r:], v)
		}
	}
}

func packFive(p *packer, dst []byte, b int) {
	packNibbles(p, dst, b)
	bitPlanes(p, dst[256:], 4, 1)
}

func packSix(p *packer, dst []byte, b int) {
	packNibbles(p, dst, b)
	bitPlanes(p, dst[256:], 4, 2)
}

func packEight(p *packer, dst []byte, _ int) {
	for j := range 8 {
		out := dst[64*j : 64*j+64]
		for r := range panelRows {
			binary.LittleEndian.PutUint32(out[4*r:], p.word(r, j))
		}
	}
}

func packTwo(p *packer, dst []byte, _ int) { bitPlanes(p, dst, 0, 2) }

func packThree(p *packer, dst []byte, _ int) {
	bitPlanes(p, dst, 0, 2)
	bitPlanes(p, dst[128:], 2, 1)
}

// each calls body with the bytes of every row's block b.
func (p *packer) each(b int, body func(r int, block []byte)) {
	size := p.dtype.BlockBytes()
	for r, row := range p.rows {
		if row != nil {
			body(r, row[b*size:(b+1)*size])
		}
	}
}

func packFloat16(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) { copy(dst[2*r:2*r+2], block) })
}

func packFloat16Min(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) {
		copy(dst[2*r:2*r+2], block)
		copy(dst[32+2*r:32+2*r+2], block[2:])
	})
}

// packExponent stores e-1, the exponent of 2^(e-127) / 2, because the levels of MXFP4 are doubled.
// Exponents 0 and 1 would be subnormal in float32 and are stored as zero.
func packExponent(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) { dst[r] = max(block[0], 1) - 1 })
}

// negative flips the sign of a float16.
func negative(dst, src []byte) {
	binary.LittleEndian.PutUint16(dst, binary.LittleEndian.Uint16(src)^0x8000)
}

func packQ2K(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) {
		copy(dst[2*r:2*r+2], block[80:])
		copy(dst[32+2*r:32+2*r+2], block[82:])
		for sub := range 16 {
			dst[64+16*sub+r] = block[sub]
		}
	})
}

func packQ3K(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) {
		copy(dst[2*r:2*r+2], block[108:])
		for sub := range 16 {
			dst[32+16*sub+r] = byte(scaleQ3K(block[96:108], sub))
		}
	})
}

func packQ4K(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) {
		copy(dst[2*r:2*r+2], block)
		negative(dst[32+2*r:], block[2:])
		for sub := range 8 {
			dst[64+32*sub+r], dst[64+32*sub+16+r] = scaleQ4K(block[4:16], sub)
		}
	})
}

func packQ6K(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) {
		copy(dst[2*r:2*r+2], block[208:])
		for sub := range 16 {
			dst[32+16*sub+r] = block[192+sub]
		}
	})
}

func packIQ4XS(p *packer, dst []byte, b int) {
	p.each(b, func(r int, block []byte) {
		copy(dst[2*r:2*r+2], block)
		for sub := range 8 {
			dst[32+16*sub+r] = byte(scaleIQ4XS(block, sub))
		}
	})
}

// Offsets in the scales of a super-block of a codebook type: after 16 float16 scales there are the
// type's levels, moved to unsigned bytes, and the power of two that the scales are multiplied by, as
// a float32. The integer scales of the groups follow, 16 rows to each group.
const (
	codebookLevels = 32
	codebookFactor = 48
	codebookScales = 64
)

// packCodebook packs the scales of super-block b and keeps its codes for packNibbles. The value of a
// code is exactly that of the dequantised weight: float16 × factor × integer × level.
func packCodebook(p *packer, dst []byte, b int) {
	book := tensor.CodebookOf(p.dtype)
	groups := superLen * blockLen / book.Group
	for i, level := range book.Levels {
		dst[codebookLevels+i] = byte(int(level) + p.offset)
	}
	putFloat(dst[codebookFactor:], book.Factor)
	p.each(b, func(r int, block []byte) {
		var scales [16]uint8
		binary.LittleEndian.PutUint16(dst[2*r:], book.Read(block, &p.super[r], &scales))
		for i, scale := range scales[:groups] {
			dst[codebookScales+panelRows*i+r] = scale
		}
	})
}
