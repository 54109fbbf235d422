package main

import "fmt"

// Products of a packed panel and a small number of rows of activations with AVX2. A code is unpacked once for up to
// four rows, as a byte, and VPMADDUBSW multiplies it as in gemvWide. Two halves of a panel and four rows have eight
// sums of 16 bits, which fill half of the register file. The rest goes to memory: scales, sums of 32 bits before they
// are complete, and the sums of the outputs, which are kept in y between blocks.

// wideGroup is the number of rows that share unpacked codes.
const wideGroup = 4

// The frame of packedRows<type>Wide, and its registers. The sums of 16 bits are in Y4 and on, two for each row.
const (
	frameScales = 0   // scales and minima of a block
	frameSuper  = 256 // the float16 scales of a super-block, as float32
	frameSums   = 384 // sums of 32 bits that are not complete
	frameBytes  = 640
)

// ones writes words of 1, which VPMADDWD multiplies by.
func (a *asm) ones() {
	fmt.Fprintln(a)
	for i := range 4 {
		fmt.Fprintf(a, "DATA wordOnes<>+%d(SB)/8, $0x0001000100010001\n", 8*i)
	}
	fmt.Fprintln(a, "GLOBL wordOnes<>(SB), RODATA|NOPTR, $32")
}

// sharesCodes reports whether packedRowsWide has a loop for a type: the sums of at least two products of its codes fit
// 16 bits.
func (q *qtype) sharesCodes() bool { return 2*q.maxCode()*127*2 <= 32767 }

// packedRowsWide writes packedRows<type>Wide: a packed panel times 1 to 8 rows of activations, whose blocks are stride
// bytes apart.
func (a *asm) packedRowsWide(q *qtype) {
	a.frame = frameBytes
	a.fn("packedRows"+q.name+"Wide", 56,
		fmt.Sprintf("func packedRows%sWide(y *float32, ldy int, panel, x *byte, blocks, rows, stride int)", q.name))
	a.frame = 0
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ ldy+8(FP), R10")
	a.f("LEAQ (R10)(R10*2), R9")
	a.f("MOVQ x+24(FP), R13")
	a.f("MOVQ rows+40(FP), R12")
	a.f("LEAQ frame-%d(SP), R11", frameBytes)
	masks := map[string][2]uint32{
		"4": {0x0f0f0f0f}, "lut": {0x0f0f0f0f}, "5": {0x0f0f0f0f, 0x10101010}, "6": {0x0f0f0f0f, 0x30303030},
		"2": {0x03030303}, "3": {0x18181818, 0x20202020},
	}[q.codes]
	for i, m := range masks {
		if m != 0 {
			a.constant256(m, 15-i)
		}
	}
	if q.table != "" {
		a.f("VBROADCASTI128 %s<>(SB), Y14", q.table)
	}
	a.label("group")
	a.f("MOVQ R13, BX")
	a.f("MOVQ panel+16(FP), DI")
	a.f("MOVQ blocks+32(FP), CX")
	a.f("VXORPS Y0, Y0, Y0")
	a.f("CMPQ R12, $5") // 3 and 2 rather than 4 and 1
	a.f("JEQ rows3")
	for n := wideGroup; n > 1; n-- {
		a.f("CMPQ R12, $%d", n)
		a.f("JGE rows%d", n)
	}
	for n := 1; n <= wideGroup; n++ {
		a.groupWide(q, n)
	}
	a.label("done")
	a.end()
}

// rowAt returns the address of the sums of row i of a group.
func rowAt(i, h int) string {
	return fmt.Sprintf("%d(R8)%s", 32*h, [wideGroup]string{"", "(R10*1)", "(R10*2)", "(R9*1)"}[i])
}

// groupWide writes the loop over the blocks of a panel for n rows.
func (a *asm) groupWide(q *qtype, n int) {
	a.label(fmt.Sprintf("rows%d", n))
	for i := range n {
		for h := range 2 {
			a.f("VMOVUPS Y0, %s", rowAt(i, h))
		}
	}
	a.label(fmt.Sprintf("loop%d", n))
	a.f("MOVQ DI, SI")
	a.f("ADDQ $%d, DI", q.scaleBytes())
	supers := 0
	if q.super() {
		a.superWide(q)
		if supers = 2; q.scales == "k4" || q.scales == "k2" {
			supers = 4
		}
		for i := range supers {
			a.f("VMOVUPS Y%d, %d(R11)", 6+i, frameSuper+32*i)
		}
		a.f("MOVQ $8, DX")
		a.label(fmt.Sprintf("sub%d", n))
		for i := range supers {
			a.f("VMOVUPS %d(R11), Y%d", frameSuper+32*i, 6+i)
		}
	}
	a.scalesWide(q, "R11", frameScales)
	parts := 1
	if q.kind == twoScales || q.kind == twoScalesMin {
		parts = 2
	}
	for part := range parts {
		a.partWide(q, n, part, parts)
	}
	a.f("ADDQ $%d, DI", q.codeBytes())
	a.f("ADDQ stride+48(FP), BX")
	if q.super() {
		a.f("DECQ DX")
		a.f("JNZ sub%d", n)
		a.f("SUBQ $8, CX")
	} else {
		a.f("DECQ CX")
	}
	a.f("JNZ loop%d", n)
	a.f("SUBQ $%d, R12", n)
	a.f("JZ done")
	a.f("ADDQ $%d, R13", n*wideActBytes)
	a.f("LEAQ (R8)(R10*%d), R8", max(1, n&^1))
	if n == 3 {
		a.f("ADDQ R10, R8")
	}
	a.f("JMP group")
}

