package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
)

// Products of float32 matrices. A tile of outputs stays in registers, and each lane holds a column. Every output is
// one chain of fused multiply-adds over the reduction, in index order. A step loads one row of the right operand's
// panel, which is as wide as the tile, and broadcasts one element of each row of the left operand. The left operand
// is read through two strides, so that it can be stored by rows or by columns.
//
// Outputs are written at the end of a tile, when their cache lines would otherwise be missing. The first steps of a
// tile therefore prefetch the outputs of the next tile for writing, one row at each step.

// gemmTiles lists the tiles: the most rows, and the vectors in a row. Tiles of pairs multiply two bfloat16 in each
// lane at each step. Tiles that flush treat subnormal numbers as zero, as VDPBF16PS does.
var gemmTiles = []gemmTile{
	{bits: 512, rows: 12, vectors: 2}, {bits: 512, rows: 12, vectors: 1}, {bits: 256, rows: 6, vectors: 2},
	{bits: 512, rows: 12, vectors: 2, pairs: true}, {bits: 512, rows: 12, vectors: 1, pairs: true},
	{bits: 512, rows: 12, vectors: 2, flush: true}, {bits: 512, rows: 12, vectors: 1, flush: true}, {bits: 256, rows: 6, vectors: 2, flush: true},
}

// gemmTile is a tile of one family.
type gemmTile struct {
	bits, rows, vectors int
	pairs, flush        bool
}

// name returns the beginning of the names of the loops.
func (t gemmTile) name() string {
	switch {
	case t.pairs:
		return "pairGemm"
	case t.flush:
		return "flushGemm"
	}
	return "gemm"
}

// columns returns the number of columns of a tile, and the family's suffix.
func (t gemmTile) columns() string { return fmt.Sprintf("%d%s", t.vectors*t.bits/32, suffix(t.bits)) }

// float32Products writes the tiles and the loops that pack their operands.
func float32Products(a *asm) {
	for _, t := range gemmTiles {
		for rows := 1; rows <= t.rows; rows++ {
			a.gemmTile(t, rows)
		}
	}
	a.panelOfRows("panelOfRows", 0, func(int) {})
	a.panelOfRowsWide()
	a.panelOfColumns()
	a.panelOfColumnsWide()
	a.prefetchRows()
	pairPanels(a)
}

// gemmTile writes gemm<rows>x<columns>: c = init + a·b for several panels one after another. The next panel
// of b is step bytes further, its init istep bytes, and its columns of c are the next ones. Element (i, k) of a is
// at byte rs·i + cs·k, and rows of b are ldb bytes apart. k is at least 1.
func (a *asm) gemmTile(t gemmTile, rows int) {
	vectors, bits := t.vectors, t.bits
	name, reg, size := fmt.Sprintf("%s%dx%s", t.name(), rows, t.columns()), "Z", 64
	if bits == 256 {
		reg, size = "Y", 32
	}
	a.frame = 0
	if t.flush {
		a.frame = 8
	}
	a.fn(name, 104, "func "+name+"(c *float32, ldc int, init *float32, ldi, istep int, a *float32, rs, cs int, b *float32, ldb, step, k, panels int)")
	bases := []string{"R8", "R9", "R10", "R11"}[:(rows+2)/3]
	acc := func(i, v int) int { return i*vectors + v }
	a.frame = 0
	if t.flush { // set flush-to-zero and denormals-are-zero, as VDPBF16PS behaves
		a.f("STMXCSR old-8(SP)")
		a.f("MOVL $0x9FC0, new-4(SP)")
		a.f("LDMXCSR new-4(SP)")
	}
	a.f("MOVQ c+0(FP), DI")
	a.f("MOVQ init+16(FP), SI")
	a.f("MOVQ b+64(FP), R15")
	a.f("MOVQ rs+48(FP), DX")
	a.f("MOVQ cs+56(FP), R12")
	a.f("MOVQ ldb+72(FP), R13")
	a.label("panel")
	a.f("MOVQ SI, BX")
	a.f("MOVQ ldi+24(FP), AX")
	for i := range rows {
		for v := range vectors {
			a.f("VMOVUPS %d(BX), %s%d", size*v, reg, acc(i, v))
		}
		if i < rows-1 {
			a.f("ADDQ AX, BX")
		}
	}
	a.f("MOVQ a+40(FP), R8")
	a.f("MOVQ R15, BX")
	a.f("MOVQ k+88(FP), CX")
	a.f("LEAQ (DX)(DX*2), AX")
	for i := 1; i < len(bases); i++ {
		a.f("LEAQ (%s)(AX*1), %s", bases[i-1], bases[i])
	}
	panel, free := rows*vectors, rows*vectors+vectors
	most := 32
	if bits == 256 {
		most = 16
	}
	step := func(row func(i int)) {
		for v := range vectors {
			a.f("VMOVUPS %d(BX), %s%d", size*v, reg, panel+v)
		}
		for i := range rows {
			x := free + i%(most-free)
			a.f("VBROADCASTSS (%s)%s, %s%d", bases[i/3], []string{"", "(DX*1)", "(DX*2)"}[i%3], reg, x)
			for v := range vectors {
				if t.pairs {
					a.dotPairsOf(x, panel+v, acc(i, v))
				} else {
					a.f("VFMADD231PS %s%d, %s%d, %s%d", reg, panel+v, reg, x, reg, acc(i, v))
				}
			}
			row(i)
		}
	}
	advance := func() {
		a.f("ADDQ R13, BX")
		for _, r := range bases {
			a.f("ADDQ R12, %s", r)
		}
		a.f("DECQ CX")
	}
	a.f("DECQ CX")
	a.f("JZ last")
	a.f("CMPQ CX, $%d", rows)
	a.f("JLE loop")
	a.f("MOVQ $%d, R14", rows)
	a.f("LEAQ %d(DI), AX", size*vectors)
	a.f("CMPQ panels+96(FP), $1")
	a.f("JNE prefetch")
	a.f("MOVQ ldc+8(FP), AX")
	a.f("IMUL3Q $%d, AX, AX", rows)
	a.f("ADDQ c+0(FP), AX")
	a.label("prefetch") // the outputs of the next panel, or of the next tile of rows, one row at each step
	step(func(int) {})
	for line := 0; line < size*vectors; line += 64 {
		a.f("BYTE $0x0f; BYTE $0x0d; BYTE $0x48; BYTE $%d // PREFETCHW %d(AX)", line, line)
	}
	a.f("ADDQ ldc+8(FP), AX")
	advance()
	a.f("DECQ R14")
	a.f("JNZ prefetch")
	a.label("loop")
	step(func(int) {})
	advance()
	a.f("JNZ loop")
	a.label("last")
	a.f("MOVQ DI, CX")
	a.f("MOVQ ldc+8(FP), AX")
	step(func(i int) {
		for v := range vectors {
			a.f("VMOVUPS %s%d, %d(CX)", reg, acc(i, v), size*v)
		}
		if i < rows-1 {
			a.f("ADDQ AX, CX")
		}
	})
	a.f("ADDQ $%d, DI", size*vectors)
	a.f("ADDQ istep+32(FP), SI")
	a.f("ADDQ step+80(FP), R15")
	a.f("DECQ panels+96(FP)")
	a.f("JNZ panel")
	if t.flush {
		a.f("LDMXCSR old-8(SP)")
	}
	a.end()
}

