package main

import "fmt"

// Products of quantised weights with AMX tiles. A tile of activations has a row of 32 (or 16) bytes for each row of
// activations. A tile of codes has a row for each four inputs, which is the layout of unpacked codes. TDPBSSD makes
// a tile of the integer sums of one block for 16 rows of activations and 16 rows of weights. Integer sums are exact,
// and vectors then scale them in the order of the other families, so the bits are the same.

// signedSuffix ends the names of loops that subtract the offset from codes: the sums of tiles start from zero and not
// from a header word.
const signedSuffix = "Signed"

// tileOp writes a tile instruction as bytes, because the assembler does not know it. prefix is the last byte of the
// VEX prefix, with the inverted third operand.
func (a *asm) tileOp(prefix, op int, rest ...int) {
	s := fmt.Sprintf("BYTE $0xC4; BYTE $0xE2; BYTE $0x%02X; BYTE $0x%02X", prefix, op)
	for _, b := range rest {
		s += fmt.Sprintf("; BYTE $0x%02X", b)
	}
	a.f("%s", s)
}

// Numbers of the registers that address tiles.
const (
	regAX = 0
	regDX = 2 // bytes between a tile's rows
	regBX = 3
	regSI = 6
	regDI = 7
)

// address encodes the operand [base + DX + offset].
func address(tile, base, offset int) []int {
	const sib = 4
	return []int{0x80 | tile<<3 | sib, regDX<<3 | base, offset & 255, offset >> 8 & 255, 0, 0}
}

// configure loads the tile configuration at AX, and release resets all tiles.
func (a *asm) configure()                       { a.tileOp(0x78, 0x49, regAX) }
func (a *asm) release()                         { a.tileOp(0x78, 0x49, 0xC0) }
func (a *asm) zeroTile(tile int)                { a.tileOp(0x7B, 0x49, 0xC0|tile<<3) }
func (a *asm) loadTile(tile, base, offset int)  { a.tileOp(0x7B, 0x4B, address(tile, base, offset)...) }
func (a *asm) storeTile(tile, base, offset int) { a.tileOp(0x7A, 0x4B, address(tile, base, offset)...) }

// dotTiles is TDPBSSD: it adds the products of signed bytes of x and w to sums.
func (a *asm) dotTiles(sums, x, w int) { a.tileOp(0x03|(15^w)<<3, 0x5E, 0xC0|sums<<3|x) }

// parts returns the number of integer sums of a block.
func (k kind) parts() int {
	if k == twoScales || k == twoScalesMin || k == twoScales64 {
		return 2
	}
	return 1
}

// tileSums is the size of a tile of sums in bytes.
const tileSums = 1024

// amx writes amx<kind>: an unpacked panel times groups of at most 16 rows, whose blocks are interleaved. The loop is
// pipelined: tiles compute the sums of one block while vectors scale the sums of the block before. scratch has room
// for the sums of two blocks.
func (a *asm) amx(k kind) {
	a.frame = 64
	a.fn("amx"+k.String(), 64,
		fmt.Sprintf("func amx%s(y *float32, ldy int, w, x, scratch *byte, blocks, rows, groups int)", k))
	a.frame = 0
	a.tileShapes(k)
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ rows+48(FP), R12")
	a.f("SHLQ $6, R12") // bytes of a block for all rows of a group
	a.f("MOVQ y+0(FP), R8")
	a.f("MOVQ groups+56(FP), R13")
	a.f("MOVQ $64, DX")
	a.label("group")
	a.f("MOVQ w+16(FP), DI")
	a.f("MOVQ scratch+32(FP), SI")
	a.f("LEAQ %d(SI), R9", k.parts()*tileSums)
	a.f("MOVQ blocks+40(FP), CX")
	for i := range tileRows {
		a.f("VPXORD Z%d, Z%d, Z%d", i, i, i)
	}
	a.issue(k)
	a.label("loop")
	a.f("MOVQ DI, R10")
	a.f("MOVQ BX, R11")
	a.f("ADDQ $%d, DI", k.stride())
	a.f("ADDQ R12, BX")
	a.f("XCHGQ SI, R9")
	a.f("DECQ CX")
	a.f("JZ last")
	a.issue(k)
	a.scaleSums(k)
	a.f("JMP loop")
	a.label("last")
	a.scaleSums(k)
	a.f("MOVQ ldy+8(FP), SI")
	a.f("MOVQ rows+48(FP), R9")
	for i := range tileRows {
		if i > 0 {
			a.f("CMPQ R9, $%d", i)
			a.f("JE stored")
		}
		a.f("VMOVUPS Z%d, (R8)", i)
		a.f("ADDQ SI, R8")
	}
	a.label("stored")
	a.f("DECQ R13")
	a.f("JNZ group")
	a.release()
	a.end()
}

