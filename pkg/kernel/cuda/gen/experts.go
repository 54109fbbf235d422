package main

import "math"

// The choice of experts, and what their outputs add up to. The products of experts are those of all weights: a launch
// over groups finds the matrix and the rows of each block in a list that these kernels write.

// groupDoc says how a launch over groups differs, for a kernel with such names of its operands; see span.
func groupDoc(y, x, w string) string {
	return "If groups is not null, the launch is over groups of rows: block z takes the group (e, from, to) at " +
		"groups[ctaid.z], rows from to to-1 of " + x + " and " + y + "; " + w + " and bias are lists of addresses by e, and " +
		"blocks without rows do nothing."
}

// span is the rows that a block's matrix is for.
type span struct {
	expert, from, to U32
	grouped          Pred
}

// span returns the rows of a block: all, or those of its group if the launch is over groups.
func (k *Kernel) span(rows string) span {
	groups := k.Pointer("groups")
	s := span{k.NewU(N(0)), k.NewU(N(0)), k.IntParam(rows), k.pred("setp.ne.u64", groups, 0)}
	k.If(s.grouped, func() {
		at := k.At(groups, k.Special("ctaid.z"), 12)
		for i, r := range []U32{s.expert, s.from, s.to} {
			k.Op("ld.global.u32", r, place(at, 4*i))
		}
	})
	return s
}

// operand returns the pointer of a parameter, or that of the span's expert from the list at the parameter.
func (k *Kernel) operand(name string, s span) U64 {
	p := k.Pointer(name)
	k.If(k.AndP(s.grouped, k.pred("setp.ne.u64", p, 0)), func() {
		k.Op("ld.global.u64", p, place(k.At(p, s.expert, 8), 0))
	})
	return p
}

const (
	routeThreads = 128 // of a block of the kernels below: four warps, each with work of its own
	allLanes     = "0xffffffff"
)

func experts() *Module {
	m := &Module{Name: "experts", Doc: "The choice of experts: which rows go to which experts, with what weights. DESIGN.md " +
		"describes it."}
	route(m)
	routeGroups(m)
	m.each("combine_rows", "computes row t of y[T,C] as the sum over s of weight[t,s] times row slots[t,s] of x[T*K,C], s "+
		"ascending from zero. n is T*C.", []Param{Ptr("y"), Ptr("x"), Ptr("slots"), Ptr("weight"), Int("c"), Int("k")},
		func(k *Kernel, i U32) {
			c, top := k.IntParam("c"), k.IntParam("k")
			row := k.Div(i, c)
			column, first := k.Sub(i, k.Mul(row, c)), k.Mul(row, top)
			x, sum := k.Pointer("x"), k.NewF(F(0))
			k.For(first, k.Add(first, top), N(1), func(s U32) {
				v := k.LdF(k.At(k.far(x, k.LdU(k.At(k.Pointer("slots"), s, 4), 0), c), column, 4), 0)
				k.Op("add.rn.f32", sum, sum, k.FMul(k.load("weight", s), v))
			})
			k.store("y", i, sum)
		})
	return m
}

// warpOf returns the lane of a thread, and the number of its warp in the grid.
func (k *Kernel) warpOf() (lane, warp U32) {
	tid := k.Special("tid.x")
	return k.And(tid, N(31)), k.Mad(k.Special("ctaid.x"), N(routeThreads/32), k.Shr(tid, 5))
}

