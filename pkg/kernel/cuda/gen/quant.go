package main

// The types of weights that are multiplied as they lie. Codes become signed bytes four to a register, in the layout of
// operand A of mma.m16n8k32: register 0 and 1 have inputs 4·quad to 4·quad+3 of rows group and group+8, registers 2 and
// 3 those 16 inputs further.

const (
	low4  = U32("0x0f0f0f0f") // the low nibbles of four bytes
	every = 0x01010101        // times a byte: that byte four times
)

var products = []*weights{
	{name: "q8_0", inputs: 256, bytes: 272, align: 2, unit: eachBlock(34, func(t *tile, p U32) ([2]U32, F32, F32) {
		at := t.Add(p, t.Shl(t.quad, 2))
		return [2]U32{t.word2(at, 2), t.word2(at, 18)}, t.sharedHalf(p, 0), ""
	})},
	{name: "q4_0", inputs: 256, bytes: 144, align: 2, unit: eachBlock(18, func(t *tile, p U32) ([2]U32, F32, F32) {
		q := t.nibbles(t.word2(t.Add(p, t.Shl(t.quad, 2)), 2))
		return [2]U32{t.less(q[0], 8), t.less(q[1], 8)}, t.sharedHalf(p, 0), ""
	})},
	{name: "q4_1", inputs: 256, bytes: 160, align: 4, unit: eachBlock(20, func(t *tile, p U32) ([2]U32, F32, F32) {
		return t.nibbles(t.LdSU(t.Add(p, t.Shl(t.quad, 2)), 4)), t.sharedHalf(p, 0), t.sharedHalf(p, 2)
	})},
	{name: "mxfp4", inputs: 256, bytes: 136, align: 1, unit: eachBlock(17, func(t *tile, p U32) ([2]U32, F32, F32) {
		q := t.nibbles(t.word1(t.Add(p, t.Shl(t.quad, 2)), 1))
		return [2]U32{t.levels(q[0]), t.levels(q[1])}, t.exponent(t.u32("ld.shared.u8", place(p, 0))), ""
	})},
	{name: "q4_k", inputs: 256, bytes: 144, align: 16, unit: superBlocks(16, false)},
	{name: "q5_k", inputs: 256, bytes: 176, align: 16, unit: superBlocks(48, true)},
	{name: "q6_k", inputs: 256, bytes: 210, align: 2, unit: sixBits},
	{name: "bf16", inputs: 128, bytes: 256, align: 16, unit: halves(false)},
	{name: "f16", inputs: 128, bytes: 256, align: 16, unit: halves(true)},
}

// quantised reports whether activations are bytes; else they are bfloat16.
func (w *weights) quantised() bool { return w.inputs == 256 }

func (w *weights) activations() string {
	if w.quantised() {
		return "q8"
	}
	return "bf16"
}

// blockBytes is the size of 32 activations.
func (w *weights) blockBytes() int {
	if w.quantised() {
		return 32
	}
	return 64
}

// eachBlock returns the loop over a unit of blocks of 32 inputs of some bytes. block returns the two registers of
// codes of the row that lies at p, its scale and its minimum or "".
func eachBlock(bytes int, block func(t *tile, p U32) ([2]U32, F32, F32)) func(t *tile) {
	return func(t *tile) {
		n := t.blocksOfUnit()
		row := [2]U32{t.NewU(t.row[0]), t.NewU(t.row[1])}
		t.eachOf(n, 8, func() {
			var a [4]U32
			var scale, low [2]F32
			for h := range 2 {
				codes, s, l := block(t, row[h])
				a[h], a[2+h] = codes[0], codes[1]
				scale[h], low[h] = s, l
				t.Op("add.u32", row[h], row[h], bytes)
			}
			t.block(a, scale, low)
		})
	}
}

// eachOf runs body n times. If one row of blocks is computed, the most there can be, as in all units but the last, are
// written one after the other, so that their loads overlap.
func (t *tile) eachOf(n U32, most int, body func()) {
	loop := func() { t.For(N(0), n, N(1), func(U32) { body() }) }
	if t.nx > 1 {
		loop()
		return
	}
	whole := t.Cmp("eq", n, N(most))
	t.If(whole, func() {
		for range most {
			body()
		}
	})
	t.Unless(whole, loop)
}

// blocksOfUnit returns the number of blocks of the unit: 8, or fewer in the last one.
func (t *tile) blocksOfUnit() U32 { return t.MinU(t.Sub(t.blocks, t.done), N(8)) }

