package main

import "fmt"

// The same products with AVX2. For several rows, codes that are too large for the loops of quant_avx2_rows.go are
// unpacked to signed 16-bit numbers, two inputs of a row in each 32-bit lane, and VPMADDWD multiplies them by two
// activations, which are broadcast. These sums cannot saturate.

// Layout of this family's activation block: 32 signed words, the same header, and the 32 numbers as bytes.
const (
	wideActBytes = 128
	wideBytes    = 96
	wideHeader   = 64 - actScale // added to the offsets of the header

	wideScale = 1024 // of an unpacked block: the float32 vectors, after 16 pairs of inputs
)

// wideStride returns the size of an unpacked block.
func (k kind) wideStride() int {
	return wideScale + 64*k.factors()
}

// factors returns the number of scales and minima of a block.
func (k kind) factors() int {
	return [...]int{oneScale: 1, oneScaleMin: 2, twoScales: 2, twoScalesMin: 4, twoScales64: 2}[k]
}

// quantAVX2 writes the loops.
func quantAVX2(a *asm) {
	a.pairMasks()
	a.ones()
	a.quantizeWide()
	for i := range qtypes {
		q := &qtypes[i]
		a.gemvWide(q)
		if q.sharesCodes() {
			a.packedRowsWide(q)
		} else {
			a.unpackWide(q)
		}
	}
	// Only these kinds have types whose panels are unpacked. Signed codes have no offset, so twoScales64 needs no loop
	// of its own.
	a.unpackedRowsWide(oneScale)
	a.unpackedRowsWide(twoScales)
}

// pairMasks writes the shuffles that widen bytes 0 and 1, and bytes 2 and 3, of each lane to words.
func (a *asm) pairMasks() {
	for i, name := range []string{"lowPair", "highPair"} {
		fmt.Fprintln(a)
		for word := range 4 {
			v := uint64(0)
			for lane := range 2 {
				b := uint64(2*i + 4*(2*(word%2)+lane))
				v |= (b | 0x80<<8 | (b+1)<<16 | 0x80<<24) << (32 * lane)
			}
			fmt.Fprintf(a, "DATA %s<>+%d(SB)/8, $0x%016x\n", name, 8*word, v)
		}
		fmt.Fprintf(a, "GLOBL %s<>(SB), RODATA|NOPTR, $32\n", name)
	}
}

// constant256 broadcasts a constant to all lanes of y.
func (a *asm) constant256(value uint32, y int) {
	a.f("MOVL $0x%08x, AX", value)
	a.f("VMOVD AX, X%d", y)
	a.f("VPBROADCASTD X%d, Y%d", y, y)
}

// offset returns the difference between unpacked codes and the values that they stand for (eight times the values
// for Q3_K).
func (q *qtype) offset() int {
	switch {
	case q.kind == twoScales:
		return 32
	case q.kind == twoScales64:
		return 64
	case q.kind != oneScale:
		return 0
	}
	return map[int]int{actLess8: 8, actLess16: 16, actLess128: 128}[q.word]
}

// setupWide loads the constants for unpacking a type: masks to Y15 and Y14, the shuffles that widen to Y13 and Y12,
// the offset to Y11 and levels to Y10.
func (a *asm) setupWide(q *qtype) {
	masks := map[string][2]uint32{
		"4": {0x0f0f0f0f}, "lut": {0x0f0f0f0f}, "5": {0x0f0f0f0f, 0x10101010}, "6": {0x0f0f0f0f, 0x30303030},
		"2": {0x03030303}, "3": {0x18181818, 0x20202020},
	}[q.codes]
	for i, m := range masks {
		if m != 0 {
			a.constant256(m, 15-i)
		}
	}
	a.f("VMOVDQU lowPair<>(SB), Y13")
	a.f("VMOVDQU highPair<>(SB), Y12")
	if o := uint32(q.offset()); o != 0 {
		a.constant256(o|o<<16, 11)
	}
	if q.table != "" {
		a.f("VBROADCASTI128 %s<>(SB), Y10", q.table)
	}
}

// shiftWide is shift with Y4 as its result.
func (a *asm) shiftWide(y, by int) int {
	switch {
	case by > 0:
		a.f("VPSLLD $%d, Y%d, Y4", by, y)
	case by < 0:
		a.f("VPSRLD $%d, Y%d, Y4", -by, y)
	default:
		return y
	}
	return 4
}

