package main

// Pointer, Int and Float read a parameter.
func (k *Kernel) Pointer(name string) U64 {
	r := k.U64()
	k.Op("ld.param.u64", r, "["+name+"]")
	return r
}

// IntParam reads an integer parameter.
func (k *Kernel) IntParam(name string) U32 {
	r := k.U32()
	k.Op("ld.param.u32", r, "["+name+"]")
	return r
}

// FloatParam reads a float32 parameter.
func (k *Kernel) FloatParam(name string) F32 {
	r := k.F32()
	k.Op("ld.param.f32", r, "["+name+"]")
	return r
}

// Special reads a special register such as "tid.x".
func (k *Kernel) Special(name string) U32 {
	r := k.U32()
	k.Op("mov.u32", r, "%"+name)
	return r
}

// Index returns the number of the thread in the grid.
func (k *Kernel) Index() U32 {
	return k.Mad(k.Special("ctaid.x"), k.Special("ntid.x"), k.Special("tid.x"))
}

func (k *Kernel) u32(name string, operands ...any) U32 {
	r := k.U32()
	k.Op(name, append([]any{r}, operands...)...)
	return r
}

func (k *Kernel) f32(name string, operands ...any) F32 {
	r := k.F32()
	k.Op(name, append([]any{r}, operands...)...)
	return r
}

func (k *Kernel) f64(name string, operands ...any) F64 {
	r := k.F64()
	k.Op(name, append([]any{r}, operands...)...)
	return r
}

// Integer arithmetic.
func (k *Kernel) Add(a, b U32) U32    { return k.u32("add.u32", a, b) }
func (k *Kernel) Sub(a, b U32) U32    { return k.u32("sub.u32", a, b) }
func (k *Kernel) Mul(a, b U32) U32    { return k.u32("mul.lo.u32", a, b) }
func (k *Kernel) Mad(a, b, c U32) U32 { return k.u32("mad.lo.u32", a, b, c) }
func (k *Kernel) Div(a, b U32) U32    { return k.u32("div.u32", a, b) }
func (k *Kernel) Rem(a, b U32) U32    { return k.u32("rem.u32", a, b) }
func (k *Kernel) MinU(a, b U32) U32   { return k.u32("min.u32", a, b) }
func (k *Kernel) MaxU(a, b U32) U32   { return k.u32("max.u32", a, b) }
func (k *Kernel) And(a, b U32) U32    { return k.u32("and.b32", a, b) }
func (k *Kernel) Or(a, b U32) U32     { return k.u32("or.b32", a, b) }
func (k *Kernel) Xor(a, b U32) U32    { return k.u32("xor.b32", a, b) }
func (k *Kernel) Shl(a U32, n int) U32 {
	if n == 0 {
		return a
	}
	return k.u32("shl.b32", a, n)
}

// Shr shifts zeros in.
func (k *Kernel) Shr(a U32, n int) U32 {
	if n == 0 {
		return a
	}
	return k.u32("shr.u32", a, n)
}

// Float arithmetic. Every operation rounds to nearest even, and none is joined with another by the assembler.
func (k *Kernel) FAdd(a, b F32) F32     { return k.f32("add.rn.f32", a, b) }
func (k *Kernel) FSub(a, b F32) F32     { return k.f32("sub.rn.f32", a, b) }
func (k *Kernel) FMul(a, b F32) F32     { return k.f32("mul.rn.f32", a, b) }
func (k *Kernel) FMA(a, b, c F32) F32   { return k.f32("fma.rn.f32", a, b, c) }
func (k *Kernel) FDiv(a, b F32) F32     { return k.f32("div.rn.f32", a, b) }
func (k *Kernel) FSqrt(a F32) F32       { return k.f32("sqrt.rn.f32", a) }
func (k *Kernel) FMax(a, b F32) F32     { return k.f32("max.f32", a, b) }
func (k *Kernel) FMin(a, b F32) F32     { return k.f32("min.f32", a, b) }
func (k *Kernel) FNeg(a F32) F32        { return k.f32("neg.f32", a) }
func (k *Kernel) FAbs(a F32) F32        { return k.f32("abs.f32", a) }
func (k *Kernel) FSet(dst, v F32)       { k.Op("mov.f32", dst, v) }
func (k *Kernel) FMAInto(acc, a, b F32) { k.Op("fma.rn.f32", acc, a, b, acc) }