// partWide adds the products of one of the parts of a block, which have scales of their own, to the sums of n rows.
func (a *asm) partWide(q *qtype, n, part, parts int) {
	lo, hi := part*8/parts, (part+1)*8/parts
	group, spilled := 0, false
	for j := lo; j < hi; j++ {
		for h := range 2 {
			a.bytesWide(q, j, h)
		}
		for i := range n {
			a.f("VPBROADCASTD %d(BX), Y0", i*wideActBytes+wideBytes+4*j)
			for h := range 2 {
				if sum := 4 + 2*i + h; group == 0 {
					a.f("VPMADDUBSW Y0, Y%d, Y%d", 2+h, sum)
				} else {
					a.f("VPMADDUBSW Y0, Y%d, Y1", 2+h)
					a.f("VPADDW Y1, Y%d, Y%d", sum, sum)
				}
			}
		}
		if group++; j+1 == hi || (group+1)*q.maxCode()*127*2 <= 32767 {
			continue
		}
		for sum := range 2 * n { // the next product could overflow 16 bits
			a.f("VPMADDWD wordOnes<>(SB), Y%d, Y1", 4+sum)
			if spilled {
				a.f("VPADDD %d(R11), Y1, Y1", frameSums+32*sum)
			}
			a.f("VMOVDQU Y1, %d(R11)", frameSums+32*sum)
		}
		group, spilled = 0, true
	}
	for i := range n {
		a.scaleRowWide(q, i, part, spilled)
	}
}

// bytesWide loads the codes of inputs 4j..4j+3 of eight rows of the panel to Y2 (h is 0) or Y3 (h is 1). Y12 and Y13
// keep vectors that later groups of inputs share. Y0 and Y1 are scratch.
func (a *asm) bytesWide(q *qtype, j, h int) {
	to, kept := 2+h, 12+h
	shift := func(y, by int) int {
		switch {
		case by > 0:
			a.f("VPSLLD $%d, Y%d, Y1", by, y)
		case by < 0:
			a.f("VPSRLD $%d, Y%d, Y1", -by, y)
		default:
			return y
		}
		return 1
	}
	high := func(off, by int) { // the bits above, which have a plane of their own
		a.f("VMOVDQU %d(DI), Y0", off+32*h)
		a.f("VPAND Y14, Y%d, Y1", shift(0, by))
		a.f("VPOR Y1, Y%d, Y%d", to, to)
	}
	if q.codes == "2" || q.codes == "3" {
		if j%4 == 0 {
			a.f("VMOVDQU %d(DI), Y%d", 64*(j/4)+32*h, kept)
		}
		by := -2 * (j % 4)
		if q.codes == "3" {
			by += 3
		}
		a.f("VPAND Y15, Y%d, Y%d", shift(kept, by), to)
		if q.codes == "3" {
			high(128, 5-j)
		}
		return
	}
	if j%2 == 0 {
		a.f("VMOVDQU %d(DI), Y%d", 64*(j/2)+32*h, kept)
		a.f("VPAND Y15, Y%d, Y%d", kept, to)
	} else {
		a.f("VPSRLD $4, Y%d, Y%d", kept, to)
		a.f("VPAND Y15, Y%d, Y%d", to, to)
	}
	switch q.codes {
	case "lut":
		a.f("VPSHUFB Y%d, Y14, Y%d", to, to)
	case "5":
		high(256, 4-j)
	case "6":
		high(256+64*(j/4), 4-2*(j%4))
	}
}

// scaleRowWide scales the integer sums of row i of a group and adds them to its outputs, with the same operations as
// gemvWide.
func (a *asm) scaleRowWide(q *qtype, i, part int, spilled bool) {
	header := func(load string, off, y int) {
		a.f("%s %d(BX), Y%d", load, i*wideActBytes+wideHeader+off, y)
	}
	word := -1 // of the header, that the integer sum starts from
	switch q.kind {
	case oneScale:
		word = q.word
	case twoScales:
		word = actLow + 4*part
	}
	if word >= 0 {
		header("VPBROADCASTD", word, 0)
	}
	for h := range 2 {
		sum := 4 + 2*i + h
		a.f("VPMADDWD wordOnes<>(SB), Y%d, Y%d", sum, sum)
		if spilled {
			a.f("VPADDD %d(R11), Y%d, Y%d", frameSums+32*(2*i+h), sum, sum)
		}
		if word >= 0 {
			a.f("VPADDD Y0, Y%d, Y%d", sum, sum)
		}
		a.f("VCVTDQ2PS Y%d, Y%d", sum, sum)
	}
	header("VBROADCASTSS", actScale, 0)
	switch q.kind {
	case oneScaleMin:
		header("VBROADCASTSS", actSum, 3)
	case twoScalesMin:
		header("VPBROADCASTD", actLow+4*part, 3)
		a.f("VCVTDQ2PS Y3, Y3")
		a.f("VMULPS Y0, Y3, Y3")
	}
	for h := range 2 {
		a.f("VMULPS %d(R11), Y0, Y1", frameScales+64*part+32*h)
		a.f("VMOVUPS %s, Y2", rowAt(i, h))
		a.f("VFMADD231PS Y%d, Y1, Y2", 4+2*i+h)
		switch q.kind {
		case oneScaleMin:
			a.f("VFMADD231PS %d(R11), Y3, Y2", frameScales+64+32*h)
		case twoScalesMin:
			a.f("VFMADD231PS %d(R11), Y3, Y2", frameScales+64*(2+part)+32*h)
		}
		a.f("VMOVUPS Y2, %s", rowAt(i, h))
	}
}