// block adds the product of a block of 32 inputs: fma(float(sum of codes·bytes), scale·d, sum), and with a minimum
// fma(minimum, d·sum of bytes, sum).
func (t *tile) block(a [4]U32, scale, low [2]F32) {
	for j := range t.acc {
		b := [2]U32{t.U32(), t.U32()}
		t.Op("ld.global.v2.u32", group(b[0], b[1]), place(t.x, 256*j))
		d := t.activationScales(j)
		s := t.dot("k32", a[:], b[:])
		for i := range 4 {
			t.FMAInto(t.acc[j][i], t.FSub(s[i], F(magic)), t.FMul(scale[i/2], d[i%2][0]))
			if low[0] != "" {
				t.FMAInto(t.acc[j][i], low[i/2], d[i%2][1])
			}
		}
	}
	t.next()
}

// activationScales reads the scale, and the scale times the sum of the bytes, of the two columns of this lane.
func (t *tile) activationScales(j int) (d [2][2]F32) {
	for i := range d {
		d[i] = [2]F32{t.F32(), t.F32()}
	}
	t.Op("ld.global.v4.f32", group(d[0][0], d[0][1], d[1][0], d[1][1]), place(t.scale, 64*j))
	return d
}

// dot returns the integer sums of a block as floats above magic.
func (t *tile) dot(shape string, a, b []U32) (s [4]F32) {
	var sums [4]U32
	for i := range sums {
		sums[i] = t.U32()
	}
	t.Op("mma.sync.aligned.m16n8"+shape+".row.col.s32.s8.s8.s32", group(sums[:]...), group(a...), group(b...),
		group(t.start, t.start, t.start, t.start))
	for i := range s {
		s[i] = t.FromBits(sums[i])
	}
	return s
}

// nibbles returns the low and the high nibbles of four bytes.
func (t *tile) nibbles(w U32) [2]U32 { return [2]U32{t.And(w, low4), t.And(t.Shr(w, 4), low4)} }

// less subtracts a number from four bytes of 0 to 127.
func (t *tile) less(w U32, by uint32) U32 {
	return t.Xor(t.Sub(t.Or(w, X(0x80*every)), X(by*every)), X(0x80*every))
}

// levels returns twice the values of four 4-bit floats, as signed bytes. Selectors of prmt are nibbles, so the codes
// are first gathered in 16 bits.
func (t *tile) levels(q U32) U32 {
	packed := t.Or(q, t.Shr(q, 4))
	selector := t.And(t.u32("prmt.b32", packed, 0, "0x4420"), X(0x7777))
	size := t.u32("prmt.b32", X(0x03020100), X(0x0c080604), selector)
	negative := t.u32("prmt.b32", X(0xfdfeff00), X(0xf4f8fafc), selector)
	mask := t.u32("prmt.b32", t.Shl(q, 4), 0, "0xba98") // a byte of ones where bit 3 of the code is set
	return t.Xor(size, t.And(t.Xor(size, negative), mask))
}

// word2 reads 32 bits at an even address of shared memory, word1 at any address.
func (t *tile) word2(at U32, off int) U32 {
	lo, hi := t.u32("ld.shared.u16", place(at, off)), t.u32("ld.shared.u16", place(at, off+2))
	return t.u32("prmt.b32", lo, hi, "0x5410")
}

func (t *tile) word1(at U32, off int) U32 {
	var b [4]U32
	for i := range b {
		b[i] = t.u32("ld.shared.u8", place(at, off+i))
	}
	return t.u32("prmt.b32", t.u32("prmt.b32", b[0], b[1], "0x0040"), t.u32("prmt.b32", b[2], b[3], "0x0040"), "0x5410")
}

// sharedHalf reads a float16.
func (t *tile) sharedHalf(at U32, off int) F32 {
	h := t.H16()
	t.Op("ld.shared.b16", h, place(at, off))
	return t.Half(h)
}

// byteOf returns byte i of a word as a float: the byte is put below the exponent of 2^23.
func (t *tile) byteOf(w U32, i int) F32 {
	return t.FSub(t.FromBits(t.u32("prmt.b32", w, X(0x4b000000), N(0x7440|i))), F(1<<23))
}