// NewF returns a register with a value.
func (k *Kernel) NewF(v F32) F32 { return k.f32("mov.f32", v) }

// NewU returns a register with a value.
func (k *Kernel) NewU(v U32) U32 { return k.u32("mov.u32", v) }

// Bits and FromBits move a value between register classes.
func (k *Kernel) Bits(a F32) U32     { return k.u32("mov.b32", a) }
func (k *Kernel) FromBits(a U32) F32 { return k.f32("mov.b32", a) }

// Float64 arithmetic.
func (k *Kernel) DAdd(a, b F64) F64 { return k.f64("add.rn.f64", a, b) }
func (k *Kernel) Wide(a F32) F64    { return k.f64("cvt.f64.f32", a) }

// Conversions between integers and floats.
func (k *Kernel) FromU(a U32) F32 { return k.f32("cvt.rn.f32.u32", a) }
func (k *Kernel) FromS(a U32) F32 { return k.f32("cvt.rn.f32.s32", a) }

// Half returns the float32 of a float16.
func (k *Kernel) Half(h H16) F32 { return k.f32("cvt.f32.f16", h) }

// HalfOf rounds to float16.
func (k *Kernel) HalfOf(a F32) H16 {
	h := k.H16()
	k.Op("cvt.rn.f16.f32", h, a)
	return h
}

// LowHalf and HighHalf return the float32 of one of two float16 in a word.
func (k *Kernel) LowHalf(w U32) F32  { return k.Half(k.split(w, true)) }
func (k *Kernel) HighHalf(w U32) F32 { return k.Half(k.split(w, false)) }

func (k *Kernel) split(w U32, low bool) H16 {
	a, b := k.H16(), k.H16()
	k.Op("mov.b32", group(a, b), w)
	if low {
		return a
	}
	return b
}

// Comparisons: the name is eq, ne, lt, le, gt or ge. A comparison of floats is false for NaN.
func (k *Kernel) Cmp(name string, a, b U32) Pred { return k.pred("setp."+name+".u32", a, b) }

// CmpF compares floats.
func (k *Kernel) CmpF(name string, a, b F32) Pred { return k.pred("setp."+name+".f32", a, b) }

func (k *Kernel) pred(name string, operands ...any) Pred {
	r := k.Pred()
	k.Op(name, append([]any{r}, operands...)...)
	return r
}

// AndP and OrP join predicates.
func (k *Kernel) AndP(a, b Pred) Pred { return k.pred("and.pred", a, b) }
func (k *Kernel) OrP(a, b Pred) Pred  { return k.pred("or.pred", a, b) }

// Select returns a where p holds, else b.
func (k *Kernel) Select(p Pred, a, b U32) U32 { return k.u32("selp.b32", a, b, p) }

// SelectF returns a where p holds, else b.
func (k *Kernel) SelectF(p Pred, a, b F32) F32 { return k.f32("selp.f32", a, b, p) }

// At returns base + index·size.
func (k *Kernel) At(base U64, index U32, size int) U64 {
	r := k.U64()
	k.Op("mad.wide.u32", r, index, size, base)
	return r
}

// AtRow returns base + row·stride, where the product may have more than 32 bits.
func (k *Kernel) AtRow(base U64, row, stride U32) U64 {
	r := k.U64()
	k.Op("mad.wide.u32", r, row, stride, base)
	return r
}