// codesWide loads the codes of inputs 4j..4j+3 of eight rows to Y3. h is 0 for the first eight rows of the panel and 1
// for the others. Y2 and Y5 keep vectors that later groups of inputs share.
func (a *asm) codesWide(q *qtype, j, h int) {
	high := func(y, shift int) { // Y3 |= shifted & Y14
		a.f("VPAND Y14, Y%d, Y4", a.shiftWide(y, shift))
		a.f("VPOR Y4, Y3, Y3")
	}
	switch q.codes {
	case "8":
		a.f("VMOVDQU %d(DI), Y3", 64*j+32*h)
		return
	case "2", "3":
		if j%4 == 0 {
			a.f("VMOVDQU %d(DI), Y2", 64*(j/4)+32*h)
		}
		if q.codes == "2" {
			a.f("VPAND Y15, Y%d, Y3", a.shiftWide(2, -2*(j%4)))
			return
		}
		if j == 0 {
			a.f("VMOVDQU %d(DI), Y5", 128+32*h)
		}
		a.f("VPAND Y15, Y%d, Y3", a.shiftWide(2, 3-2*(j%4)))
		high(5, 5-j)
		return
	}
	if j%2 == 0 {
		a.f("VMOVDQU %d(DI), Y2", 64*(j/2)+32*h)
		a.f("VPAND Y15, Y2, Y3")
	} else {
		a.f("VPSRLD $4, Y2, Y3")
		a.f("VPAND Y15, Y3, Y3")
	}
	switch q.codes {
	case "lut":
		a.f("VPSHUFB Y3, Y10, Y3")
	case "5":
		if j == 0 {
			a.f("VMOVDQU %d(DI), Y5", 256+32*h)
		}
		high(5, 4-j)
	case "6":
		if j%4 == 0 {
			a.f("VMOVDQU %d(DI), Y5", 256+16*j+32*h)
		}
		high(5, 4-2*(j%4))
	}
}

// superWide loads the float16 scales of the super-block at SI to Y6 and Y7 and its minima to Y8 and Y9, and advances
// SI.
func (a *asm) superWide(q *qtype) {
	float16s := func(at, y int, factor uint32) {
		for h := range 2 {
			a.f("VCVTPH2PS %d(SI), Y%d", at+16*h, y+h)
		}
		if factor != 0 {
			a.constant256(factor, 4)
			for h := range 2 {
				a.f("VMULPS Y4, Y%d, Y%d", y+h, y+h)
			}
		}
	}
	step := 32
	switch q.scales {
	case "k4":
		float16s(0, 6, 0)
		float16s(32, 8, 0)
		step = 64
	case "k2":
		float16s(0, 6, 0)
		float16s(32, 8, 0x3d000000)
		step = 64
	case "k3":
		float16s(0, 6, 0x3e000000)
	case "b1", "b2":
		float16s(0, 6, 0)
		a.f("VBROADCASTI128 32(SI), Y10")
		a.f("VBROADCASTSS 48(SI), Y4")
		for h := range 2 {
			a.f("VMULPS Y4, Y%d, Y%d", 6+h, 6+h)
		}
		step = 64
	default:
		float16s(0, 6, 0)
	}
	a.f("ADDQ $%d, SI", step)
}

// scalesWide computes the scales and minima of the block at SI, writes them to memory, off bytes from a register, and
// advances SI.
func (a *asm) scalesWide(q *qtype, register string, off int) {
	put := func(factor, h int) { a.f("VMOVUPS Y3, %d(%s)", off+64*factor+32*h, register) }
	times := func(load string, at, super, factor int) {
		for h := range 2 {
			a.f("%s %d(SI), Y3", load, at+8*h)
			a.f("VCVTDQ2PS Y3, Y3")
			a.f("VMULPS Y%d, Y3, Y3", super+h)
			put(factor, h)
		}
	}
	step := 0
	switch q.scales {
	case "h", "hm":
		for factor := range q.kind.factors() {
			for h := range 2 {
				a.f("VCVTPH2PS %d(SI), Y3", 32*factor+16*h)
				put(factor, h)
			}
		}
	case "e8":
		for h := range 2 {
			a.f("VPMOVZXBD %d(SI), Y3", 8*h)
			a.f("VPSLLD $23, Y3, Y3")
			put(0, h)
		}
	case "k4":
		times("VPMOVZXBD", 0, 6, 0)
		times("VPMOVZXBD", 16, 8, 1)
		step = 32
	case "k6", "k3", "b2":
		times("VPMOVSXBD", 0, 6, 0)
		times("VPMOVSXBD", 16, 6, 1)
		step = 32
	case "kx", "b1":
		times("VPMOVSXBD", 0, 6, 0)
		step = 16
	case "k2":
		a.constant256(15, 4)
		for sub := range 2 {
			for h := range 2 {
				a.f("VPMOVZXBD %d(SI), Y5", 16*sub+8*h)
				a.f("VPAND Y4, Y5, Y3")
				a.f("VCVTDQ2PS Y3, Y3")
				a.f("VMULPS Y%d, Y3, Y3", 6+h)
				put(sub, h)
				a.f("VPSRLD $4, Y5, Y3")
				a.f("VCVTDQ2PS Y3, Y3")
				a.f("VMULPS Y%d, Y3, Y3", 8+h)
				put(2+sub, h)
			}
		}
		step = 32
	}
	if step > 0 {
		a.f("ADDQ $%d, SI", step)
	}
}