// dotPairsOf is VDPBF16PS zmm(acc), zmm(w), zmm(x) for any registers.
func (a *asm) dotPairsOf(x, w, acc int) {
	not := func(v, bit int) int { return v>>bit&1 ^ 1 }
	a.f("BYTE $0x62; BYTE $0x%02x; BYTE $0x%02x; BYTE $0x%02x; BYTE $0x52; BYTE $0x%02x // VDPBF16PS Z%d, Z%d, Z%d",
		not(acc, 3)<<7|not(x, 4)<<6|not(x, 3)<<5|not(acc, 4)<<4|2, (^w&15)<<3|1<<2|2, 2<<5|not(w, 4)<<3, 3<<6|acc&7<<3|x&7, x, w, acc)
}

// panelHead begins a loop that packs a panel: DI is the first row of the panel and DX the distance of its rows, SI
// and R8 are the same for the source, and CX is the count.
func (a *asm) panelHead(name, count string) {
	a.fn(name, 40, "func "+name+"(dst *float32, ldd int, src *float32, lds, "+count+" int)")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ ldd+8(FP), DX")
	a.f("MOVQ src+16(FP), SI")
	a.f("MOVQ lds+24(FP), R8")
	a.f("MOVQ %s+32(FP), CX", count)
}

// panelOfRows writes a loop that transposes 16 rows of the source into 16 columns of the panel. each is called for
// the register of each row before it is transposed. Column i is stored as row i^swap.
func (a *asm) panelOfRows(name string, swap int, each func(z int)) {
	a.panelHead(name, "sixteens")
	a.f("LEAQ (R8)(R8*2), R10")
	a.label("loop")
	a.f("MOVQ SI, AX")
	for i := 0; i < 16; i += 4 {
		for j := range 4 {
			at := "(AX)" + []string{"", "(R8*1)", "(R8*2)", "(R10*1)"}[j]
			a.f("VMOVUPS %s, Z%d", at, i+j)
			a.f("PREFETCHT0 128%s", at)
			each(i + j)
		}
		if i < 12 {
			a.f("LEAQ (AX)(R8*4), AX")
		}
	}
	a.transpose()
	for i := range 16 {
		a.f("VMOVUPS Z%d, (DI)", i^swap)
		a.f("ADDQ DX, DI")
	}
	a.f("ADDQ $64, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// panelOfRowsWide writes panelOfRowsWide, which transposes eight rows into columns.
func (a *asm) panelOfRowsWide() {
	a.panelHead("panelOfRowsWide", "eights")
	a.f("LEAQ (R8)(R8*2), R10")
	a.label("loop")
	a.f("LEAQ (SI)(R8*4), AX")
	for j := range 4 {
		at := []string{"", "(R8*1)", "(R8*2)", "(R10*1)"}[j]
		a.f("VMOVUPS (SI)%s, Y%d", at, j)
		a.f("VMOVUPS (AX)%s, Y%d", at, 4+j)
	}
	for i := 0; i < 8; i += 2 {
		a.f("VUNPCKLPS Y%d, Y%d, Y%d", i+1, i, 8+i)
		a.f("VUNPCKHPS Y%d, Y%d, Y%d", i+1, i, 9+i)
	}
	for i := 0; i < 8; i += 4 { // register i+c holds column c of both 128-bit lanes
		a.f("VUNPCKLPD Y%d, Y%d, Y%d", 10+i, 8+i, i)
		a.f("VUNPCKHPD Y%d, Y%d, Y%d", 10+i, 8+i, i+1)
		a.f("VUNPCKLPD Y%d, Y%d, Y%d", 11+i, 9+i, i+2)
		a.f("VUNPCKHPD Y%d, Y%d, Y%d", 11+i, 9+i, i+3)
	}
	for c := range 4 {
		a.f("VPERM2F128 $0x20, Y%d, Y%d, Y%d", 4+c, c, 8+c)
		a.f("VPERM2F128 $0x31, Y%d, Y%d, Y%d", 4+c, c, 12+c)
	}
	for i := range 8 {
		a.f("VMOVUPS Y%d, (DI)", 8+i)
		a.f("ADDQ DX, DI")
	}
	a.f("ADDQ $32, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// panelOfColumns writes panelOfColumns, which copies up to 16 columns of the source under a mask.
func (a *asm) panelOfColumns() {
	a.fn("panelOfColumns", 48, "func panelOfColumns(dst *float32, ldd int, src *float32, lds, rows, columns int)")
	a.f("MOVQ columns+40(FP), CX")
	a.mask()
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ ldd+8(FP), DX")
	a.f("MOVQ src+16(FP), SI")
	a.f("MOVQ lds+24(FP), R8")
	a.f("MOVQ rows+32(FP), CX")
	a.label("loop")
	a.f("VMOVUPS.Z (SI), K1, Z0")
	a.f("PREFETCHT0 96(SI)") // of the next columns
	a.f("VMOVUPS Z0, (DI)")
	a.f("ADDQ R8, SI")
	a.f("ADDQ DX, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// panelOfColumnsWide writes panelOfColumnsWide, which copies up to eight columns under a mask of dwords.
func (a *asm) panelOfColumnsWide() {
	a.fn("panelOfColumnsWide", 48, "func panelOfColumnsWide(dst *float32, ldd int, src *float32, lds, rows int, mask *[8]uint32)")
	a.f("MOVQ mask+40(FP), AX")
	a.f("VMOVUPS (AX), Y1")
	a.f("MOVQ dst+0(FP), DI")
	a.f("MOVQ ldd+8(FP), DX")
	a.f("MOVQ src+16(FP), SI")
	a.f("MOVQ lds+24(FP), R8")
	a.f("MOVQ rows+32(FP), CX")
	a.label("loop")
	a.f("VMASKMOVPS (SI), Y1, Y0")
	a.f("VMOVUPS Y0, (DI)")
	a.f("ADDQ R8, SI")
	a.f("ADDQ DX, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// float32Declarations returns the Go file with the declarations and the tables of tiles.
func (a *asm) float32Declarations() []byte {
	var b bytes.Buffer
	b.WriteString("// Code generated by gen. DO NOT EDIT.\n\npackage cpu\n")
	for _, d := range a.declarations {
		fmt.Fprintf(&b, "\n//go:noescape\n%s\n", d)
	}
	for _, t := range gemmTiles {
		name := t.name() + "Tiles" + t.columns()
		fmt.Fprintf(&b, "\n// %s returns the tiles by their number of rows.\nfunc %s() []gemmTile {\n\treturn []gemmTile{nil", name, name)
		for rows := 1; rows <= t.rows; rows++ {
			fmt.Fprintf(&b, ", %s%dx%s", t.name(), rows, t.columns())
		}
		b.WriteString("}\n}\n")
	}
	out, err := format.Source(b.Bytes())
	if err != nil {
		log.Fatal(err)
	}
	return out
}

// prefetchRows writes prefetchRows, which prefetches cache lines of rows that are ld bytes apart.
func (a *asm) prefetchRows() {
	a.fn("prefetchRows", 32, "func prefetchRows(p uintptr, ld, rows, lines int)")
	a.f("MOVQ p+0(FP), SI")
	a.f("MOVQ ld+8(FP), DX")
	a.f("MOVQ rows+16(FP), CX")
	a.f("MOVQ lines+24(FP), R8")
	a.label("lines")
	a.f("MOVQ SI, DI")
	a.f("MOVQ CX, R9")
	a.label("rows")
	a.f("PREFETCHT1 (DI)")
	a.f("ADDQ DX, DI")
	a.f("DECQ R9")
	a.f("JNZ rows")
	a.f("ADDQ $64, SI")
	a.f("DECQ R8")
	a.f("JNZ lines")
	a.f("RET")
}
