package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
)

// Attention over blocks of 16 positions. A block of keys is [D][16] and a block of values [16][D], both of float32
// or of float16. A score is one chain of fused multiply-adds over the components, where each lane holds a position.
// A weighted sum of values is one chain over the positions, where each lane holds a component. Neither order depends
// on the number of queries that share a pass.
//
// The queries of a pass share every load of a key or value: with n queries and v vectors of keys, n·v accumulators
// stay in registers, and each step loads v vectors and broadcasts n numbers for n·v multiply-adds.

// scoreTiles and valueTiles list how many queries a pass may have, the most first.
var (
	scoreTiles     = []int{12, 6, 4, 3, 2, 1}
	scoreTilesWide = []int{6, 3, 2, 1}
	valueTiles     = []int{12, 6, 4, 3, 2, 1}
	valueTilesWide = []int{3, 2, 1}
)

// float16ValueTiles lists the same for values of float16. Passes of 6 queries read four groups of components at
// once, which is faster than 12 queries that read two: contiguous reads matter more than fewer of them.
var float16ValueTiles = valueTiles[1:]

// valueGroups returns the number of groups of 16 components in a pass of n queries.
func valueGroups(n, bits int) int {
	if n > 6 || bits == 256 {
		return 2
	}
	return 4
}

// attention writes the attention loops.
func attention(a *asm) {
	for _, float16 := range []bool{false, true} {
		for _, n := range scoreTiles {
			a.scores(n, map[int]int{12: 2, 6: 4, 4: 4, 3: 4, 2: 4, 1: 4}[n], 512, float16)
		}
		for _, n := range scoreTilesWide {
			nb := map[int]int{6: 1, 3: 1, 2: 2, 1: 4}[n]
			if float16 {
				nb = min(nb, 2) // a register for each vector of keys
			}
			a.scores(n, nb, 256, float16)
		}
		tiles := valueTiles
		if float16 {
			tiles = float16ValueTiles
		}
		for _, n := range tiles {
			a.values(n, valueGroups(n, 512), 512, float16)
			a.values(n, 1, 512, float16)
		}
		for _, n := range valueTilesWide {
			a.values(n, valueGroups(n, 256), 256, float16)
			a.values(n, 1, 256, float16)
		}
	}
	a.weigh()
	a.join()
}

// suffix returns the end of the names of loops over registers of the given width.
func suffix(bits int) string {
	if bits == 256 {
		return "Wide"
	}
	return ""
}

// source returns the size of 16 stored elements, the instruction that loads a vector of them as float32, and
// the part of a loop's name that gives the type.
func source(float16 bool) (size int, load, name string) {
	if float16 {
		return 32, "VCVTPH2PS", "F16"
	}
	return 64, "VMOVUPS", ""
}

