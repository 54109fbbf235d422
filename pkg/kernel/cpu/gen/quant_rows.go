package main

import "fmt"

// Products of a panel and several rows of activations. For a small number of rows, the packed codes are unpacked in
// registers. For more rows, the panel is unpacked to memory first.

// rowsMax is the most rows of packedRows and unpackedRows, whose sums are in Z8 and on.
const rowsMax = 8

// packedRows writes packedRows<type>: a packed panel times 1 to 8 rows of activations, whose blocks are stride bytes
// apart.
func (a *asm) packedRows(q *qtype) {
	a.fn("packedRows"+q.name, 56,
		fmt.Sprintf("func packedRows%s(y *float32, ldy int, panel, x *byte, blocks, rows, stride int)", q.name))
	a.f("MOVQ panel+16(FP), DI")
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ blocks+32(FP), CX")
	a.f("MOVQ rows+40(FP), R9")
	a.f("MOVQ stride+48(FP), R10")
	a.setup(q)
	a.clearRows()
	a.blocks(q, "loop", func() { a.rows(q.kind, "", q.word) })
	a.storeRows()
}

// clearRows clears the sums, and moves BX so that the offsets of all rows fit a signed byte.
func (a *asm) clearRows() {
	a.f("ADDQ $%d, BX", rowsMiddle)
	for i := range rowsMax {
		a.f("VPXORD Z%d, Z%d, Z%d", 8+i, 8+i, 8+i)
	}
}

// rowsMiddle is what BX is moved by.
const rowsMiddle = rowsMax / 2 * actBytes

// rows adds the products of a block to the sums of R9 rows and advances BX to the next block. register and word
// address the header word that integer sums start from.
func (a *asm) rows(k kind, register string, word int) {
	for i := range rowsMax {
		if i > 0 {
			a.f("CMPQ R9, $%d", i)
			a.f("JE next")
		}
		off := i*actBytes - rowsMiddle
		a.blockDot(k, off, fmt.Sprintf("%d(BX)%s", off+word, register), 8+i, i%2*2, 1+i%2*2)
	}
	a.label("next")
	a.f("ADDQ R10, BX")
}

// storeRows stores the sums of R9 rows, which are ldy bytes apart.
func (a *asm) storeRows() {
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ ldy+8(FP), SI")
	for i := range rowsMax {
		if i > 0 {
			a.f("CMPQ R9, $%d", i)
			a.f("JE done")
			a.f("ADDQ SI, R8")
		}
		a.f("VMOVUPS Z%d, (R8)", 8+i)
	}
	a.label("done")
	a.end()
}

// loadUnpacked loads the unpacked block at DI to Z16 and on, and advances DI.
func (a *asm) loadUnpacked(k kind) {
	for j := range 8 {
		a.f("VMOVDQU32 %d(DI), Z%d", 64*j, 16+j)
	}
	for j := range k.factors() {
		a.f("VMOVUPS %d(DI), Z%d", unpackedScale+64*j, 24+j)
	}
	a.f("ADDQ $%d, DI", k.stride())
}

// unpackedRows writes unpackedRows<kind>, which is packedRows for an unpacked panel.
func (a *asm) unpackedRows(k kind) {
	a.fn("unpackedRows"+k.String(), 64,
		fmt.Sprintf("func unpackedRows%s(y *float32, ldy int, w, x *byte, blocks, rows, stride, word int)", k))
	a.f("MOVQ w+16(FP), DI")
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ blocks+32(FP), CX")
	a.f("MOVQ rows+40(FP), R9")
	a.f("MOVQ stride+48(FP), R10")
	a.f("MOVQ word+56(FP), DX")
	a.clearRows()
	a.label("loop")
	a.loadUnpacked(k)
	a.rows(k, "(DX*1)", 0)
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.storeRows()
}

// tile writes tile<kind>: an unpacked panel times 16 rows of activations, whose blocks are interleaved. The 16 sums,
// the codes of a block and its scales fill the register file, so each block of codes is loaded once for 16 rows.
func (a *asm) tile(k kind) {
	a.fn("tile"+k.String(), 48, fmt.Sprintf("func tile%s(y *float32, ldy int, w, x *byte, blocks, word int)", k))
	a.f("MOVQ w+16(FP), DI")
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ blocks+32(FP), CX")
	a.f("MOVQ word+40(FP), DX")
	const middle = tileRows / 2 * actBytes // so that offsets are small
	a.f("ADDQ $%d, BX", middle)
	for i := range tileRows {
		a.f("VPXORD Z%d, Z%d, Z%d", i, i, i)
	}
	a.label("loop")
	a.loadUnpacked(k)
	for i := range tileRows {
		off := i*actBytes - middle
		a.blockDot(k, off, fmt.Sprintf("%d(BX)(DX*1)", off), i, 28+i%2*2, 29+i%2*2)
	}
	a.f("ADDQ $%d, BX", tileRows*actBytes)
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ ldy+8(FP), SI")
	for i := range tileRows {
		a.f("VMOVUPS Z%d, (DI)", i)
		if i < tileRows-1 {
			a.f("ADDQ SI, DI")
		}
	}
	a.end()
}