// unpackWide writes unpack<type>Wide, which always subtracts the offset from the codes.
func (a *asm) unpackWide(q *qtype) {
	a.fn("unpack"+q.name+"Wide", 24, fmt.Sprintf("func unpack%sWide(dst, panel *byte, blocks int)", q.name))
	a.f("MOVQ dst+0(FP), BX")
	a.f("MOVQ panel+8(FP), DI")
	a.f("MOVQ blocks+16(FP), CX")
	a.setupWide(q)
	a.label("loop")
	a.f("MOVQ DI, SI")
	a.f("ADDQ $%d, DI", q.scaleBytes())
	if q.super() {
		a.superWide(q)
		a.f("MOVQ $8, DX")
		a.label("sub")
	}
	a.scalesWide(q, "BX", wideScale)
	for h := range 2 {
		for j := range 8 {
			a.codesWide(q, j, h)
			for pair := range 2 {
				a.f("VPSHUFB Y%d, Y3, Y4", 13-pair)
				if q.offset() != 0 {
					a.f("VPSUBW Y11, Y4, Y4")
				}
				a.f("VMOVDQU Y4, %d(BX)", 64*(2*j+pair)+32*h)
			}
		}
	}
	a.f("ADDQ $%d, DI", q.codeBytes())
	a.f("ADDQ $%d, BX", q.kind.wideStride())
	if q.super() {
		a.f("DECQ DX")
		a.f("JNZ sub")
		a.f("SUBQ $8, CX")
	} else {
		a.f("DECQ CX")
	}
	a.f("JNZ loop")
	a.end()
}

// maxCode returns the largest unsigned code of a type. For 255, codes are multiplied as signed numbers.
func (q *qtype) maxCode() int {
	switch {
	case q.codes == "lut" && q.word == actLess16:
		return 28
	case q.kind == twoScales64:
		return 43 + 64
	}
	return map[string]int{"4": 15, "lut": 255, "5": 31, "6": 63, "8": 255, "2": 3, "3": 56}[q.codes]
}

// gemvWide writes gemv<type>Wide: packed panels times one row of activations. VPMADDUBSW multiplies unsigned by signed
// bytes and adds two products in 16 bits. Several of these sums are added in 16 bits, as many as cannot overflow
// given the largest code, before VPMADDWD widens them. Codes above 127 could overflow at once: they are made signed,
// and VPABSB and VPSIGNB move the sign to the activation.
func (a *asm) gemvWide(q *qtype) {
	const scales = 256 // bytes on the stack for scales and minima
	a.frame = scales
	a.fn("gemv"+q.name+"Wide", 40,
		fmt.Sprintf("func gemv%sWide(y *float32, panels, x *byte, blocks, count int)", q.name))
	a.frame = 0
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ panels+8(FP), DI")
	a.f("MOVQ x+16(FP), R12")
	a.f("MOVQ count+32(FP), R13")
	a.f("LEAQ scales-%d(SP), R11", scales)
	a.setupWide(q)
	signed := q.maxCode() > 127
	a.constant256(0x00010001, 12)
	if signed {
		a.constant256(0x80808080, 14)
	}
	a.label("panels")
	a.f("MOVQ R12, BX")
	a.f("MOVQ blocks+24(FP), CX")
	a.f("VXORPS Y0, Y0, Y0")
	a.f("VXORPS Y1, Y1, Y1")
	a.label("loop")
	a.f("MOVQ DI, SI")
	a.f("ADDQ $%d, DI", q.scaleBytes())
	if q.super() {
		a.superWide(q)
		a.f("MOVQ $8, DX")
		a.label("sub")
	}
	a.scalesWide(q, "R11", 0)
	for h := range 2 {
		a.dotWide(q, h, signed)
	}
	a.f("ADDQ $%d, DI", q.codeBytes())
	a.f("ADDQ $%d, BX", wideActBytes)
	if q.super() {
		a.f("DECQ DX")
		a.f("JNZ sub")
		a.f("SUBQ $8, CX")
	} else {
		a.f("DECQ CX")
	}
	a.f("JNZ loop")
	a.f("VMOVUPS Y0, (R8)")
	a.f("VMOVUPS Y1, 32(R8)")
	a.f("ADDQ $64, R8")
	a.f("DECQ R13")
	a.f("JNZ panels")
	a.end()
}

