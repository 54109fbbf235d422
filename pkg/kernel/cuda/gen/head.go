package main

// What follows the head of a model: log-sum-exps, candidates and losses of rows of logits.

const (
	lseChunk   = 4096       // logits of a block
	candidates = 1024       // logits of a block of candidates
	lowest     = 0xff7fffff // the least finite float32
)

func heads() *Module {
	m := &Module{Name: "head", Doc: "Log-sum-exps, candidates and losses of rows of logits, and sums of squares."}
	logSumExp(m)
	topCandidates(m)
	m.each("cross_entropy_grad", "computes dlogits = scale*(softmax - onehot) for logits[T,V] from the stats of lse_join. "+
		"A row with a negative target is zero. n is T*V.", []Param{Ptr("dlogits"), Ptr("logits"), Ptr("stats"),
		Ptr("targets"), Float("scale"), Int("v")}, func(k *Kernel, i U32) {
		row := k.Div(i, k.IntParam("v"))
		target := k.LdU(k.At(k.Pointer("targets"), row, 4), 0)
		stats := k.At(k.Pointer("stats"), row, 8)
		p := k.FDiv(k.Exp(k.FSub(k.load("logits", i), k.LdF(stats, 0))), k.LdF(stats, 4))
		mine := k.Cmp("eq", k.Sub(i, k.Mul(row, k.IntParam("v"))), target)
		g := k.FMul(k.FloatParam("scale"), k.SelectF(mine, k.FSub(p, F(1)), p))
		k.store("dlogits", i, k.SelectF(k.pred("setp.lt.s32", target, 0), F(0), g))
	})
	squares(m)
	return m
}

// logSumExp adds the kernels of log-sum-exps. The logarithm is the caller's: lse = greatest + log(sum).
func logSumExp(m *Module) {
	k := m.Kernel("lse_part", "writes the greatest of 4096 logits from 4096*ctaid.x on of row ctaid.y of x[T,V], and the sum of "+
		"exp(x - greatest), to parts[T,chunks,2]. The grid has chunks blocks in x.", rowThreads, Ptr("parts"), Ptr("x"),
		Int("v"))
	r, tid, v := k.reduction(), k.Special("tid.x"), k.IntParam("v")
	chunk, row := k.Special("ctaid.x"), k.Special("ctaid.y")
	x := k.far(k.Pointer("x"), row, v)
	from := k.Mul(chunk, N(lseChunk))
	to := k.MinU(k.Add(from, N(lseChunk)), v)
	most := k.NewF(Fbits(lowest))
	k.For(k.Add(from, tid), to, N(rowThreads), func(i U32) { k.Op("max.f32", most, most, k.LdF(k.At(x, i, 4), 0)) })
	greatest := r.max(most)
	total := k.NewF(F(0))
	k.For(k.Add(from, tid), to, N(rowThreads), func(i U32) {
		k.Op("add.rn.f32", total, total, k.Exp(k.FSub(k.LdF(k.At(x, i, 4), 0), greatest)))
	})
	sum := r.sum(total)
	k.If(k.Cmp("eq", tid, N(0)), func() {
		at := k.At(k.Pointer("parts"), k.Mad(row, k.Special("nctaid.x"), chunk), 8)
		k.StF(at, 0, greatest)
		k.StF(at, 4, sum)
	})

	m.each("lse_join", "joins the chunks of each of n rows in order and writes the greatest logit and the sum of "+
		"exp(x - greatest) to stats[T,2].", []Param{Ptr("stats"), Ptr("parts"), Int("chunks")}, func(k *Kernel, i U32) {
		chunks := k.IntParam("chunks")
		base := k.At(k.Pointer("parts"), k.Mul(i, chunks), 8)
		most, total := k.NewF(Fbits(lowest)), k.NewF(F(0))
		k.For(N(0), chunks, N(1), func(c U32) { k.Op("max.f32", most, most, k.LdF(k.At(base, c, 8), 0)) })
		k.For(N(0), chunks, N(1), func(c U32) {
			at := k.At(base, c, 8)
			k.FMAInto(total, k.LdF(at, 4), k.Exp(k.FSub(k.LdF(at, 0), most)))
		})
		at := k.At(k.Pointer("stats"), i, 8)
		k.StF(at, 0, most)
		k.StF(at, 4, total)
	})
}