// superBlocks returns the code for a super-block of Q4_K or Q5_K. nibbles is the offset of its nibbles; fifth says
// whether there are fifth bits, at byte 16.
func superBlocks(nibbles int, fifth bool) func(t *tile) {
	return func(t *tile) {
		var scales, lows [2][2]U32 // bytes of four sub-blocks each, by row
		var d, dmin [2]F32
		var at [2]U32
		var high [2][2]U32
		for h, p := range t.row {
			head := t.LdSU(p, 0)
			d[h], dmin[h] = t.LowHalf(head), t.FNeg(t.HighHalf(head))
			a, b, c := t.LdSU(p, 4), t.LdSU(p, 8), t.LdSU(p, 12)
			six, two := X(0x3f*every), X(0x30*every)
			scales[h] = [2]U32{t.And(a, six), t.Or(t.And(c, low4), t.And(t.Shr(a, 2), two))}
			lows[h] = [2]U32{t.And(b, six), t.Or(t.And(t.Shr(c, 4), low4), t.And(t.Shr(b, 2), two))}
			at[h] = t.Add(p, t.Shl(t.quad, 2))
			if fifth {
				high[h] = [2]U32{t.LdSU(at[h], 16), t.LdSU(at[h], 32)}
			}
		}
		for pair := range 4 {
			var q [2][2][2]U32 // by row, half of the 32 inputs, sub-block of the pair
			for h := range 2 {
				for half := range 2 {
					q[h][half] = t.nibbles(t.LdSU(at[h], nibbles+32*pair+16*half))
				}
			}
			for side := range 2 {
				sub := 2*pair + side
				var a [4]U32
				var scale, low [2]F32
				for h := range 2 {
					for half := range 2 {
						code := q[h][half][side]
						if fifth {
							code = t.Or(code, t.Shl(t.And(t.Shr(high[h][half], sub), X(every)), 4))
						}
						a[2*half+h] = code
					}
					scale[h] = t.FMul(d[h], t.byteOf(scales[h][sub/4], sub%4))
					low[h] = t.FMul(dmin[h], t.byteOf(lows[h][sub/4], sub%4))
				}
				t.block(a, scale, low)
			}
		}
	}
}

// sixBits is the code for a super-block of Q6_K, where each 16 inputs have a scale: two products of 16 inputs a block.
func sixBits(t *tile) {
	var d [2]F32
	var at [2]U32
	for h, p := range t.row {
		d[h] = t.sharedHalf(p, 208)
		at[h] = t.Add(p, t.Shl(t.quad, 2))
	}
	for part := range 2 {
		var low, high [2][4]U32 // by row; the nibbles of 64 bytes, the pairs of bits of 32
		for h := range 2 {
			for i := range 4 {
				low[h][i] = t.word2(at[h], 64*part+16*i)
			}
			for i := range 2 {
				high[h][i] = t.word2(at[h], 128+32*part+16*i)
			}
		}
		for b := range 4 {
			var a [4]U32
			var scale [2][2]F32
			for h := range 2 {
				for half := range 2 {
					code := t.And(t.Shr(low[h][2*(b%2)+half], 4*(b/2)), low4)
					bits := t.And(t.Shr(high[h][half], 2*b), X(3*every))
					a[2*half+h] = t.less(t.Or(code, t.Shl(bits, 4)), 32)
					factor := t.u32("ld.shared.s8", place(t.row[h], 192+8*part+2*b+half))
					scale[h][half] = t.FMul(d[h], t.FromS(factor))
				}
			}
			for j := range t.acc {
				x := [2]U32{t.U32(), t.U32()}
				t.Op("ld.global.v2.u32", group(x[0], x[1]), place(t.x, 256*j))
				dx := t.activationScales(j)
				for half := range 2 {
					s := t.dot("k16", a[2*half:2*half+2], x[half:half+1])
					for i := range 4 {
						t.FMAInto(t.acc[j][i], t.FSub(s[i], F(magic)), t.FMul(scale[i/2][half], dx[i%2][0]))
					}
				}
			}
			t.next()
		}
	}
}

// halves returns the code for a unit of 16-bit weights. A lane has 8 consecutive inputs of each row and column, 4 of
// them for each of two products of 16 inputs. Which inputs a product takes is the same for all rows and columns.
func halves(float16 bool) func(t *tile) {
	return func(t *tile) {
		n := t.MinU(t.Sub(t.blocks, t.done), N(4))
		row := [2]U32{t.Add(t.row[0], t.Shl(t.quad, 4)), t.Add(t.row[1], t.Shl(t.quad, 4))}
		t.eachOf(n, 4, func() {
			var a [2][4]U32
			for h := range 2 {
				for i := range 4 {
					a[h][i] = t.U32()
				}
				t.Op("ld.shared.v4.u32", group(a[h][:]...), place(row[h], 0))
				t.Op("add.u32", row[h], row[h], 64)
				if float16 {
					for i, w := range a[h] {
						a[h][i] = t.u32("cvt.rn.bf16x2.f32", t.HighHalf(w), t.LowHalf(w))
					}
				}
			}
			for j := range t.acc {
				var b [4]U32
				for i := range b {
					b[i] = t.U32()
				}
				t.Op("ld.global.v4.u32", group(b[:]...), place(t.x, 512*j))
				for i := range 2 {
					acc := group(t.acc[j][:]...)
					t.Op("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", acc,
						group(a[0][2*i], a[1][2*i], a[0][2*i+1], a[1][2*i+1]), group(b[2*i], b[2*i+1]), acc)
				}
			}
			t.next()
		})
	}
}