// Numbers of the tiles of the first part; those of the second are one higher.
const (
	sumsTile = 0
	rowsTile = 2
	codeTile = 4
)

// tileShapes configures the tiles for the rows argument of the function.
func (a *asm) tileShapes(k kind) {
	inputs := 32 / k.parts()
	a.f("LEAQ shapes-64(SP), AX")
	a.f("VPXORD Z0, Z0, Z0")
	a.f("VMOVDQU32 Z0, (AX)")
	a.f("MOVB $1, (AX)")
	a.f("MOVQ rows+48(FP), CX")
	for part := range k.parts() {
		a.f("MOVB $64, %d(AX)", 16+2*(sumsTile+part))
		a.f("MOVB CX, %d(AX)", 48+sumsTile+part)
		a.f("MOVB $%d, %d(AX)", inputs, 16+2*(rowsTile+part))
		a.f("MOVB CX, %d(AX)", 48+rowsTile+part)
		a.f("MOVB $64, %d(AX)", 16+2*(codeTile+part))
		a.f("MOVB $%d, %d(AX)", inputs/4, 48+codeTile+part)
	}
	a.configure()
}

// issue multiplies the codes at DI by the activations at BX and stores the sums at SI.
func (a *asm) issue(k kind) {
	inputs := 32 / k.parts()
	for part := range k.parts() {
		a.zeroTile(sumsTile + part)
		a.loadTile(rowsTile+part, regBX, inputs*part)
		a.loadTile(codeTile+part, regDI, 16*inputs*part)
		a.dotTiles(sumsTile+part, rowsTile+part, codeTile+part)
	}
	for part := range k.parts() {
		a.storeTile(sumsTile+part, regSI, tileSums*part)
	}
}

// scaleSums scales the integer sums at R9 and adds them to Z0..Z15. The codes and scales of the block are at R10, its
// activations at R11. The results of rows past the end of a group are not used.
func (a *asm) scaleSums(k kind) {
	for j := range k.factors() {
		a.f("VMOVUPS %d(R10), Z%d", unpackedScale+64*j, 24+j)
	}
	for i := range tileRows {
		at, t0, t1 := i*actBytes, 16+i%4*2, 17+i%4*2
		scaled := func(part int) {
			a.f("VCVTDQ2PS %d(R9), Z%d", tileSums*part+64*i, t0)
			a.f("VMULPS.BCST %d(R11), Z%d, Z%d", at+actScale, 24+part, t1)
			a.f("VFMADD231PS Z%d, Z%d, Z%d", t0, t1, i)
		}
		switch k {
		case oneScaleMin:
			scaled(0)
			a.f("VFMADD231PS.BCST %d(R11), Z25, Z%d", at+actSum, i)
		case twoScalesMin:
			for h := range 2 {
				scaled(h)
				a.f("VPBROADCASTD %d(R11), Z%d", at+actLow+4*h, t0)
				a.f("VCVTDQ2PS Z%d, Z%d", t0, t0)
				a.f("VMULPS.BCST %d(R11), Z%d, Z%d", at+actScale, t0, t0)
				a.f("VFMADD231PS Z%d, Z%d, Z%d", t0, 26+h, i)
			}
		default:
			for part := range k.parts() {
				scaled(part)
			}
		}
	}
}
