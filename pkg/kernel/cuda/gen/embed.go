package main

// layout says how the elements of a type of weights lie in memory, as package tensor documents them.
type layout struct {
	name   string
	len    int                                   // elements of a block
	bytes  int                                   // of a block
	decode func(k *Kernel, block U64, e U32) F32 // the value of element e of a block, as tensor.Dequantize gives it
}

var formats = []layout{
	{"f32", 1, 4, func(k *Kernel, b U64, _ U32) F32 { return k.LdF(b, 0) }},
	{"f16", 1, 2, func(k *Kernel, b U64, _ U32) F32 { return k.Half(k.LdH(b, 0)) }},
	{"bf16", 1, 2, func(k *Kernel, b U64, _ U32) F32 { return k.FromBits(k.Shl(k.LdU16(b, 0), 16)) }},
	{"q8_0", 32, 34, func(k *Kernel, b U64, e U32) F32 {
		return k.FMul(k.Half(k.LdH(b, 0)), k.FromS(k.LdS8(k.Plus(b, e), 2)))
	}},
	{"q4_0", 32, 18, func(k *Kernel, b U64, e U32) F32 {
		return k.FMul(k.Half(k.LdH(b, 0)), k.FromS(k.Sub(k.nibble(b, 2, e), N(8))))
	}},
	{"q4_1", 32, 20, func(k *Kernel, b U64, e U32) F32 {
		v := k.FMul(k.Half(k.LdH(b, 0)), k.FromU(k.nibble(b, 4, e)))
		return k.FAdd(v, k.Half(k.LdH(b, 2)))
	}},
	{"q5_0", 32, 22, func(k *Kernel, b U64, e U32) F32 {
		return k.FMul(k.Half(k.LdH(b, 0)), k.FromS(k.Sub(k.fifth(b, 2, 6, e), N(16))))
	}},
	{"q5_1", 32, 24, func(k *Kernel, b U64, e U32) F32 {
		return k.FAdd(k.FMul(k.Half(k.LdH(b, 0)), k.FromU(k.fifth(b, 4, 8, e))), k.Half(k.LdH(b, 2)))
	}},
	{"mxfp4", 32, 17, func(k *Kernel, b U64, e U32) F32 {
		return k.FMul(k.exponent(k.LdU8(b, 0)), k.FromS(k.fp4(k.nibble(b, 1, e))))
	}},
	{"q4_k", 256, 144, func(k *Kernel, b U64, e U32) F32 {
		sub := k.Shr(e, 5)
		at := k.Add(k.Shl(k.Shr(e, 6), 5), k.And(e, N(31)))
		q := k.LdU8(k.Plus(b, at), 16)
		return k.superValue(b, sub, k.And(k.u32("shr.u32", q, k.Shl(k.And(sub, N(1)), 2)), N(15)))
	}},
	{"q5_k", 256, 176, func(k *Kernel, b U64, e U32) F32 {
		sub, within := k.Shr(e, 5), k.And(e, N(31))
		q := k.LdU8(k.Plus(b, k.Add(k.Shl(k.Shr(e, 6), 5), within)), 48)
		q = k.And(k.u32("shr.u32", q, k.Shl(k.And(sub, N(1)), 2)), N(15))
		high := k.And(k.u32("shr.u32", k.LdU8(k.Plus(b, within), 16), sub), N(1))
		return k.superValue(b, sub, k.Or(q, k.Shl(high, 4)))
	}},
	{"q6_k", 256, 210, func(k *Kernel, b U64, e U32) F32 {
		// 128 elements use 64 bytes of nibbles (of elements i and i+64) and 32 bytes of high bits.
		part, within := k.Shr(e, 7), k.And(e, N(127))
		low := k.LdU8(k.Plus(b, k.Add(k.Shl(part, 6), k.And(within, N(63)))), 0)
		low = k.And(k.u32("shr.u32", low, k.Shl(k.Shr(within, 6), 2)), N(15))
		high := k.LdU8(k.Plus(b, k.Add(k.Shl(part, 5), k.And(within, N(31)))), 128)
		high = k.And(k.u32("shr.u32", high, k.Shl(k.Shr(within, 5), 1)), N(3))
		scale := k.FMul(k.Half(k.LdH(b, 208)), k.FromS(k.LdS8(k.Plus(b, k.Shr(e, 4)), 192)))
		return k.FMul(scale, k.FromS(k.Sub(k.Or(low, k.Shl(high, 4)), N(32))))
	}},
}