// dotWide adds the product of a block of eight rows to Y0 (h is 0) or Y1 (h is 1). The scales and minima are at R11.
func (a *asm) dotWide(q *qtype, h int, signed bool) {
	word := func(off, y int) { a.f("VPBROADCASTD %d(BX), Y%d", wideHeader+off, y) }
	parts := 1 // integer sums of a block
	if q.kind == twoScales || q.kind == twoScalesMin || q.kind == twoScales64 {
		parts = 2
	}
	for part := range parts {
		switch {
		case q.kind == twoScales:
			word(actLow+4*part, 11)
		case q.kind == twoScales64:
			word(actLow+4*part, 11)
			a.f("VPADDD Y11, Y11, Y11")
		case q.kind == oneScale && !signed:
			word(q.word, 11)
		default:
			a.f("VPXOR Y11, Y11, Y11")
		}
		group := 0 // VPMADDUBSW results that were added to Y13
		for j := part * 8 / parts; j < (part+1)*8/parts; j++ {
			a.codesWide(q, j, h)
			if signed {
				a.f("VPXOR Y14, Y3, Y3")
			}
			a.f("VPBROADCASTD %d(BX), Y4", wideBytes+4*j)
			last := j+1 == (part+1)*8/parts
			switch {
			case signed:
				a.f("VPABSB Y3, Y13")
				a.f("VPSIGNB Y3, Y4, Y4")
				a.f("VPMADDUBSW Y4, Y13, Y13")
				group = 1
			case group == 0:
				a.f("VPMADDUBSW Y4, Y3, Y13")
				group = 1
			default:
				a.f("VPMADDUBSW Y4, Y3, Y4")
				a.f("VPADDW Y4, Y13, Y13")
				group++
			}
			if signed || last || (group+1)*q.maxCode()*127*2 > 32767 {
				a.f("VPMADDWD Y12, Y13, Y13")
				a.f("VPADDD Y13, Y11, Y11")
				group = 0
			}
		}
		a.f("VCVTDQ2PS Y11, Y11")
		a.f("VBROADCASTSS %d(BX), Y4", wideHeader+actScale)
		a.f("VMULPS %d(R11), Y4, Y3", 64*part+32*h)
		a.f("VFMADD231PS Y11, Y3, Y%d", h)
		switch q.kind {
		case oneScaleMin:
			a.f("VBROADCASTSS %d(BX), Y4", wideHeader+actSum)
			a.f("VFMADD231PS %d(R11), Y4, Y%d", 64+32*h, h)
		case twoScalesMin:
			word(actLow+4*part, 3)
			a.f("VCVTDQ2PS Y3, Y3")
			a.f("VMULPS Y4, Y3, Y3")
			a.f("VFMADD231PS %d(R11), Y3, Y%d", 64*(2+part)+32*h, h)
		}
	}
}

