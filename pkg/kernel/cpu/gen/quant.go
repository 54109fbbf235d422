package main

import "fmt"

// Quantised products. A panel is 16 rows of a matrix, one row a lane; blocks are 32
// inputs. Codes are unsigned bytes, four inputs of a row in each 32-bit lane, so that
// VPDPBUSD multiplies them with four broadcast activations. See DESIGN.md.

// Offsets in an activation block: 32 signed bytes and a header.
const (
	actBytes   = 64
	actScale   = 32 // f32
	actSum     = 36 // f32: scale times the sum of the bytes
	actLess8   = 40 // i32: -8 times the sum
	actLess16  = 44
	actLess128 = 48
	actLow     = 52 // i32: -32 times the sum of the first 16
	actHigh    = 56 // i32: -32 times the sum of the last 16
)

// Unpacked blocks: eight vectors of codes, then vectors of f32.
const (
	unpackedScale = 512
	unpackedBytes = 640
	unpackedWide  = 768 // with two minima
)

// kind says how a block's codes become a sum.
type kind int

const (
	oneScale     kind = iota // one scale; the integer sum starts at a header word
	oneScaleMin              // one scale and one minimum
	twoScales                // a scale for each 16 inputs; codes have offset 32, sums start at the header's low and high
	twoScalesMin             // a scale and a minimum for each 16 inputs
	twoScales64              // as twoScales, but codes have offset 64: sums start at twice the header's low and high
)

// kinds lists them.
var kinds = []kind{oneScale, oneScaleMin, twoScales, twoScalesMin, twoScales64}

// qtype is a packed form of weights: how its codes and scales are packed.
type qtype struct {
	name   string
	kind   kind
	word   int      // header word of oneScale
	codes  string   // "4", "5", "6", "8", "2", "3", "lut"
	scales string   // "h", "hm", "e8" a block; "k4", "k6", "k3", "k2", "kx", "b1", "b2" a super-block of 8
	table  string   // of "lut"; "" if super-blocks hold it ("b1", "b2")
	types  []string // the element types that have this form; nil: the one called name
}

var qtypes = []qtype{
	{"Q4_0", oneScale, actLess8, "4", "h", "", nil},
	{"Q4_1", oneScaleMin, 0, "4", "hm", "", nil},
	{"Q5_0", oneScale, actLess16, "5", "h", "", nil},
	{"Q5_1", oneScaleMin, 0, "5", "hm", "", nil},
	{"Q8_0", oneScale, actLess128, "8", "h", "", nil},
	{"IQ4_NL", oneScale, actLess128, "lut", "h", "levelsIQ4", nil},
	{"MXFP4", oneScale, actLess16, "lut", "e8", "levelsFP4", nil},
	{"Q2_K", twoScalesMin, 0, "2", "k2", "", nil},
	{"Q3_K", twoScales, 0, "3", "k3", "", nil},
	{"Q4_K", oneScaleMin, 0, "4", "k4", "", nil},
	{"Q5_K", oneScaleMin, 0, "5", "k4", "", nil},
	{"Q6_K", twoScales, 0, "6", "k6", "", nil},
	{"IQ4_XS", oneScale, actLess128, "lut", "kx", "levelsIQ4", nil},
	// The types with codebooks: 4-bit codes, each super-block with its type's levels.
	{"Codebook32", oneScale, actLess128, "lut", "b1", "", []string{"IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S"}},
	{"Codebook16", twoScales64, 0, "lut", "b2", "", []string{"IQ1_M", "IQ2_XS", "IQ2_S"}},
}

// dtypes are the names of the element types that have the form.
func (q *qtype) dtypes() []string {
	if q.types == nil {
		return []string{q.name}
	}
	return q.types
}

// codeBytes is the size of a packed block's codes.
func (q *qtype) codeBytes() int {
	return map[string]int{"4": 256, "lut": 256, "5": 320, "6": 384, "8": 512, "2": 128, "3": 192}[q.codes]
}

// scaleBytes is the size of a block's scales, or of a super-block's, which stand before
// the codes.
func (q *qtype) scaleBytes() int {
	return map[string]int{"h": 32, "hm": 64, "e8": 16, "k4": 320, "k6": 288, "k3": 288, "k2": 320, "kx": 160, "b1": 192, "b2": 320}[q.scales]
}

func (q *qtype) super() bool { return q.scales[0] == 'k' || q.scales[0] == 'b' }