// route adds the kernel that chooses the experts of rows. A probability and the complement of its expert's index make a
// 64-bit integer, so that one comparison prefers the greater probability and then the lower index. No two are equal:
// the next best is the greatest below the last one chosen, and nothing has to be marked.
func route(m *Module) {
	k := m.Kernel("route", "turns logits[T,E] into probabilities in place, the softmax in float64, whose sum is in the order "+
		"of the experts, and chooses the k most probable experts of each row, of equal ones the first. It writes their "+
		"indices, ascending, to chosen[T,K], and their probabilities to weight[T,K], divided by their sum if normalize is 1. "+
		"If a logit of a row is NaN or infinite, its probabilities are NaN and its experts the first. A warp has a row.",
		routeThreads, Ptr("logits"), Ptr("chosen"), Ptr("weight"), Int("t"), Int("e"), Int("k"), Int("normalize"))
	lane, row := k.warpOf()
	k.ReturnUnless(k.Cmp("lt", row, k.IntParam("t")))
	e, top := k.IntParam("e"), k.IntParam("k")
	x := k.far(k.Pointer("logits"), row, e)
	most := k.NewF(Fbits(0xff800000))
	k.For(lane, e, N(32), func(i U32) { k.Op("max.f32", most, most, k.LdF(k.At(x, i, 4), 0)) })
	greatest := k.Wide(k.WarpMax(most))
	power := func(i U32) F64 {
		return k.Exp64(k.f64("sub.rn.f64", k.Wide(k.LdF(k.At(x, i, 4), 0)), greatest))
	}
	total := k.f64("mov.f64", D(0))
	k.chunks(e, lane, func(i U32, inside Pred) {
		v := k.f64("mov.f64", D(0)) // which adds nothing behind the last expert
		k.If(inside, func() { k.Op("mov.f64", v, power(i)) })
		k.For(N(0), N(32), N(1), func(l U32) { k.Op("add.rn.f64", total, total, k.FromLane(v, l)) })
	})
	k.For(lane, e, N(32), func(i U32) {
		k.StF(k.At(x, i, 4), 0, k.f32("cvt.rn.f32.f64", k.f64("div.rn.f64", power(i), total)))
	})

	// A thread reads what it has written itself.
	key := func(i U32) (p F32, key U64) {
		p, key = k.LdF(k.At(x, i, 4), 0), k.U64()
		bits := k.Select(k.pred("setp.nan.f32", p, p), N(0), k.Bits(p))
		k.Op("mov.b64", key, group(k.Xor(i, X(0xffffffff)), bits))
		return p, key
	}
	last, sum := k.U64(), k.f64("mov.f64", D(0))
	k.Op("mov.u64", last, "0xffffffffffffffff")
	k.For(N(0), top, N(1), func(U32) {
		best := k.U64()
		k.Op("mov.u64", best, 0)
		k.For(lane, e, N(32), func(i U32) {
			_, mine := key(i)
			k.Op("@"+string(k.pred("setp.lt.u64", mine, last))+" max.u64", best, best, mine)
		})
		for mask := 16; mask > 0; mask /= 2 {
			k.Op("max.u64", best, best, k.swapU64(best, mask))
		}
		k.Op("mov.u64", last, best)
		lo, hi := k.U32(), k.U32()
		k.Op("mov.b64", group(lo, hi), best)
		k.Op("add.rn.f64", sum, sum, k.Wide(k.FromBits(hi)))
	})
	sum = k.f64("selp.f64", sum, D(1), k.Cmp("ne", k.IntParam("normalize"), N(0)))
	at := k.Mul(row, top) // where the next chosen expert goes
	k.chunks(e, lane, func(i U32, inside Pred) {
		taken, p := k.NewU(N(0)), k.NewF(F(0))
		k.If(inside, func() {
			v, mine := key(i)
			k.FSet(p, v)
			k.Op("selp.b32", taken, 1, 0, k.pred("setp.ge.u64", mine, last))
		})
		below, n := k.rank(taken)
		k.If(k.Cmp("ne", taken, N(0)), func() {
			to := k.Add(at, below)
			k.StU(k.At(k.Pointer("chosen"), to, 4), 0, i)
			k.store("weight", to, k.f32("cvt.rn.f32.f64", k.f64("div.rn.f64", k.Wide(p), sum)))
		})
		k.Op("add.u32", at, at, n)
	})
}

// routeGroups adds the kernel that groups rows by expert. A warp counts what lies before its expert's group by itself,
// so no two warps have to meet.
func routeGroups(m *Module) {
	k := m.Kernel("route_groups", "groups the n = T*K entries of chosen[T,K] by expert, entries ascending within a group: "+
		"it writes the row of each grouped index to rows[n], the grouped index of each entry to slots[n], and the groups, "+
		"each an expert and the grouped indices from and to, to groups[min(E,n),3]: that of each expert if there are no "+
		"more experts than entries, and else at the first grouped index of each group, with empty groups between. A warp has "+
		"an expert.", routeThreads, Ptr("rows"), Ptr("slots"), Ptr("groups"), Ptr("chosen"), Int("n"), Int("e"), Int("k"))
	lane, expert := k.warpOf()
	e, n := k.IntParam("e"), k.IntParam("n")
	k.ReturnUnless(k.Cmp("lt", expert, e))
	chosen := k.Pointer("chosen")
	less, same := k.NewU(N(0)), k.NewU(N(0))
	k.For(lane, n, N(32), func(i U32) {
		v := k.LdU(k.At(chosen, i, 4), 0)
		k.Op("@"+string(k.Cmp("lt", v, expert))+" add.u32", less, less, 1)
		k.Op("@"+string(k.Cmp("eq", v, expert))+" add.u32", same, same, 1)
	})
	from, size := k.warpCount(less), k.warpCount(same)
	to := k.Add(from, size)
	put := func(at, from, to U32) {
		a := k.At(k.Pointer("groups"), at, 12)
		for i, v := range []U32{expert, from, to} {
			k.StU(a, 4*i, v)
		}
	}
	few := k.Cmp("le", e, n)
	k.If(k.AndP(few, k.Cmp("eq", lane, N(0))), func() { put(expert, from, to) })
	k.Unless(few, func() {
		k.For(k.Add(from, lane), to, N(32), func(j U32) {
			first := k.Cmp("eq", j, from)
			put(j, k.Select(first, from, N(0)), k.Select(first, to, N(0)))
		})
	})
	k.If(k.Cmp("gt", size, N(0)), func() {
		at := k.NewU(from)
		k.chunks(n, lane, func(i U32, inside Pred) {
			mine := k.NewU(N(0))
			k.If(inside, func() {
				v := k.LdU(k.At(chosen, i, 4), 0)
				k.Op("selp.b32", mine, 1, 0, k.Cmp("eq", v, expert))
			})
			below, count := k.rank(mine)
			k.If(k.Cmp("ne", mine, N(0)), func() {
				j := k.Add(at, below)
				k.StU(k.At(k.Pointer("rows"), j, 4), 0, k.Div(i, k.IntParam("k")))
				k.StU(k.At(k.Pointer("slots"), i, 4), 0, j)
			})
			k.Op("add.u32", at, at, count)
		})
	})
}

