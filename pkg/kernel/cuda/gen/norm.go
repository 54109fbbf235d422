package main

// Sums over a row. A block of 256 threads computes a row: thread i adds the elements i, i+256, ... in order, and the
// threads' sums are added by a tree. So the order depends on the length of the row only.

const rowThreads = 256

// reduction is shared memory in which the warps of a block exchange their sums.
type reduction struct {
	k     *Kernel
	slots U32
	warps int
	lane  U32
	warp  U32
}

func (k *Kernel) reduction() *reduction {
	tid := k.Special("tid.x")
	return &reduction{k, k.SharedAt(4 * rowThreads / 32), rowThreads / 32, k.And(tid, N(31)), k.Shr(tid, 5)}
}

// join returns the result of an operation over the values of all threads, to all threads. within joins a warp and pair
// joins two values.
func (r *reduction) join(v F32, within func(F32) F32, pair func(a, b F32) F32) F32 {
	k := r.k
	v = within(v)
	k.If(k.Cmp("eq", r.lane, N(0)), func() { k.StSF(k.Add(r.slots, k.Shl(r.warp, 2)), 0, v) })
	k.Barrier()
	parts := make([]F32, r.warps)
	for i := range parts {
		parts[i] = k.LdSF(r.slots, 4*i)
	}
	for n := len(parts) / 2; n > 0; n /= 2 {
		for i := range n {
			parts[i] = pair(parts[i], parts[i+n])
		}
	}
	k.Barrier() // the slots may be written again
	return parts[0]
}

func (r *reduction) sum(v F32) F32 { return r.join(v, r.k.WarpSum, r.k.FAdd) }
func (r *reduction) max(v F32) F32 { return r.join(v, r.k.WarpMax, r.k.FMax) }

// row returns the address of row ctaid.x of a buffer [T,C].
func (k *Kernel) row(name string, c U32) U64 {
	return k.AtRow(k.Pointer(name), k.Special("ctaid.x"), k.Shl(c, 2))
}

// norms returns the kernels of normalisations.
func norms() *Module {
	m := &Module{Name: "norm", Doc: "Normalisations of rows. A block computes a row; the order of its sums depends on " +
		"the length of the row only."}
	k := m.Kernel("rmsnorm", "computes y = x/sqrt(mean(x²)+eps)·g for row ctaid.x of x[T,C].", rowThreads,
		Ptr("y"), Ptr("x"), Ptr("g"), Int("c"), Float("eps"))
	r, tid, c := k.reduction(), k.Special("tid.x"), k.IntParam("c")
	x, y := k.row("x", c), k.row("y", c)
	squares := k.NewF(F(0))
	k.For(tid, c, N(rowThreads), func(i U32) {
		v := k.LdF(k.At(x, i, 4), 0)
		k.FMAInto(squares, v, v)
	})
	inv := k.inverseRoot(r.sum(squares), c)
	g := k.Pointer("g")
	k.For(tid, c, N(rowThreads), func(i U32) {
		v := k.FMul(k.LdF(k.At(x, i, 4), 0), inv)
		k.StF(k.At(y, i, 4), 0, k.FMul(v, k.LdF(k.At(g, i, 4), 0)))
	})
	layernorm(m)
	return m
}

// inverseRoot returns 1/sqrt(sum/c + eps).
func (k *Kernel) inverseRoot(sum F32, c U32) F32 {
	mean := k.FDiv(sum, k.FromU(c))
	return k.FDiv(F(1), k.FSqrt(k.FAdd(mean, k.FloatParam("eps"))))
}

func layernorm(m *Module) {
	k := m.Kernel("layernorm", "computes y = (x-mean)/sqrt(var+eps)·g + b for row ctaid.x of x[T,C]. A null b is zero.",
		rowThreads, Ptr("y"), Ptr("x"), Ptr("g"), Ptr("b"), Int("c"), Float("eps"))
	r, tid, c := k.reduction(), k.Special("tid.x"), k.IntParam("c")
	x, y := k.row("x", c), k.row("y", c)
	total := k.NewF(F(0))
	k.For(tid, c, N(rowThreads), func(i U32) { k.Op("add.rn.f32", total, total, k.LdF(k.At(x, i, 4), 0)) })
	mean := k.FDiv(r.sum(total), k.FromU(c))
	squares := k.NewF(F(0))
	k.For(tid, c, N(rowThreads), func(i U32) {
		v := k.FSub(k.LdF(k.At(x, i, 4), 0), mean)
		k.FMAInto(squares, v, v)
	})
	inv := k.inverseRoot(r.sum(squares), c)
	g, b := k.Pointer("g"), k.Pointer("b")
	none := k.pred("setp.eq.u64", b, 0)
	k.For(tid, c, N(rowThreads), func(i U32) {
		v := k.FMul(k.FSub(k.LdF(k.At(x, i, 4), 0), mean), inv)
		v = k.FMul(v, k.LdF(k.At(g, i, 4), 0))
		k.Unless(none, func() { k.Op("add.rn.f32", v, v, k.LdF(k.At(b, i, 4), 0)) })
		k.StF(k.At(y, i, 4), 0, v)
	})
}