// nibble returns the code of element e of a block of 32, whose low nibbles are elements 0..15.
func (k *Kernel) nibble(b U64, at int, e U32) U32 {
	q := k.LdU8(k.Plus(b, k.And(e, N(15))), at)
	return k.And(k.u32("shr.u32", q, k.Shl(k.Shr(e, 4), 2)), N(15))
}

// fifth is nibble with a fifth bit from the 32 bits at byte high.
func (k *Kernel) fifth(b U64, high, at int, e U32) U32 {
	bit := k.And(k.u32("shr.u32", k.LdU8(k.Plus(b, k.Shr(e, 3)), high), k.And(e, N(7))), N(1))
	return k.Or(k.nibble(b, at, e), k.Shl(bit, 4))
}

// exponent returns 2^(e-128), the scale of a block of MXFP4 whose levels are doubled. The scale of e = 0 and 1 is a
// subnormal number.
func (k *Kernel) exponent(e U32) F32 {
	small := k.u32("shl.b32", X(0x00200000), e)
	return k.FromBits(k.Select(k.Cmp("lt", e, N(2)), small, k.Shl(k.Sub(e, N(1)), 23)))
}

// fp4 returns twice the value of a 4-bit float. The eight sizes are nibbles of a constant.
func (k *Kernel) fp4(code U32) U32 {
	size := k.And(k.u32("shr.u32", X(0xc8643210), k.Shl(k.And(code, N(7)), 2)), N(15))
	return k.Select(k.Cmp("ge", code, N(8)), k.Sub(N(0), size), size)
}

// superValue returns scale·q - minimum for sub-block sub of a super-block of Q4_K or Q5_K: float16 d and dmin, and 12
// bytes of packed 6-bit scales and minima.
func (k *Kernel) superValue(b U64, sub, q U32) F32 {
	byteAt := func(at U32) U32 { return k.LdU8(k.Plus(b, at), 4) }
	first := k.Cmp("lt", sub, N(4))
	// Of the first four, the scale and the minimum are the low 6 bits of bytes sub and sub+4. Of the others, the low
	// four bits are in byte sub+4 and the high two above the first four's.
	own, next := byteAt(k.Select(first, sub, k.Sub(sub, N(4)))), byteAt(k.Add(sub, N(4)))
	same := byteAt(sub)
	scale := k.Select(first, k.And(own, N(63)), k.Or(k.And(next, N(15)), k.Shl(k.Shr(own, 6), 4)))
	low := k.Select(first, k.And(next, N(63)), k.Or(k.Shr(next, 4), k.Shl(k.Shr(same, 6), 4)))
	d, dmin := k.Half(k.LdH(b, 0)), k.Half(k.LdH(b, 2))
	return k.FSub(k.FMul(k.FMul(d, k.FromU(scale)), k.FromU(q)), k.FMul(dmin, k.FromU(low)))
}

// embeds returns the kernels that decode rows of weights.
func embeds() *Module {
	m := &Module{Name: "embed", Doc: "Rows of weights decoded to float32, bit for bit as tensor.Dequantize does."}
	for _, f := range formats {
		k := m.Kernel("embed_"+f.name, "decodes row ids[ctaid.y], or row from+ctaid.y if ids is null, of w[V,C], whose rows "+
			"have stride bytes, to row ctaid.y of y[T,C].", blockThreads, Ptr("y"), Ptr("w"), Ptr("ids"), Int("from"),
			Int("c"), Int("stride"))
		i, c := k.Index(), k.IntParam("c")
		k.ReturnIf(k.Cmp("ge", i, c))
		t, ids := k.Special("ctaid.y"), k.Pointer("ids")
		row := k.Add(k.IntParam("from"), t)
		k.If(k.pred("setp.ne.u64", ids, 0), func() { k.Op("ld.global.u32", row, place(k.At(ids, t, 4), 0)) })
		block, e := i, N(0)
		if f.len > 1 {
			block, e = k.Div(i, N(f.len)), k.And(i, N(f.len-1))
		}
		at := k.At(k.AtRow(k.Pointer("w"), row, k.IntParam("stride")), block, f.bytes)
		v := f.decode(k, at, e)
		k.StF(k.At(k.AtRow(k.Pointer("y"), t, k.Shl(c, 2)), i, 4), 0, v)
	}
	return m
}
