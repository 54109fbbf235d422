package cpu

import "github.com/lamina-mesh/lamina/pkg/tensor"

// kind says how a block of 32 inputs is added to an output. The activation block has bytes q and a
// scale d; the weight block has codes c above an offset o, a scale s and a minimum m. Each assignment
// is one fused multiply-add:
type kind int

const (
	kindOneScale     kind = iota // sum = s·d · Σ(c-o)·q + sum
	kindOneScaleMin              // sum = s·d · Σc·q + sum; sum = m · d·Σq + sum
	kindTwoScales                // as kindOneScale, for the first 16 inputs and then for the other 16; o is 32
	kindTwoScalesMin             // as kindOneScaleMin, for the first 16 inputs and then for the other 16
	kindTwoScales64              // as kindTwoScales; o is 64
	kinds
)

// Sizes, which must agree with those in gen.
const (
	panelRows     = 16 // rows of a panel
	blockLen      = 32 // inputs of a block
	superLen      = 8  // blocks of a super-block
	tileRows      = 16 // rows of activations in one pass over a panel
	rowsMax       = 8  // rows of activations in one pass that is not a tile
	unpackFrom    = 33 // rows of activations from which a panel is unpacked first
	amxUnpackFrom = 12 // the same with AMX tiles

	tileScratch = 4 << 10 // bytes of integer sums that tiles hand to the vector loops
)

// packing says how the panels of a type are packed.
type packing struct {
	kind   kind
	codes  func(p *packer, dst []byte, b int) // packs block b of the panel's rows
	size   int                                // bytes of a packed block's codes
	scales func(p *packer, dst []byte, b int) // packs the scales of block or super-block b
	scale  int                                // bytes of those scales
	super  int                                // blocks that share scales: 1 or superLen
	offset int                                // o: the difference between codes and values
	double int                                // the factor by which unpacked codes exceed the type's
}

// dtypes is larger than the number of element types.
const dtypes = 64

// packings lists the types that are multiplied in quantised form.
var packings = [dtypes]packing{
	tensor.Q4_0:   {kindOneScale, packNibbles, 256, packFloat16, 32, 1, 8, 1},
	tensor.Q4_1:   {kindOneScaleMin, packNibbles, 256, packFloat16Min, 64, 1, 0, 1},
	tensor.Q5_0:   {kindOneScale, packFive, 320, packFloat16, 32, 1, 16, 1},
	tensor.Q5_1:   {kindOneScaleMin, packFive, 320, packFloat16Min, 64, 1, 0, 1},
	tensor.Q8_0:   {kindOneScale, packEight, 512, packFloat16, 32, 1, 128, 1},
	tensor.IQ4_NL: {kindOneScale, packNibbles, 256, packFloat16, 32, 1, 128, 1},
	tensor.MXFP4:  {kindOneScale, packNibbles, 256, packExponent, 16, 1, 16, 1},
	tensor.Q2_K:   {kindTwoScalesMin, packTwo, 128, packQ2K, 320, superLen, 0, 1},
	tensor.Q3_K:   {kindTwoScales, packThree, 192, packQ3K, 288, superLen, 32, 8},
	tensor.Q4_K:   {kindOneScaleMin, packNibbles, 256, packQ4K, 320, superLen, 0, 1},
	tensor.Q5_K:   {kindOneScaleMin, packFive, 320, packQ4K, 320, superLen, 0, 1},
	tensor.Q6_K:   {kindTwoScales, packSix, 384, packQ6K, 288, superLen, 32, 1},
	tensor.IQ4_XS: {kindOneScale, packNibbles, 256, packIQ4XS, 160, superLen, 128, 1},

	tensor.IQ1_S:   {kindOneScale, packNibbles, 256, packCodebook, 192, superLen, 128, 1},
	tensor.IQ1_M:   {kindTwoScales64, packNibbles, 256, packCodebook, 320, superLen, 64, 1},
	tensor.IQ2_XXS: {kindOneScale, packNibbles, 256, packCodebook, 192, superLen, 128, 1},
	tensor.IQ2_XS:  {kindTwoScales64, packNibbles, 256, packCodebook, 320, superLen, 64, 1},
	tensor.IQ2_S:   {kindTwoScales64, packNibbles, 256, packCodebook, 320, superLen, 64, 1},
	tensor.IQ3_XXS: {kindOneScale, packNibbles, 256, packCodebook, 192, superLen, 128, 1},
	tensor.IQ3_S:   {kindOneScale, packNibbles, 256, packCodebook, 192, superLen, 128, 1},
}

// word returns where the header of an activation block has minus the offset times the sum of the bytes.
func (p *packing) word() int {
	switch p.offset {
	case 8:
		return actLess8
	case 16:
		return actLess16
	}
	return actLess128
}

// Offsets in the header of an activation block, which follows 32 signed bytes. (With AVX2 it follows 32
// words.)
const (
	actScale   = 32 // f32
	actSum     = 36 // f32: the scale times the sum of the bytes
	actLess8   = 40 // i32: -8 times the sum
	actLess16  = 44
	actLess128 = 48
	actLow     = 52 // i32: -32 times the sum of the first 16
	actHigh    = 56
)

type (
	unpackFunc       func(dst, panel *byte, blocks int)
	gemvFunc         func(y *float32, panels, x *byte, blocks, count int)
	packedRowsFunc   func(y *float32, ldy int, panel, x *byte, blocks, rows, stride int)
	tileFunc         func(y *float32, ldy int, w, x *byte, blocks, word int)
	unpackedRowsFunc func(y *float32, ldy int, w, x *byte, blocks, rows, stride, word int)
	amxFunc          func(y *float32, ldy int, w, x, scratch *byte, blocks, rows, groups int)
)

// unpackRows returns the number of rows from which a panel is unpacked first.
func (q *quantOps) unpackRows() int {
	if q.amx[kindOneScale] != nil {
		return amxUnpackFrom
	}
	return unpackFrom
}

// quantOps are the loops over quantised weights of one instruction family.
type quantOps struct {
	act      int        // bytes of an activation block
	unpacked [kinds]int // bytes of an unpacked block
	quantize func(dst *byte, stride int, x *float32, blocks int)
	unpack   [dtypes]unpackFunc // nil: packedRows, for any number of rows
	gemv     [dtypes]gemvFunc   // nil: unpack and unpackedRows
	// at most rowsMax rows, stride bytes between their blocks; nil: unpack and unpackedRows
	packedRows   [dtypes]packedRowsFunc
	tile         [kinds]tileFunc         // tileRows rows; nil: unpackedRows
	unpackedRows [kinds]unpackedRowsFunc // at most rowsMax rows
	// groups of at most tileRows rows, from codes minus their offset; nil: tile and unpackedRows
	amx [kinds]amxFunc
}