// quant writes the loops over quantised weights.
func quant(a *asm) {
	a.tables()
	a.quantize()
	for i := range qtypes {
		a.unpack(&qtypes[i], "")
		if qtypes[i].offset() != 0 {
			a.unpack(&qtypes[i], signedSuffix)
		}
		a.gemv(&qtypes[i])
		a.packedRows(&qtypes[i])
	}
	for _, k := range kinds {
		a.tile(k)
		a.unpackedRows(k)
		if k != twoScales64 { // its signed codes are those of twoScales
			a.amx(k)
		}
	}
	quantAVX2(a)
}

// tileRows is how many rows one pass over an unpacked panel has.
const tileRows = 16

func (k kind) String() string {
	return [...]string{"OneScale", "OneScaleMin", "TwoScales", "TwoScalesMin", "TwoScales64"}[k]
}

// tables writes the levels of the uneven types, moved to unsigned bytes.
func (a *asm) tables() {
	write := func(name string, values [16]int, offset int) {
		fmt.Fprintln(a)
		for half := range 2 {
			word := uint64(0)
			for i := range 8 {
				word |= uint64(values[8*half+i]+offset) << (8 * i)
			}
			fmt.Fprintf(a, "DATA %s<>+%d(SB)/8, $0x%016x\n", name, 8*half, word)
		}
		fmt.Fprintf(a, "GLOBL %s<>(SB), RODATA|NOPTR, $16\n", name)
	}
	write("levelsIQ4", [16]int{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}, 128)
	write("levelsFP4", [16]int{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}, 16)
}

// constant broadcasts a constant.
func (a *asm) constant(value uint32, z int) {
	a.f("MOVL $0x%08x, AX", value)
	a.f("VPBROADCASTD AX, Z%d", z)
}

// setup loads the constants of a type's unpacking: Z31 and Z30 masks, Z27 levels.
func (a *asm) setup(q *qtype) {
	switch q.codes {
	case "4", "lut":
		a.constant(0x0f0f0f0f, 31)
	case "5":
		a.constant(0x0f0f0f0f, 31)
		a.constant(0x10101010, 30)
	case "6":
		a.constant(0x0f0f0f0f, 31)
		a.constant(0x30303030, 30)
	case "2":
		a.constant(0x03030303, 31)
		a.constant(15, 30)
	case "3":
		a.constant(0x18181818, 31)
		a.constant(0x20202020, 30)
	}
	if q.table != "" {
		a.f("VBROADCASTI32X4 %s<>(SB), Z27", q.table)
	}
}

// shift moves bits up (positive) or down from z to into, and returns the register
// that has them.
func (a *asm) shift(z, by, into int) int {
	switch {
	case by > 0:
		a.f("VPSLLD $%d, Z%d, Z%d", by, z, into)
	case by < 0:
		a.f("VPSRLD $%d, Z%d, Z%d", -by, z, into)
	default:
		return z
	}
	return into
}

// loadCodes brings a block's codes at DI to Z16..Z23 and moves on. Z2..Z4 are scratch.
func (a *asm) loadCodes(q *qtype) {
	const or = 0xF8 // a | b&c
	nibbles := func() {
		for i := range 4 {
			lo, hi := 16+2*i, 17+2*i
			a.f("VMOVDQU32 %d(DI), Z%d", 64*i, hi)
			a.f("VPANDD Z31, Z%d, Z%d", hi, lo)
			a.f("VPSRLD $4, Z%d, Z%d", hi, hi)
			a.f("VPANDD Z31, Z%d, Z%d", hi, hi)
		}
	}
	switch q.codes {
	case "4":
		nibbles()
	case "lut":
		nibbles()
		for j := range 8 {
			a.f("VPSHUFB Z%d, Z27, Z%d", 16+j, 16+j)
		}
	case "5":
		nibbles()
		a.f("VMOVDQU32 256(DI), Z2")
		for j := range 8 {
			z := a.shift(2, 4-j, 3)
			a.f("VPTERNLOGD $0x%x, Z30, Z%d, Z%d", or, z, 16+j)
		}
	case "6":
		nibbles()
		for j := range 8 {
			if j%4 == 0 {
				a.f("VMOVDQU32 %d(DI), Z2", 256+16*j)
			}
			z := a.shift(2, 4-2*(j%4), 3)
			a.f("VPTERNLOGD $0x%x, Z30, Z%d, Z%d", or, z, 16+j)
		}
	case "8":
		for j := range 8 {
			a.f("VMOVDQU32 %d(DI), Z%d", 64*j, 16+j)
		}
	case "2":
		for j := range 8 {
			if j%4 == 0 {
				a.f("VMOVDQU32 %d(DI), Z2", 16*j)
			}
			z := a.shift(2, -2*(j%4), 3)
			a.f("VPANDD Z31, Z%d, Z%d", z, 16+j)
		}
	case "3": // codes times eight
		a.f("VMOVDQU32 128(DI), Z4")
		for j := range 8 {
			if j%4 == 0 {
				a.f("VMOVDQU32 %d(DI), Z2", 16*j)
			}
			z := a.shift(2, 3-2*(j%4), 3)
			a.f("VPANDD Z31, Z%d, Z%d", z, 16+j)
			z = a.shift(4, 5-j, 3)
			a.f("VPTERNLOGD $0x%x, Z30, Z%d, Z%d", or, z, 16+j)
		}
	}
	a.f("ADDQ $%d, DI", q.codeBytes())
}