// scores writes scores<n>: out[n][16·blocks] = q·k for n queries and whole blocks, nb blocks at a time. Queries
// are stored as [D][n], so that the numbers that a step broadcasts are adjacent.
func (a *asm) scores(n, nb, bits int, float16 bool) {
	stored, load, of := source(float16)
	name, reg, words := fmt.Sprintf("scores%d%s%s", n, of, suffix(bits)), "Z", 1
	if bits == 256 {
		reg, words = "Y", 2
	}
	a.fn(name, 56, "func "+name+"(out *float32, ldo int, q *float32, ldq int, keys **float32, d, blocks int)")
	a.f("MOVQ out+0(FP), DI")
	a.f("MOVQ ldo+8(FP), R8")
	a.f("MOVQ q+16(FP), BX")
	a.f("MOVQ ldq+24(FP), R9")
	a.f("MOVQ keys+32(FP), SI")
	a.f("MOVQ d+40(FP), R10")
	a.f("IMULQ $%d, R10", stored)
	a.f("MOVQ blocks+48(FP), CX")
	keys := []string{"R11", "R12", "R13", "R15"}
	pass := func(nb int, label, next string) {
		a.label(label)
		a.f("CMPQ CX, $%d", nb)
		a.f("JLT %s", next)
		for b := range nb {
			a.f("MOVQ %d(SI), %s", 8*b, keys[b])
		}
		vectors := nb * words
		acc := func(i, v int) int { return i*vectors + v }
		for i := range n * vectors {
			if bits == 512 {
				a.f("VPXORD Z%d, Z%d, Z%d", i, i, i)
			} else {
				a.f("VXORPS Y%d, Y%d, Y%d", i, i, i)
			}
		}
		a.f("MOVQ BX, DX")
		a.f("XORQ AX, AX")
		a.label(label + "d")
		key := n * vectors
		direct := n == 1 && !float16 // a key is used once: multiply from memory
		if !direct {
			for v := range vectors {
				a.f("%s %d(%s)(AX*1), %s%d", load, v%words*stored/2, keys[v/words], reg, key+v)
			}
		}
		free := key
		if !direct {
			free += vectors
		}
		total := 32
		if bits == 256 {
			total = 16
		}
		for i := range n {
			q := free + i%(total-free)
			a.f("VBROADCASTSS %d(DX), %s%d", 4*i, reg, q)
			for v := range vectors {
				if direct {
					a.f("VFMADD231PS %d(%s)(AX*1), %s%d, %s%d", v%words*32, keys[v/words], reg, q, reg, acc(i, v))
				} else {
					a.f("VFMADD231PS %s%d, %s%d, %s%d", reg, key+v, reg, q, reg, acc(i, v))
				}
			}
		}
		a.f("ADDQ R9, DX")
		a.f("ADDQ $%d, AX", stored)
		a.f("CMPQ AX, R10")
		a.f("JLT %sd", label)
		a.f("MOVQ DI, DX")
		for i := range n {
			for v := range vectors {
				a.f("VMOVUPS %s%d, %d(DX)", reg, acc(i, v), v*64/words)
			}
			if i < n-1 {
				a.f("ADDQ R8, DX")
			}
		}
		a.f("ADDQ $%d, DI", 64*nb)
		a.f("ADDQ $%d, SI", 8*nb)
		a.f("SUBQ $%d, CX", nb)
		a.f("JMP %s", label)
	}
	if nb > 1 {
		pass(nb, "many", "one")
	}
	pass(1, "one", "done")
	a.label("done")
	a.end()
}

// values writes values<n>x<groups>: y[n][16·groups] += w·v over some positions, the first of which is row at of
// the first block. Rows of v are ldv bytes apart and begin col bytes after the start of a block.
func (a *asm) values(n, groups, bits int, float16 bool) {
	stored, load, of := source(float16)
	name := fmt.Sprintf("values%dx%d%s%s", n, groups, of, suffix(bits))
	reg, vectors, size := "Z", groups, 64
	if bits == 256 {
		reg, vectors, size, stored = "Y", 2*groups, 32, stored/2
	}
	a.fn(name, 72, "func "+name+"(y *float32, ldy int, w *float32, ldw int, blocks **float32, ldv, col, at, n int)")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ ldy+8(FP), R9")
	a.f("MOVQ w+16(FP), BX")
	a.f("MOVQ ldw+24(FP), R8")
	weightRows := []string{"BX", "R12", "R15", "AX"}[:(n+2)/3] // each serves three queries
	a.f("MOVQ blocks+32(FP), SI")
	a.f("MOVQ ldv+40(FP), R10")
	a.f("MOVQ at+56(FP), DX")
	a.f("MOVQ n+64(FP), CX")
	acc := func(i, v int) int { return i*vectors + v }
	rows := func(op func(i int)) {
		a.f("MOVQ DI, AX")
		for i := range n {
			op(i)
			if i < n-1 {
				a.f("ADDQ R9, AX")
			}
		}
	}
	rows(func(i int) {
		for v := range vectors {
			a.f("VMOVUPS %d(AX), %s%d", size*v, reg, acc(i, v))
		}
	})
	for i, r := range weightRows[1:] {
		a.f("LEAQ (%s)(R8*2), %s", weightRows[i], r)
		a.f("ADDQ R8, %s", r)
	}
	a.label("block")
	a.f("TESTQ CX, CX")
	a.f("JLE done")
	a.f("MOVQ (SI), R11")
	a.f("ADDQ col+48(FP), R11")
	a.f("MOVQ $16, R13") // rows of this block
	a.f("SUBQ DX, R13")
	a.f("IMULQ R10, DX")
	a.f("ADDQ DX, R11")
	a.f("CMPQ R13, CX")
	a.f("CMOVQGT CX, R13")
	a.f("SUBQ R13, CX")
	a.f("XORQ DX, DX")
	a.f("ADDQ $8, SI")
	a.label("row")
	total := 32
	if bits == 256 {
		total = 16
	}
	broadcast := func(i, to int) {
		a.f("VBROADCASTSS (%s)%s, %s%d", weightRows[i/3], []string{"", "(R8*1)", "(R8*2)"}[i%3], reg, to)
	}
	row := n * vectors
	switch weights := row + vectors; {
	case n == 1 && !float16: // a value is used once: multiply from memory
		broadcast(0, row)
		for v := range vectors {
			a.f("VFMADD231PS %d(R11), %s%d, %s%d", stored*v, reg, row, reg, v)
		}
	case weights < total:
		for v := range vectors {
			a.f("%s %d(R11), %s%d", load, stored*v, reg, row+v)
		}
		for i := range n {
			w := weights + i%(total-weights)
			broadcast(i, w)
			for v := range vectors {
				a.f("VFMADD231PS %s%d, %s%d, %s%d", reg, row+v, reg, w, reg, acc(i, v))
			}
		}
	default: // too few registers are left for all values: load them one by one
		for i := range n {
			broadcast(i, row+i)
		}
		for v := range vectors {
			to := row + n + v%(total-row-n)
			a.f("%s %d(R11), %s%d", load, stored*v, reg, to)
			for i := range n {
				a.f("VFMADD231PS %s%d, %s%d, %s%d", reg, to, reg, row+i, reg, acc(i, v))
			}
		}
	}
	a.f("ADDQ R10, R11")
	for _, r := range weightRows {
		a.f("ADDQ $4, %s", r)
	}
	a.f("DECQ R13")
	a.f("JNZ row")
	a.f("JMP block")
	a.label("done")
	rows(func(i int) {
		for v := range vectors {
			a.f("VMOVUPS %s%d, %d(AX)", reg, acc(i, v), size*v)
		}
	})
	a.end()
}

