package main

// Activations are rounded once, and every product of them reads the rounded ones: scratch of [K/32][pad] blocks of 32
// activations, where pad is the number of rows rounded up to a multiple of the tile's. The rows from t on are zeros.

func activations(m *Module) {
	params := []Param{Ptr("xq"), Ptr("xs"), Ptr("x"), Int("k"), Int("t"), Int("pad")}
	k := m.Kernel("act_q8", "quantises row ctaid.y of x[T,K] to bytes with a scale max|x|/127 for each 32, as the CPU set "+
		"does, and writes the bytes to xq[K/32,pad,32] and the scale and the scale times the sum of the bytes to "+
		"xs[K/32,pad,2]. The four inputs i to i+3 of a block and those from i+16 on lie together, as a lane of mma takes "+
		"them. The grid has pad rows and a thread for each input.", blockThreads, params...)
	i, v, at := k.activation()
	size := k.And(k.Bits(v), X(0x7fffffff))
	for mask := 16; mask > 0; mask /= 2 {
		size = k.MaxU(size, k.u32("shfl.sync.bfly.b32", size, mask, "0x1f", "0xffffffff"))
	}
	most := k.FromBits(size)
	tiny := k.CmpF("lt", most, F(1e-30))
	scale := k.SelectF(tiny, F(0), k.FDiv(most, F(127)))
	inverse := k.SelectF(tiny, F(0), k.FDiv(F(127), most))
	rounded := k.f32("cvt.rni.f32.f32", k.FMul(v, inverse))
	inRange := k.CmpF("le", k.FAbs(rounded), F(127))
	code := k.u32("cvt.rni.s32.f32", k.SelectF(inRange, rounded, F(-128))) // NaN is -128, too
	sum := code
	for mask := 16; mask > 0; mask /= 2 {
		sum = k.Add(sum, k.u32("shfl.sync.bfly.b32", sum, mask, "0x1f", "0xffffffff"))
	}
	within := k.And(i, N(31))
	place32 := k.Or(k.Shl(k.And(within, N(12)), 1), k.Or(k.Shr(k.And(within, N(16)), 2), k.And(within, N(3))))
	k.Op("st.global.u8", place(k.Plus(k.At(k.Pointer("xq"), at, 32), place32), 0), code)
	k.If(k.Cmp("eq", within, N(0)), func() {
		to := k.At(k.Pointer("xs"), at, 8)
		k.StF(to, 0, scale)
		k.StF(to, 4, k.FMul(k.FromS(sum), scale))
	})

	k = m.Kernel("act_bf16", "rounds row ctaid.y of x[T,K] to bfloat16 and writes it to xq[K/32,pad,32]. The grid is that of "+
		"act_q8; xs is not used.", blockThreads, params...)
	i, v, at = k.activation()
	k.Op("st.global.u16", place(k.At(k.At(k.Pointer("xq"), at, 64), k.And(i, N(31)), 2), 0), k.low16(k.RoundBF16(v)))
}

// activation returns the input of this thread, its value, and the number of its block in the scratch.
func (k *Kernel) activation() (i U32, v F32, block U32) {
	i = k.Index()
	k.ReturnIf(k.Cmp("ge", i, k.IntParam("k")))
	row := k.Special("ctaid.y")
	v = k.NewF(F(0))
	k.If(k.Cmp("lt", row, k.IntParam("t")), func() {
		k.Op("ld.global.f32", v, place(k.At(k.AtRow(k.Pointer("x"), row, k.Shl(k.IntParam("k"), 2)), i, 4), 0))
	})
	return i, v, k.Mad(k.Shr(i, 5), k.IntParam("pad"), row)
}

// matmuls returns the products of weights as they lie in files.
func matmuls() []*Module {
	var out []*Module
	m := &Module{Name: "dense", Doc: "Rounding of activations, and products in float32."}
	activations(m)
	for _, round := range []bool{false, true} {
		gemm(m, 64, round)
		gemm(m, 16, round)
	}
	out = append(out, m)
	for _, w := range products {
		m := &Module{Name: "matmul_" + w.name, Doc: "Products of " + w.name + " weights as they lie in files. DESIGN.md " +
			"gives the order of sums, which all kernels of a type share. Rows of weights begin anywhere; the lines of 16 " +
			"bytes that they touch are read whole, so the size of their allocation is a multiple of 16."}
		m.product(w, 1, true)
		m.product(w, 4, true)
		m.product(w, 8, false)
		out = append(out, m)
	}
	return out
}