// Plus returns base + bytes.
func (k *Kernel) Plus(base U64, bytes U32) U64 {
	wide, r := k.U64(), k.U64()
	k.Op("cvt.u64.u32", wide, bytes)
	k.Op("add.u64", r, base, wide)
	return r
}

// Global memory.
func (k *Kernel) LdF(a U64, off int) F32    { return k.f32("ld.global.f32", place(a, off)) }
func (k *Kernel) LdU(a U64, off int) U32    { return k.u32("ld.global.u32", place(a, off)) }
func (k *Kernel) LdU8(a U64, off int) U32   { return k.u32("ld.global.u8", place(a, off)) }
func (k *Kernel) LdS8(a U64, off int) U32   { return k.u32("ld.global.s8", place(a, off)) }
func (k *Kernel) LdU16(a U64, off int) U32  { return k.u32("ld.global.u16", place(a, off)) }
func (k *Kernel) StF(a U64, off int, v F32) { k.Op("st.global.f32", place(a, off), v) }
func (k *Kernel) StU(a U64, off int, v U32) { k.Op("st.global.u32", place(a, off), v) }

// LdH reads 16 bits.
func (k *Kernel) LdH(a U64, off int) H16 {
	h := k.H16()
	k.Op("ld.global.b16", h, place(a, off))
	return h
}

// StH writes 16 bits.
func (k *Kernel) StH(a U64, off int, v H16) { k.Op("st.global.b16", place(a, off), v) }

// Shared memory.
func (k *Kernel) LdSF(a U32, off int) F32    { return k.f32("ld.shared.f32", place(a, off)) }
func (k *Kernel) LdSU(a U32, off int) U32    { return k.u32("ld.shared.u32", place(a, off)) }
func (k *Kernel) StSF(a U32, off int, v F32) { k.Op("st.shared.f32", place(a, off), v) }
func (k *Kernel) StSU(a U32, off int, v U32) { k.Op("st.shared.u32", place(a, off), v) }

// LdSD and StSD are LdSF and StSF of float64.
func (k *Kernel) LdSD(a U32, off int) F64    { return k.f64("ld.shared.f64", place(a, off)) }
func (k *Kernel) StSD(a U32, off int, v F64) { k.Op("st.shared.f64", place(a, off), v) }

// Swap returns the value of the lane whose number differs from this lane's in the bits of mask.
func (k *Kernel) Swap(a F32, mask int) F32 {
	return k.f32("shfl.sync.bfly.b32", a, mask, "0x1f", "0xffffffff")
}

// SwapD is Swap for a float64.
func (k *Kernel) SwapD(a F64, mask int) F64 {
	lo, hi, r := k.U32(), k.U32(), k.F64()
	k.Op("mov.b64", group(lo, hi), a)
	lo = k.u32("shfl.sync.bfly.b32", lo, mask, "0x1f", "0xffffffff")
	hi = k.u32("shfl.sync.bfly.b32", hi, mask, "0x1f", "0xffffffff")
	k.Op("mov.b64", r, group(lo, hi))
	return r
}

// WarpSum adds the values of the lanes of a warp: halves are added until one value is left, which every lane has.
func (k *Kernel) WarpSum(a F32) F32 {
	for mask := 16; mask > 0; mask /= 2 {
		a = k.FAdd(a, k.Swap(a, mask))
	}
	return a
}

// WarpMax returns the largest value of a warp. A NaN is passed over.
func (k *Kernel) WarpMax(a F32) F32 {
	for mask := 16; mask > 0; mask /= 2 {
		a = k.FMax(a, k.Swap(a, mask))
	}
	return a
}

// AsyncCommit ends a group of copies.
func (k *Kernel) AsyncCommit() { k.Op("cp.async.commit_group") }

// AsyncWait waits until at most n groups of this thread's copies are under way.
func (k *Kernel) AsyncWait(n int) { k.Op("cp.async.wait_group", n) }
