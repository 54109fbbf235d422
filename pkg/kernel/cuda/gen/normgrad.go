package main

// normGrads adds the gradients of norms. A block has a row of dx; a thread has a column of dg and db, whose sums run
// over the rows in order, with the moments that the first kernel leaves in stats.
func normGrads(m *Module) {
	normGrad(m, "rmsnorm_grad", false)
	normGrad(m, "layernorm_grad", true)
	k := m.Kernel("norm_grad_columns", "adds the sum over rows of dy*(x-mean)*inv to dg[C], and that of dy to db[C] unless "+
		"db is null. stats[T,2] has the mean (0 for rmsnorm) and the inverse of each row.", blockThreads, Ptr("dg"),
		Ptr("db"), Ptr("dy"), Ptr("x"), Ptr("stats"), Int("t"), Int("c"))
	i, c := k.Index(), k.IntParam("c")
	k.ReturnIf(k.Cmp("ge", i, c))
	gain, bias := k.NewF(F(0)), k.NewF(F(0))
	k.For(N(0), k.IntParam("t"), N(1), func(t U32) {
		dy := k.LdF(k.At(k.far(k.Pointer("dy"), t, c), i, 4), 0)
		stats := k.At(k.Pointer("stats"), t, 8)
		n := k.FSub(k.LdF(k.At(k.far(k.Pointer("x"), t, c), i, 4), 0), k.LdF(stats, 0))
		k.FMAInto(gain, dy, k.FMul(n, k.LdF(stats, 4)))
		k.Op("add.rn.f32", bias, bias, dy)
	})
	at := k.At(k.Pointer("dg"), i, 4)
	k.StF(at, 0, k.FAdd(k.LdF(at, 0), gain))
	db := k.Pointer("db")
	k.If(k.pred("setp.ne.u64", db, 0), func() {
		at := k.At(db, i, 4)
		k.StF(at, 0, k.FAdd(k.LdF(at, 0), bias))
	})
}

// normGrad adds dx += inv·(e - mean(e) - n·mean(e·n)), where n = (x-mean)·inv and e = dy·g; without centre both means
// of x and e are zero.
func normGrad(m *Module, name string, centre bool) {
	k := m.Kernel(name, "adds the gradient of row ctaid.x of x[T,C] to dx, unless dx is null, and writes the row's mean and "+
		"inverse to stats[T,2].", rowThreads, Ptr("dx"), Ptr("stats"), Ptr("dy"), Ptr("x"), Ptr("g"), Int("c"),
		Float("eps"))
	r, tid, c := k.reduction(), k.Special("tid.x"), k.IntParam("c")
	x, dy, g := k.row("x", c), k.row("dy", c), k.Pointer("g")
	count := k.FromU(c)
	at := func(row U64, i U32) F32 { return k.LdF(k.At(row, i, 4), 0) }
	mean := F(0)
	if centre {
		total := k.NewF(F(0))
		k.For(tid, c, N(rowThreads), func(i U32) { k.Op("add.rn.f32", total, total, at(x, i)) })
		mean = k.FDiv(r.sum(total), count)
	}
	squares := k.NewF(F(0))
	k.For(tid, c, N(rowThreads), func(i U32) {
		v := k.FSub(at(x, i), mean)
		k.FMAInto(squares, v, v)
	})
	inv := k.inverseRoot(r.sum(squares), c)
	k.If(k.Cmp("eq", tid, N(0)), func() {
		to := k.At(k.Pointer("stats"), k.Special("ctaid.x"), 8)
		k.StF(to, 0, mean)
		k.StF(to, 4, inv)
	})
	k.ReturnIf(k.pred("setp.eq.u64", k.Pointer("dx"), 0))
	terms := func(i U32) (n, e F32) {
		return k.FMul(k.FSub(at(x, i), mean), inv), k.FMul(at(dy, i), at(g, i))
	}
	sumE, sumEN := k.NewF(F(0)), k.NewF(F(0))
	k.For(tid, c, N(rowThreads), func(i U32) {
		n, e := terms(i)
		k.Op("add.rn.f32", sumE, sumE, e)
		k.FMAInto(sumEN, e, n)
	})
	meanE := F(0)
	if centre {
		meanE = k.FDiv(r.sum(sumE), count)
	}
	meanEN := k.FDiv(r.sum(sumEN), count)
	dx := k.row("dx", c)
	k.For(tid, c, N(rowThreads), func(i U32) {
		n, e := terms(i)
		d := k.FSub(k.FSub(e, meanE), k.FMul(n, meanEN))
		to := k.At(dx, i, 4)
		k.StF(to, 0, k.FMA(inv, d, k.LdF(to, 0)))
	})
}

// zLossGrad adds the gradient of the z-loss. With l the log-sum-exp of a row, the caller computes more = 2·z·l.
func zLossGrad(m *Module) {
	m.each("zloss_grad", "multiplies row t of dlogits[T,V] by factors[t,0] = 1+more and adds factors[t,1] = scale*more to its "+
		"target's element. A row with a negative target stays. n is T*V.", []Param{Ptr("dlogits"), Ptr("factors"),
		Ptr("targets"), Int("v")}, func(k *Kernel, i U32) {
		row := k.Div(i, k.IntParam("v"))
		target := k.LdU(k.At(k.Pointer("targets"), row, 4), 0)
		k.ReturnIf(k.pred("setp.lt.s32", target, 0))
		factors := k.At(k.Pointer("factors"), row, 8)
		d := k.FMul(k.load("dlogits", i), k.LdF(factors, 0))
		mine := k.Cmp("eq", k.Sub(i, k.Mul(row, k.IntParam("v"))), target)
		k.store("dlogits", i, k.SelectF(mine, k.FAdd(d, k.LdF(factors, 4)), d))
	})
}