// loadSuper brings a super-block's own scales at SI to Z28 and Z29.
func (a *asm) loadSuper(q *qtype) {
	a.f("VCVTPH2PS (SI), Z28")
	switch q.scales {
	case "k4", "k2":
		a.f("VCVTPH2PS 32(SI), Z29")
		if q.scales == "k2" { // the sums it meets are -32 times too large
			a.constant(0x3d000000, 2)
			a.f("VMULPS Z2, Z29, Z29")
		}
		a.f("ADDQ $64, SI")
		return
	case "k3": // the codes are eight times too large
		a.constant(0x3e000000, 2)
		a.f("VMULPS Z2, Z28, Z28")
	case "b1", "b2": // the type's levels, and a power of two that its scales are multiplied by
		a.f("VBROADCASTI32X4 32(SI), Z27")
		a.f("VMULPS.BCST 48(SI), Z28, Z28")
		a.f("ADDQ $64, SI")
		return
	}
	a.f("ADDQ $32, SI")
}

// loadScales brings a block's scales and minima at SI to Z24 on, and moves on.
func (a *asm) loadScales(q *qtype) {
	floats := func(load string, off, z, super int) {
		if load != "" {
			a.f("%s %d(SI), Z%d", load, off, z)
		}
		a.f("VCVTDQ2PS Z%d, Z%d", z, z)
		a.f("VMULPS Z%d, Z%d, Z%d", super, z, z)
	}
	step := 0
	switch q.scales {
	case "h":
		a.f("VCVTPH2PS (SI), Z24")
		step = 32
	case "hm":
		a.f("VCVTPH2PS (SI), Z24")
		a.f("VCVTPH2PS 32(SI), Z25")
		step = 64
	case "e8":
		a.f("VPMOVZXBD (SI), Z24")
		a.f("VPSLLD $23, Z24, Z24")
		step = 16
	case "k4":
		floats("VPMOVZXBD", 0, 24, 28)
		floats("VPMOVZXBD", 16, 25, 29)
		step = 32
	case "k6", "k3", "b2":
		floats("VPMOVSXBD", 0, 24, 28)
		floats("VPMOVSXBD", 16, 25, 28)
		step = 32
	case "kx", "b1":
		floats("VPMOVSXBD", 0, 24, 28)
		step = 16
	case "k2":
		for h := range 2 {
			a.f("VPMOVZXBD %d(SI), Z%d", 16*h, 24+h)
			a.f("VPSRLD $4, Z%d, Z%d", 24+h, 26+h)
			a.f("VPANDD Z30, Z%d, Z%d", 24+h, 24+h)
			floats("", 0, 24+h, 28)
			floats("", 0, 26+h, 29)
		}
		step = 32
	}
	if q.super() {
		a.f("ADDQ $%d, SI", step)
	}
}

// blocks loops over CX packed blocks at DI.
func (a *asm) blocks(q *qtype, label string, body func()) {
	a.label(label)
	a.f("MOVQ DI, SI")
	a.f("ADDQ $%d, DI", q.scaleBytes())
	if q.super() {
		a.loadSuper(q)
		a.f("MOVQ $8, DX")
		a.label(label + "sub")
	}
	a.loadScales(q)
	a.loadCodes(q)
	body()
	if q.super() {
		a.f("DECQ DX")
		a.f("JNZ %ssub", label)
		a.f("SUBQ $8, CX")
	} else {
		a.f("DECQ CX")
	}
	a.f("JNZ %s", label)
}