// unpackedRowsWide writes unpackedRows<kind>Wide: an unpacked panel times several rows. Sums are kept in y between
// blocks, because there are too few registers for them.
func (a *asm) unpackedRowsWide(k kind) {
	a.fn("unpackedRows"+k.String()+"Wide", 64,
		fmt.Sprintf("func unpackedRows%sWide(y *float32, ldy int, w, x *byte, blocks, rows, stride, word int)", k))
	a.f("MOVQ w+16(FP), DI")
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ blocks+32(FP), CX")
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ rows+40(FP), R9")
	a.f("MOVQ stride+48(FP), R10")
	a.f("IMUL3Q $%d, R9, DX", wideActBytes)
	a.f("SUBQ DX, R10") // the distance from the last row of a block to the first row of the next block
	a.f("MOVQ ldy+8(FP), R11")
	a.f("VPXOR Y0, Y0, Y0")
	a.label("clear")
	a.f("VMOVUPS Y0, (R8)")
	a.f("VMOVUPS Y0, 32(R8)")
	a.f("ADDQ R11, R8")
	a.f("DECQ R9")
	a.f("JNZ clear")
	a.label("loop")
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ rows+40(FP), R9")
	a.label("rows")
	a.f("VMOVUPS (R8), Y0")
	a.f("VMOVUPS 32(R8), Y1")
	a.f("VBROADCASTSS %d(BX), Y15", wideHeader+actScale)
	products := func(lo, hi int) { // integer sums of pairs lo..hi-1, to Y2 and Y3
		for p := lo; p < hi; p++ {
			a.f("VPBROADCASTD %d(BX), Y4", 4*p)
			for h := range 2 {
				into := 5 + h
				if p == lo {
					into = 2 + h
				}
				a.f("VPMADDWD %d(DI), Y4, Y%d", 64*p+32*h, into)
				if p > lo {
					a.f("VPADDD Y%d, Y%d, Y%d", into, 2+h, 2+h)
				}
			}
		}
	}
	scaled := func(factor int) {
		for h := range 2 {
			a.f("VCVTDQ2PS Y%d, Y%d", 2+h, 2+h)
			a.f("VMULPS %d(DI), Y15, Y4", wideScale+64*factor+32*h)
			a.f("VFMADD231PS Y%d, Y4, Y%d", 2+h, h)
		}
	}
	switch k {
	case oneScale:
		products(0, 16)
		scaled(0)
	case twoScales:
		for h := range 2 {
			products(8*h, 8*h+8)
			scaled(h)
		}
	}
	a.f("VMOVUPS Y0, (R8)")
	a.f("VMOVUPS Y1, 32(R8)")
	a.f("ADDQ R11, R8")
	a.f("ADDQ $%d, BX", wideActBytes)
	a.f("DECQ R9")
	a.f("JNZ rows")
	a.f("ADDQ $%d, DI", k.wideStride())
	a.f("ADDQ R10, BX")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// quantizeWide writes quantizeRowWide, which is quantizeRow for this family's activation blocks.
func (a *asm) quantizeWide() {
	a.fn("quantizeRowWide", 32, "func quantizeRowWide(dst *byte, stride int, x *float32, blocks int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ stride+8(FP), DX")
	a.f("MOVQ x+16(FP), SI")
	a.f("MOVQ blocks+24(FP), CX")
	a.constant256(0x7fffffff, 15)
	a.constant256(0x42fe0000, 14) // 127
	a.constant256(0x0da24260, 13) // 1e-30
	a.label("loop")
	for i := range 4 {
		a.f("VMOVUPS %d(SI), Y%d", 32*i, i)
		a.f("VPAND Y15, Y%d, Y%d", i, 4+i)
	}
	a.f("VPMAXUD Y5, Y4, Y4")
	a.f("VPMAXUD Y7, Y6, Y6")
	a.f("VPMAXUD Y6, Y4, Y4")
	a.f("VEXTRACTI128 $1, Y4, X5")
	a.f("VPMAXUD X5, X4, X4")
	a.f("VPSHUFD $0x4E, X4, X5")
	a.f("VPMAXUD X5, X4, X4")
	a.f("VPSHUFD $0xB1, X4, X5")
	a.f("VPMAXUD X5, X4, X4")
	a.f("VCMPSS $5, X13, X4, X5") // max|x| >= 1e-30, or NaN, which stays NaN
	a.f("VDIVSS X14, X4, X6")
	a.f("VANDPS X5, X6, X6") // the scale
	a.f("VDIVSS X4, X14, X7")
	a.f("VANDPS X5, X7, X7")
	a.f("VBROADCASTSS X7, Y7")
	for i := range 4 {
		a.f("VMULPS Y7, Y%d, Y%d", i, i)
		a.f("VCVTPS2DQ Y%d, Y%d", i, i)
	}
	for i := range 2 {
		lo, hi := 2*i, 2*i+1
		a.f("VPADDD Y%d, Y%d, Y%d", hi, lo, 8+i)
		a.f("VPACKSSDW Y%d, Y%d, Y%d", hi, lo, lo)
		a.f("VPERMQ $0xD8, Y%d, Y%d", lo, lo)
		a.f("VMOVDQU Y%d, %d(DI)", lo, 32*i)
	}
	a.f("VPACKSSWB Y2, Y0, Y10")
	a.f("VPERMQ $0xD8, Y10, Y10")
	a.f("VMOVDQU Y10, %d(DI)", wideBytes)
	a.f("VPHADDD Y9, Y8, Y8")
	a.f("VPHADDD Y8, Y8, Y8")
	a.f("VEXTRACTI128 $1, Y8, X9")
	a.f("VPADDD X9, X8, X8")
	a.f("VMOVD X8, R8")
	a.f("VPEXTRD $1, X8, R9")
	a.header("X6", wideHeader)
	a.f("ADDQ $128, SI")
	a.f("ADDQ DX, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}