// topCandidates adds the kernel that chooses the largest of 1024 values. Values become integers of the same order,
// above the complement of their index, so that one comparison of 64 bits prefers the larger value and then the lower
// index.
func topCandidates(m *Module) {
	k := m.Kernel("candidates", "writes the count largest of 1024 values from 1024*ctaid.x on of row ctaid.y of x[T,n], the "+
		"largest first and of equal ones the lowest index first, and their indices, to values[T,blocks,count] and "+
		"indices[T,blocks,count]. ids has the indices of x, or is null if they are 0 to n-1. Run it on its own results until "+
		"one block is left. -0 counts as 0, and is written as that. If there are fewer values, the others are -inf and have "+
		"the index 2^32-1. NaN is not supported.",
		rowThreads, Ptr("values"), Ptr("indices"), Ptr("x"), Ptr("ids"), Int("n"), Int("count"))
	tid, n := k.Special("tid.x"), k.IntParam("n")
	row, block := k.Special("ctaid.y"), k.Special("ctaid.x")
	slots := k.SharedAt(8 * rowThreads / 32)
	x, ids := k.far(k.Pointer("x"), row, n), k.Pointer("ids")
	given := k.pred("setp.ne.u64", ids, 0)
	var keys [candidates / rowThreads]U64
	for j := range keys {
		keys[j] = k.U64()
		k.Op("mov.u64", keys[j], 0)
		i := k.Add(k.Mad(block, N(candidates), N(j*rowThreads)), tid)
		k.If(k.Cmp("lt", i, n), func() {
			id := k.NewU(i)
			k.If(given, func() { k.Op("ld.global.u32", id, place(k.At(k.far(ids, row, n), i, 4), 0)) })
			bits := k.LdU(k.At(x, i, 4), 0)
			bits = k.Select(k.Cmp("eq", bits, X(0x80000000)), N(0), bits)
			negative := k.pred("setp.lt.s32", bits, 0)
			order := k.Xor(bits, k.Select(negative, X(0xffffffff), X(0x80000000)))
			k.Op("mov.b64", keys[j], group(k.Xor(id, X(0xffffffff)), order))
		})
	}
	lane, warp := k.And(tid, N(31)), k.Shr(tid, 5)
	greater := func(a, b U64) U64 {
		r := k.U64()
		k.Op("max.u64", r, a, b)
		return r
	}
	count := k.IntParam("count")
	out := k.Mul(k.Mad(row, k.Special("nctaid.x"), block), count)
	k.For(N(0), count, N(1), func(c U32) {
		best := greater(greater(keys[0], keys[1]), greater(keys[2], keys[3]))
		for mask := 16; mask > 0; mask /= 2 {
			lo, hi, other := k.U32(), k.U32(), k.U64()
			k.Op("mov.b64", group(lo, hi), best)
			lo = k.u32("shfl.sync.bfly.b32", lo, mask, "0x1f", "0xffffffff")
			hi = k.u32("shfl.sync.bfly.b32", hi, mask, "0x1f", "0xffffffff")
			k.Op("mov.b64", other, group(lo, hi))
			best = greater(best, other)
		}
		k.If(k.Cmp("eq", lane, N(0)), func() { k.Op("st.shared.u64", place(k.Add(slots, k.Shl(warp, 3)), 0), best) })
		k.Barrier()
		winner := k.U64()
		k.Op("ld.shared.u64", winner, place(slots, 0))
		for w := 1; w < rowThreads/32; w++ {
			other := k.U64()
			k.Op("ld.shared.u64", other, place(slots, 8*w))
			winner = greater(winner, other)
		}
		k.Barrier()
		for _, key := range keys {
			k.Op("@"+string(k.pred("setp.eq.u64", key, winner))+" mov.u64", key, 0)
		}
		k.If(k.Cmp("eq", tid, N(0)), func() {
			low, order := k.U32(), k.U32()
			k.Op("mov.b64", group(low, order), winner)
			positive := k.pred("setp.lt.s32", order, 0)
			bits := k.Xor(order, k.Select(positive, X(0x80000000), X(0xffffffff)))
			bits = k.Select(k.pred("setp.eq.u64", winner, 0), X(0xff800000), bits)
			k.StU(k.At(k.Pointer("values"), k.Add(out, c), 4), 0, bits)
			k.StU(k.At(k.Pointer("indices"), k.Add(out, c), 4), 0, k.Xor(low, X(0xffffffff)))
		})
	})
}

// squares adds the kernel of sums of squares.
func squares(m *Module) {
	k := m.Kernel("sum_squares", "writes the sum of the squares of 8192 elements of x from 8192*ctaid.x on, in float64, to "+
		"sums[ctaid.x]. The caller adds the sums in order.", rowThreads, Ptr("sums"), Ptr("x"), Int("n"))
	tid := k.Special("tid.x")
	slots := k.SharedAt(8 * rowThreads / 32)
	from := k.Shl(k.Special("ctaid.x"), 13)
	total := k.f64("mov.f64", D(0))
	x := k.Pointer("x")
	k.For(k.Add(from, tid), k.MinU(k.IntParam("n"), k.Add(from, N(8192))), N(rowThreads), func(i U32) {
		v := k.Wide(k.LdF(k.At(x, i, 4), 0))
		k.Op("fma.rn.f64", total, v, v, total)
	})
	for mask := 16; mask > 0; mask /= 2 {
		total = k.DAdd(total, k.SwapD(total, mask))
	}
	k.If(k.Cmp("eq", k.And(tid, N(31)), N(0)), func() { k.StSD(k.Add(slots, k.Shl(k.Shr(tid, 5), 3)), 0, total) })
	k.Barrier()
	k.If(k.Cmp("eq", tid, N(0)), func() {
		sum := k.LdSD(slots, 0)
		for w := 1; w < rowThreads/32; w++ {
			sum = k.DAdd(sum, k.LdSD(slots, 8*w))
		}
		k.Op("st.global.f64", place(k.At(k.Pointer("sums"), k.Special("ctaid.x"), 8), 0), sum)
	})
}