// unpack writes unpack<type>: a panel's codes and scales as the tiles want them. Signed
// codes are less their offset.
func (a *asm) unpack(q *qtype, suffix string) {
	name := "unpack" + q.name + suffix
	a.fn(name, 24, fmt.Sprintf("func %s(dst, panel *byte, blocks int)", name))
	a.f("MOVQ dst+0(FP), BX")
	a.f("MOVQ panel+8(FP), DI")
	a.f("MOVQ blocks+16(FP), CX")
	a.setup(q)
	if suffix == signedSuffix {
		a.constant(uint32(q.offset())*0x01010101, 26)
	}
	a.blocks(q, "loop", func() {
		for j := range 8 {
			if suffix == signedSuffix {
				a.f("VPSUBB Z26, Z%d, Z%d", 16+j, 16+j)
			}
			a.f("VMOVDQU32 Z%d, %d(BX)", 16+j, 64*j)
		}
		for j := range q.kind.factors() {
			a.f("VMOVUPS Z%d, %d(BX)", 24+j, unpackedScale+64*j)
		}
		a.f("ADDQ $%d, BX", q.kind.stride())
	})
	a.end()
}

func (k kind) stride() int {
	if k == twoScalesMin {
		return unpackedWide
	}
	return unpackedBytes
}

// blockDot adds a token's block at off(BX) to accumulator acc: codes in Z16..Z23, scales in
// Z24 on, t0 and t1 scratch. word is an immediate offset, or a register that holds it.
func (a *asm) blockDot(k kind, off int, word string, acc, t0, t1 int) {
	products := func(lo, hi, z int) {
		for j := lo; j < hi; j++ {
			a.f("VPDPBUSD.BCST %d(BX), Z%d, Z%d", off+4*j, 16+j, z)
		}
	}
	scaled := func(z, scale int) {
		a.f("VCVTDQ2PS Z%d, Z%d", z, z)
		a.f("VMULPS.BCST %d(BX), Z%d, Z%d", off+actScale, scale, t1)
		a.f("VFMADD231PS Z%d, Z%d, Z%d", z, t1, acc)
	}
	switch k {
	case oneScale:
		a.f("VPBROADCASTD %s, Z%d", word, t0)
		products(0, 8, t0)
		scaled(t0, 24)
	case oneScaleMin:
		a.f("VPXORD Z%d, Z%d, Z%d", t0, t0, t0)
		products(0, 8, t0)
		scaled(t0, 24)
		a.f("VFMADD231PS.BCST %d(BX), Z25, Z%d", off+actSum, acc)
	case twoScales, twoScales64:
		for h := range 2 {
			a.f("VPBROADCASTD %d(BX), Z%d", off+actLow+4*h, t0)
			if k == twoScales64 {
				a.f("VPADDD Z%d, Z%d, Z%d", t0, t0, t0)
			}
			products(4*h, 4*h+4, t0)
			scaled(t0, 24+h)
		}
	case twoScalesMin:
		for h := range 2 {
			a.f("VPXORD Z%d, Z%d, Z%d", t0, t0, t0)
			products(4*h, 4*h+4, t0)
			scaled(t0, 24+h)
			a.f("VPBROADCASTD %d(BX), Z%d", off+actLow+4*h, t0)
			a.f("VCVTDQ2PS Z%d, Z%d", t0, t0)
			a.f("VMULPS.BCST %d(BX), Z%d, Z%d", off+actScale, t0, t0)
			a.f("VFMADD231PS Z%d, Z%d, Z%d", t0, 26+h, acc)
		}
	}
}

// gemv writes gemv<type>: panels of packed weights times one row of activations.
func (a *asm) gemv(q *qtype) {
	a.fn("gemv"+q.name, 40, fmt.Sprintf("func gemv%s(y *float32, panels, x *byte, blocks, count int)", q.name))
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ panels+8(FP), DI")
	a.f("MOVQ x+16(FP), R12")
	a.f("MOVQ count+32(FP), R13")
	a.setup(q)
	a.label("panels")
	a.f("MOVQ R12, BX")
	a.f("MOVQ blocks+24(FP), CX")
	a.f("VPXORD Z0, Z0, Z0")
	a.blocks(q, "loop", func() {
		a.blockDot(q.kind, 0, fmt.Sprintf("%d(BX)", q.word), 0, 1, 2)
		a.f("ADDQ $%d, BX", actBytes)
	})
	a.f("VMOVUPS Z0, (R8)")
	a.f("ADDQ $64, R8")
	a.f("DECQ R13")
	a.f("JNZ panels")
	a.end()
}
