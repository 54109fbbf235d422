package main

import "fmt"

// Products of quantised weights. A panel is 16 rows of a matrix, one in each lane, and a block is 32 inputs. Codes are
// unsigned bytes. A 32-bit lane holds the codes of four inputs of its row, so that VPDPBUSD multiplies them by four
// activations, which are broadcast to all lanes. Eight such steps make the exact integer sum of a block, which is
// then scaled and added to the output by one fused multiply-add. See DESIGN.md.

// Offsets in an activation block, which has 32 signed bytes and a header.
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

// Layout of an unpacked block: eight vectors of codes, and then vectors of float32 scales and minima.
const (
	unpackedScale = 512
	unpackedBytes = 640
	unpackedWide  = 768 // with two minima
)

// kind says how a block is added to a sum.
type kind int

const (
	oneScale     kind = iota // one scale; the integer sum starts from a word of the header
	oneScaleMin              // one scale and one minimum
	twoScales                // a scale for each 16 inputs; offset 32: sums start from actLow and actHigh
	twoScalesMin             // a scale and a minimum for each 16 inputs
	twoScales64              // as twoScales, with offset 64: sums start from twice actLow and actHigh
)

// kinds lists the kinds.
var kinds = []kind{oneScale, oneScaleMin, twoScales, twoScalesMin, twoScales64}

// qtype describes how weights of some types are packed.
type qtype struct {
	name   string
	kind   kind
	word   int      // of oneScale: the header word with minus the offset times the sum of the bytes
	codes  string   // bits of a code, or "lut" for 4-bit indices of levels
	scales string   // layout of the scales of a block (h, hm, e8) or of a super-block of 8 blocks (k., b.)
	table  string   // of "lut": the levels; "" if each super-block holds them
	types  []string // the element types; nil: the type called name
}

// qtypes lists the packed forms. The layouts of scales are: h, float16; hm, float16 scales and minima; e8, exponents
// of two; k2 to k6 and kx, integers times the float16 scales of the super-block, as in Q2_K to Q6_K and IQ4_XS;
// b1 and b2, one or two integers for each block after the levels of a codebook type.
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
	// The types with codebooks: 4-bit codes, and each super-block holds the levels of its type.
	{"Codebook32", oneScale, actLess128, "lut", "b1", "", []string{"IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S"}},
	{"Codebook16", twoScales64, 0, "lut", "b2", "", []string{"IQ1_M", "IQ2_XS", "IQ2_S"}},
}

// dtypes returns the names of the element types with this form.
func (q *qtype) dtypes() []string {
	if q.types == nil {
		return []string{q.name}
	}
	return q.types
}

// codeBytes returns the size of the codes of a packed block.
func (q *qtype) codeBytes() int {
	return map[string]int{"4": 256, "lut": 256, "5": 320, "6": 384, "8": 512, "2": 128, "3": 192}[q.codes]
}

// scaleBytes returns the size of the scales of a block or super-block, which precede the codes.
func (q *qtype) scaleBytes() int {
	return map[string]int{"h": 32, "hm": 64, "e8": 16, "k4": 320, "k6": 288, "k3": 288, "k2": 320, "kx": 160, "b1": 192,
		"b2": 320}[q.scales]
}

// super reports whether eight blocks share scales.
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
		if k != twoScales64 { // signed codes have no offset: the loop of twoScales does both
			a.amx(k)
		}
	}
	quantAVX2(a)
}

// tileRows is the number of rows of activations in a pass over an unpacked panel.
const tileRows = 16

func (k kind) String() string {
	return [...]string{"OneScale", "OneScaleMin", "TwoScales", "TwoScalesMin", "TwoScales64"}[k]
}

// tables writes the levels of the non-linear types, plus an offset that makes them unsigned.
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

// constant broadcasts a constant to all lanes of z.
func (a *asm) constant(value uint32, z int) {
	a.f("MOVL $0x%08x, AX", value)
	a.f("VPBROADCASTD AX, Z%d", z)
}

// setup loads the constants for unpacking a type: masks to Z31 and Z30, levels to Z27.
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

// shift shifts the lanes of z left by a number of bits, or right if the number is negative. It returns the register
// with the result: z if the number is zero, and into otherwise.
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

// loadCodes loads the codes of the block at DI to Z16..Z23 and advances DI. Z2..Z4 are scratch. Bits above the low
// four are stored in planes of their own: they are shifted into place, and VPTERNLOGD masks and inserts them.
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
	case "3": // eight times the codes, which saves shifts; loadSuper divides the scales by eight
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

// loadSuper loads the float16 scales of the super-block at SI to Z28 and its minima to Z29, and advances SI.
func (a *asm) loadSuper(q *qtype) {
	a.f("VCVTPH2PS (SI), Z28")
	switch q.scales {
	case "k4", "k2":
		a.f("VCVTPH2PS 32(SI), Z29")
		if q.scales == "k2" { // the sums in the header are -32 times too large
			a.constant(0x3d000000, 2)
			a.f("VMULPS Z2, Z29, Z29")
		}
		a.f("ADDQ $64, SI")
		return
	case "k3": // the codes are eight times too large
		a.constant(0x3e000000, 2)
		a.f("VMULPS Z2, Z28, Z28")
	case "b1", "b2": // also the levels of the type; a factor multiplies the scales
		a.f("VBROADCASTI32X4 32(SI), Z27")
		a.f("VMULPS.BCST 48(SI), Z28, Z28")
		a.f("ADDQ $64, SI")
		return
	}
	a.f("ADDQ $32, SI")
}

// loadScales loads the scales and minima of the block at SI to Z24 and on, and advances SI.
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

// blocks writes a loop over CX packed blocks at DI. It loads each block before body.
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

// unpack writes unpack<type>, which writes the codes and scales of a panel in the form that tiles read. Loops with
// the suffix Signed subtract the offset from the codes.
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

// stride returns the size of an unpacked block.
func (k kind) stride() int {
	if k == twoScalesMin {
		return unpackedWide
	}
	return unpackedBytes
}

// blockDot adds the product with the activation block at off(BX) to accumulator acc. The codes are in Z16..Z23, the
// scales in Z24 and on, and t0 and t1 are scratch. word is the address of the header word that the integer sum
// starts from: it is minus the offset times the sum of the activation's bytes, so Σ(c-o)·q is computed as Σc·q - o·Σq
// with unsigned codes.
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

// gemv writes gemv<type>: packed panels times one row of activations.
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