// chunks runs body for each 32 of n elements, one a lane. All lanes run it; inside says which have an element.
func (k *Kernel) chunks(n, lane U32, body func(i U32, inside Pred)) {
	k.For(N(0), n, N(32), func(base U32) {
		i := k.Add(base, lane)
		body(i, k.Cmp("lt", i, n))
	})
}

// rank returns how many lanes below this one have a flag that is not 0, and how many of all have.
func (k *Kernel) rank(flag U32) (below, all U32) {
	mask := k.u32("vote.sync.ballot.b32", k.Cmp("ne", flag, N(0)), allLanes)
	return k.u32("popc.b32", k.And(mask, k.Special("lanemask_lt"))), k.u32("popc.b32", mask)
}

// warpCount adds the integers of the lanes of a warp.
func (k *Kernel) warpCount(a U32) U32 {
	for mask := 16; mask > 0; mask /= 2 {
		a = k.Add(a, k.u32("shfl.sync.bfly.b32", a, mask, "0x1f", allLanes))
	}
	return a
}

// swapU64 is Swap for 64 bits.
func (k *Kernel) swapU64(a U64, mask int) U64 {
	lo, hi, r := k.U32(), k.U32(), k.U64()
	k.Op("mov.b64", group(lo, hi), a)
	lo = k.u32("shfl.sync.bfly.b32", lo, mask, "0x1f", allLanes)
	hi = k.u32("shfl.sync.bfly.b32", hi, mask, "0x1f", allLanes)
	k.Op("mov.b64", r, group(lo, hi))
	return r
}

// FromLane returns the value of a lane.
func (k *Kernel) FromLane(a F64, lane U32) F64 {
	lo, hi, r := k.U32(), k.U32(), k.F64()
	k.Op("mov.b64", group(lo, hi), a)
	lo = k.u32("shfl.sync.idx.b32", lo, lane, "0x1f", allLanes)
	hi = k.u32("shfl.sync.idx.b32", hi, lane, "0x1f", allLanes)
	k.Op("mov.b64", r, group(lo, hi))
	return r
}

// Exp64 returns the exponential of a number that is not positive, with the operations of exponential in package kernel,
// and so the same bits.
func (k *Kernel) Exp64(x F64) F64 {
	fma := func(a, b, c F64) F64 { return k.f64("fma.rn.f64", a, b, c) }
	mul := func(a, b F64) F64 { return k.f64("mul.rn.f64", a, b) }
	n := k.u32("cvt.rni.s32.f64", mul(x, D(math.Log2E))) // the least integer below its range
	whole := k.f64("neg.f64", k.f64("cvt.rn.f64.s32", n))
	r := fma(whole, D(0.69314718055966295651160180568695068359375), x)
	r = mul(fma(whole, D(0.28235290563031577122588448175013436025525412068e-12), r), D(0.0625))
	p := D(2.4801587301587301587e-5)
	for _, c := range []float64{1.9841269841269841270e-4, 1.3888888888888888889e-3, 8.3333333333333333333e-3,
		4.1666666666666666667e-2, 1.6666666666666666667e-1, 0.5, 1} {
		p = fma(p, r, D(c))
	}
	p = mul(p, r)
	for range 3 {
		p = mul(p, k.DAdd(p, D(2)))
	}
	p = fma(p, k.DAdd(p, D(2)), D(1))
	// p·2^n, in two steps if that is below the normal numbers.
	biased := k.Add(n, N(1023))
	small := k.pred("setp.le.s32", biased, 0)
	zero := k.NewU(N(0))
	high := func(exponent U32) F64 {
		v := k.F64()
		k.Op("mov.b64", v, group(zero, k.Shl(exponent, 20)))
		return v
	}
	y := mul(p, high(k.Select(small, k.Add(biased, N(1022)), biased)))
	y = mul(y, high(k.Select(small, N(1), N(1023))))
	y = k.f64("selp.f64", D(0), y, k.pred("setp.lt.s32", biased, -52))
	return k.f64("selp.f64", x, y, k.pred("setp.nan.f64", x, x)) // n is any then
}
