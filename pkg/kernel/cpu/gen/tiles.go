package main

import "fmt"

// Quantised products by AMX tiles. A tile of activations has a row of 32 (or 16) bytes
// for each token, a tile of codes a row for each four inputs, which is how unpacked
// codes lie; a tile of sums has the products of one block. Integer sums are exact, so
// what follows them in vectors gives the bits of the other families.

// signedSuffix is of loops that unpack codes less their offset: tiles have no header word added.
const signedSuffix = "Signed"

// tileOp writes an instruction over tiles as bytes, which the assembler does not know.
// prefix has the VEX prefix and the inverted third operand.
func (a *asm) tileOp(prefix, op int, rest ...int) {
	s := fmt.Sprintf("BYTE $0xC4; BYTE $0xE2; BYTE $0x%02X; BYTE $0x%02X", prefix, op)
	for _, b := range rest {
		s += fmt.Sprintf("; BYTE $0x%02X", b)
	}
	a.f("%s", s)
}

// Numbers of the registers that tiles are moved by.
const (
	regAX = 0
	regDX = 2 // bytes between a tile's rows
	regBX = 3
	regSI = 6
	regDI = 7
)

// address is a tile's operand [base + DX + offset].
func address(tile, base, offset int) []int {
	const sib = 4
	return []int{0x80 | tile<<3 | sib, regDX<<3 | base, offset & 255, offset >> 8 & 255, 0, 0}
}

func (a *asm) configure()                       { a.tileOp(0x78, 0x49, regAX) }
func (a *asm) release()                         { a.tileOp(0x78, 0x49, 0xC0) }
func (a *asm) zeroTile(tile int)                { a.tileOp(0x7B, 0x49, 0xC0|tile<<3) }
func (a *asm) loadTile(tile, base, offset int)  { a.tileOp(0x7B, 0x4B, address(tile, base, offset)...) }
func (a *asm) storeTile(tile, base, offset int) { a.tileOp(0x7A, 0x4B, address(tile, base, offset)...) }

// dotTiles adds signed bytes of x times signed bytes of w to sums.
func (a *asm) dotTiles(sums, x, w int) { a.tileOp(0x03|(15^w)<<3, 0x5E, 0xC0|sums<<3|x) }

// parts is how many separate sums a block has.
func (k kind) parts() int {
	if k == twoScales || k == twoScalesMin || k == twoScales64 {
		return 2
	}
	return 1
}

// tileSums is the size of a tile of sums.
const tileSums = 1024

// tiles writes tiles<kind>: an unpacked panel times groups of rows, at most 16 in each,
// whose blocks lie interleaved. The sums of one block are made while those of the one
// before it are scaled. scratch has two blocks' sums.
func (a *asm) amx(k kind) {
	a.frame = 64
	a.fn("amx"+k.String(), 64, fmt.Sprintf("func amx%s(y *float32, ldy int, w, x, scratch *byte, blocks, rows, groups int)", k))
	a.frame = 0
	a.tileShapes(k)
	a.f("MOVQ x+24(FP), BX")
	a.f("MOVQ rows+48(FP), R12")
	a.f("SHLQ $6, R12") // bytes of a block of a group
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

// The tiles of a part: sums, activations, codes.
const (
	sumsTile = 0
	rowsTile = 2
	codeTile = 4
)

// tileShapes configures tiles for as many rows as the function is given.
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

// issue multiplies the block at DI and BX and writes its sums to SI.
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

// scaleSums adds the sums at R9 of the block at R10 and R11 to Z0..Z15. Rows past the
// group's last are of no account.
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