// foldMax sets all lanes of z to their maximum. Z0 is scratch.
func (a *asm) foldMax(z int) {
	for _, step := range []string{"VSHUFF64X2 $0x4E, Z%d, Z%[1]d, Z0", "VSHUFF64X2 $0xB1, Z%d, Z%[1]d, Z0", "VPERMILPS $0x4E, Z%d, Z0", "VPERMILPS $0xB1, Z%d, Z0"} {
		a.f(step, z)
		a.f("VMAXPS Z0, Z%d, Z%d", z, z)
	}
}

// weigh writes weighScores: x = exp(scale·x - best), where best is the maximum of scale·x, and the sum of the
// results in canonical lanes.
func (a *asm) weigh() {
	a.fn("weighScores", 32, "func weighScores(x *float32, n int, scale float32) (best, sum float32)")
	a.f("MOVQ x+0(FP), SI")
	a.f("MOVQ n+8(FP), CX")
	a.f("VBROADCASTSS scale+16(FP), Z8")
	for i, c := range expConstants {
		a.constant(c, 10+i)
	}
	a.constant(expMin, 24)
	a.constant(expMax, 25)
	a.f("MOVQ CX, BX")
	a.f("ANDQ $15, CX")
	a.mask() // of the last lanes
	a.f("VBROADCASTSS (SI), Z9")
	a.f("MOVQ SI, DI")
	a.f("MOVQ BX, CX")
	a.f("SHRQ $4, CX")
	a.f("JZ rest")
	a.label("max")
	a.f("VMAXPS (DI), Z9, Z9")
	a.f("ADDQ $64, DI")
	a.f("DECQ CX")
	a.f("JNZ max")
	a.label("rest")
	a.f("VMOVAPS Z9, Z0")
	a.f("VMOVUPS (DI), K1, Z0")
	a.f("VMAXPS Z0, Z9, Z9")
	a.foldMax(9)
	a.f("VMULPS Z8, Z9, Z9")
	a.f("VMOVSS X9, best+24(FP)")
	a.f("VPXORD Z7, Z7, Z7")
	body := func(load, store string) {
		a.f(load)
		a.f("VMULPS Z8, Z0, Z0")
		a.f("VSUBPS Z9, Z0, Z0")
		a.f("VCMPPS $5, Z24, Z0, K2") // x >= the minimum, or NaN
		a.f("VMINPS Z0, Z25, Z0")
		a.f("VMULPS Z10, Z0, Z1")
		a.f("VRNDSCALEPS $8, Z1, Z1")
		a.f("VFNMADD231PS Z11, Z1, Z0")
		a.f("VFNMADD231PS Z12, Z1, Z0")
		a.f("VMOVAPS Z13, Z2")
		for c := 14; c <= 20; c++ {
			a.f("VFMADD213PS Z%d, Z0, Z2", c)
		}
		a.f("VCVTPS2DQ Z1, Z1")
		a.f("VPSLLD $23, Z1, Z1")
		a.f("VPADDD.Z Z1, Z2, K2, Z2")
		a.f(store)
	}
	a.f("MOVQ BX, CX")
	a.f("SHRQ $4, CX")
	a.f("JZ last")
	a.label("loop")
	body("VMOVUPS (SI), Z0", "VMOVUPS Z2, (SI)")
	a.f("VADDPS Z2, Z7, Z7")
	a.f("ADDQ $64, SI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.label("last")
	a.f("ANDQ $15, BX")
	a.f("JZ done")
	body("VMOVUPS.Z (SI), K1, Z0", "VMOVUPS Z2, K1, (SI)")
	a.f("VADDPS Z2, Z7, K1, Z7")
	a.label("done")
	a.fold(7)
	a.f("VMOVSS X7, sum+28(FP)")
	a.end()
}

// join writes joinSums: y = a·y + b·x, where b·x is added by a fused multiply-add. The AVX2 loop takes whole
// groups of 16.
func (a *asm) join() {
	a.fn("joinSums", 32, "func joinSums(y, x *float32, n int, a, b float32)")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ n+16(FP), CX")
	a.f("VBROADCASTSS a+24(FP), Z3")
	a.f("VBROADCASTSS b+28(FP), Z4")
	a.each(func(load, store string) {
		a.f(load, "SI", "Z0")
		a.f(load, "DI", "Z1")
		a.f("VMULPS Z3, Z1, Z1")
		a.f("VFMADD231PS Z0, Z4, Z1")
		a.f(store, "Z1", "DI")
	})
	a.end()
	a.fn("joinSumsWide", 32, "func joinSumsWide(y, x *float32, groups int, a, b float32)")
	a.f("MOVQ y+0(FP), DI")
	a.f("MOVQ x+8(FP), SI")
	a.f("MOVQ groups+16(FP), CX")
	a.f("VBROADCASTSS a+24(FP), Y3")
	a.f("VBROADCASTSS b+28(FP), Y4")
	a.label("loop")
	for h := range 2 {
		a.f("VMULPS %d(DI), Y3, Y1", 32*h)
		a.f("VFMADD231PS %d(SI), Y4, Y1", 32*h)
		a.f("VMOVUPS Y1, %d(DI)", 32*h)
	}
	a.f("ADDQ $64, SI")
	a.f("ADDQ $64, DI")
	a.f("DECQ CX")
	a.f("JNZ loop")
	a.end()
}

// attentionDeclarations returns the Go file with the declarations and the tables of loops.
func (a *asm) attentionDeclarations() []byte {
	var b bytes.Buffer
	b.WriteString("// Code generated by gen. DO NOT EDIT.\n\npackage cpu\n")
	for _, d := range a.declarations {
		fmt.Fprintf(&b, "\n//go:noescape\n%s\n", d)
	}
	loops := func(suffix, of string, scores, values []int, bits int) {
		fmt.Fprint(&b, "attendLoops{\n\t\tscores: []scoresLoop{")
		for _, n := range scores {
			fmt.Fprintf(&b, "{%d, scores%d%s%s}, ", n, n, of, suffix)
		}
		fmt.Fprint(&b, "},\n\t\tvalues: []valuesLoop{")
		for _, n := range values {
			groups := valueGroups(n, bits)
			fmt.Fprintf(&b, "{%d, %d, values%dx%d%s%s, values%dx1%s%s}, ", n, groups, n, groups, of, suffix, n, of, suffix)
		}
		fmt.Fprint(&b, "},\n},\n")
	}
	table := func(family, suffix string, scores, values, float16Values []int, bits int) {
		fmt.Fprintf(&b, "\n// attend%s returns the attention loops for %s.\nfunc attend%s() attendOps {\n\treturn attendOps{\n\t\tfull: ", family, family, family)
		loops(suffix, "", scores, values, bits)
		fmt.Fprint(&b, "float16: ")
		loops(suffix, "F16", scores, float16Values, bits)
		b.WriteString("\t}\n}\n")
	}
	table("AVX512", "", scoreTiles, valueTiles, float16ValueTiles, 512)
	table("AVX2", "Wide", scoreTilesWide, valueTilesWide, valueTilesWide, 256)
	out, err := format.Source(b.Bytes())
	if err != nil {
		log.Fatal(err)
	}
	return out
}
