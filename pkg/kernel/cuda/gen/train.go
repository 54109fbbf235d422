package main

import "math"

// Mixtures of experts, and what training adds to inference: dropout, gradients and the optimizer's step.

func training() *Module {
	m := &Module{Name: "train", Doc: "Experts, dropout, gradients and the optimizer's step."}
	m.each("dispatch", "copies row rows[j] of x[T,C] to row j of dst. n is the number of rows of dst times C.",
		[]Param{Ptr("dst"), Ptr("x"), Ptr("rows"), Int("c")}, func(k *Kernel, i U32) {
			k.store("dst", i, k.LdF(k.At(k.Pointer("x"), k.listed(i), 4), 0))
		})
	m.each("combine", "adds row j of x[R,C] times weight[j] to row rows[j] of y[T,C]. The rows must differ, as those of "+
		"one expert do. n is R*C.", []Param{Ptr("y"), Ptr("x"), Ptr("rows"), Ptr("weight"), Int("c")},
		func(k *Kernel, i U32) {
			at := k.At(k.Pointer("y"), k.listed(i), 4)
			w := k.load("weight", k.Div(i, k.IntParam("c")))
			k.StF(at, 0, k.FAdd(k.LdF(at, 0), k.FMul(w, k.load("x", i))))
		})
	k := m.Kernel("embed_grad", "adds row t of dy[T,C] to row ids[t] of dw[V,C], t ascending. A thread has a column.",
		blockThreads, Ptr("dw"), Ptr("dy"), Ptr("ids"), Int("c"), Int("t"))
	i, c := k.Index(), k.IntParam("c")
	k.ReturnIf(k.Cmp("ge", i, c))
	k.For(N(0), k.IntParam("t"), N(1), func(t U32) {
		to := k.At(k.far(k.Pointer("dw"), k.LdU(k.At(k.Pointer("ids"), t, 4), 0), c), i, 4)
		k.StF(to, 0, k.FAdd(k.LdF(to, 0), k.LdF(k.At(k.far(k.Pointer("dy"), t, c), i, 4), 0)))
	})
	m.each("column_sums", "adds the sum over rows of x[T,C], t ascending, to y[C]. n is C.", []Param{Ptr("y"), Ptr("x"),
		Int("t")}, func(k *Kernel, i U32) {
		sum, n := k.NewF(F(0)), k.IntParam("n")
		k.For(N(0), k.IntParam("t"), N(1), func(t U32) {
			k.Op("add.rn.f32", sum, sum, k.LdF(k.At(k.far(k.Pointer("x"), t, n), i, 4), 0))
		})
		k.store("y", i, k.FAdd(k.load("y", i), sum))
	})
	expertGrads(m)
	dropout(m)
	adamW(m)
	normGrads(m)
	zLossGrad(m)
	for _, act := range []string{"silu", "gelu_tanh", "gelu"} {
		actGrad(m, act)
	}
	return m
}

// expertGrads adds the gradients of dispatch and combine, and of sinks.
func expertGrads(m *Module) {
	k := m.Kernel("combine_grad", "writes row rows[j] of dy[T,C] times weight[j] to row j = ctaid.x of dx[R,C], and the sum "+
		"over c of that row of dy times row j of x[R,C] to dots[R].", rowThreads, Ptr("dx"), Ptr("dots"), Ptr("dy"), Ptr("x"),
		Ptr("rows"), Ptr("weight"), Int("c"))
	r, tid, c, j := k.reduction(), k.Special("tid.x"), k.IntParam("c"), k.Special("ctaid.x")
	dx, x := k.row("dx", c), k.row("x", c)
	dy := k.AtRow(k.Pointer("dy"), k.LdU(k.At(k.Pointer("rows"), j, 4), 0), k.Shl(c, 2))
	w, sum := k.load("weight", j), k.NewF(F(0))
	k.For(tid, c, N(rowThreads), func(i U32) {
		d := k.LdF(k.At(dy, i, 4), 0)
		k.FMAInto(sum, d, k.LdF(k.At(x, i, 4), 0))
		k.StF(k.At(dx, i, 4), 0, k.FMul(d, w))
	})
	total := r.sum(sum)
	k.If(k.Cmp("eq", tid, N(0)), func() { k.store("dots", j, total) })

	m.each("sink_grad_rows", "scales datt[T,H,D] by its share, as sink does, and writes the gradient of the sink of each row "+
		"and head to terms[T,H]. att is the output of sink. n is T*H.", []Param{Ptr("datt"), Ptr("terms"), Ptr("att"),
		Ptr("lse"), Ptr("sinks"), Int("h"), Int("d")}, func(k *Kernel, i U32) {
		h, d := k.IntParam("h"), k.IntParam("d")
		head := k.Sub(i, k.Mul(k.Div(i, h), h))
		share := k.FDiv(F(1), k.FAdd(F(1), k.Exp(k.FSub(k.load("sinks", head), k.load("lse", i)))))
		datt, att, along := k.far(k.Pointer("datt"), i, d), k.far(k.Pointer("att"), i, d), k.NewF(F(0))
		k.For(N(0), d, N(1), func(e U32) {
			at := k.At(datt, e, 4)
			v := k.LdF(at, 0)
			k.FMAInto(along, v, k.LdF(k.At(att, e, 4), 0))
			k.StF(at, 0, k.FMul(v, share))
		})
		k.store("terms", i, k.FMul(along, k.FSub(share, F(1))))
	})
}

// listed returns the index in x[T,C] of element i of a list of rows.
func (k *Kernel) listed(i U32) U32 {
	c := k.IntParam("c")
	j := k.Div(i, c)
	return k.Mad(k.LdU(k.At(k.Pointer("rows"), j, 4), 0), c, k.Sub(i, k.Mul(j, c)))
}

// golden is 2^64 divided by the golden ratio: the increment of SplitMix64.
const golden = "0x9e3779b97f4a7c15"

// mix is SplitMix64's finalizer.
func (k *Kernel) mix(x U64) U64 {
	for _, step := range [][2]string{{"30", "0xbf58476d1ce4e5b9"}, {"27", "0x94d049bb133111eb"}, {"31", ""}} {
		high, y := k.U64(), k.U64()
		k.Op("shr.u64", high, x, step[0])
		k.Op("xor.b64", y, x, high)
		if step[1] == "" {
			return y
		}
		x = k.U64()
		k.Op("mul.lo.u64", x, y, step[1])
	}
	return x
}

// skip returns key + (n+1)·golden.
func (k *Kernel) skip(key U64, n U32) U64 {
	wide, r := k.U64(), k.U64()
	k.Op("cvt.u64.u32", wide, n)
	k.Op("add.u64", wide, wide, 1)
	k.Op("mad.lo.u64", r, wide, golden, key)
	return r
}

func dropout(m *Module) {
	m.each("dropout", "drops values of x[T,C] in place, as kernel.Drop does: a value whose random number is below threshold "+
		"becomes 0, another is multiplied by keep. from is the number of the first row; low and high are the key. n is T*C.",
		[]Param{Ptr("x"), Int("low"), Int("high"), Int("threshold"), Float("keep"), Int("from"), Int("c")},
		func(k *Kernel, i U32) {
			key := k.U64()
			k.Op("mov.b64", key, group(k.IntParam("low"), k.IntParam("high")))
			c := k.IntParam("c")
			row := k.Div(i, c)
			at := k.Sub(i, k.Mul(row, c))
			bits := k.random(key, k.Add(k.IntParam("from"), row), at)
			dropped := k.Cmp("lt", bits, k.IntParam("threshold"))
			k.store("x", i, k.SelectF(dropped, F(0), k.FMul(k.load("x", i), k.FloatParam("keep"))))
		})
}

func adamW(m *Module) {
	m.each("adamw", "steps n weights p and their moments m and v by gradient g: x = scale*g, m = beta1*m + rest1*x, "+
		"v = beta2*v + rest2*x*x, p = keep*p - size*m/(sqrt(root*v)+epsilon). rest1 is 1-beta1 and rest2 1-beta2.",
		[]Param{Ptr("p"), Ptr("m"), Ptr("v"), Ptr("g"), Float("scale"), Float("beta1"), Float("rest1"), Float("beta2"),
			Float("rest2"), Float("size"), Float("root"), Float("epsilon"), Float("keep")},
		func(k *Kernel, i U32) {
			f := k.FloatParam
			x := k.FMul(k.load("g", i), f("scale"))
			mean := k.FAdd(k.FMul(k.load("m", i), f("beta1")), k.FMul(x, f("rest1")))
			square := k.FAdd(k.FMul(k.load("v", i), f("beta2")), k.FMul(k.FMul(x, f("rest2")), x))
			step := k.FDiv(k.FMul(mean, f("size")), k.FAdd(k.FSqrt(k.FMul(square, f("root"))), f("epsilon")))
			k.store("m", i, mean)
			k.store("v", i, square)
			k.store("p", i, k.FSub(k.FMul(k.load("p", i), f("keep")), step))
		})
}

// ActGrad returns an activation and its derivative.
func (k *Kernel) ActGrad(name string, x F32) (y, slope F32) {
	switch name {
	case "silu":
		s := k.Sigmoid(x)
		return k.FMul(x, s), k.FMul(s, k.FMA(x, k.FSub(F(1), s), F(1)))
	case "gelu_tanh":
		// With s = sigmoid(2u) = 0.5·(1+tanh u) the derivative is s + x·2s(1-s)·u'.
		square := k.FMul(x, x)
		u := k.FMul(k.FMul(x, k.FAdd(F(1), k.FMul(F(0.044715), square))), F(2*math.Sqrt(2/math.Pi)))
		s := k.Sigmoid(u)
		inner := k.FMul(k.FMA(F(3*0.044715), square, F(1)), F(2*math.Sqrt(2/math.Pi)))
		return k.FMul(x, s), k.FMA(k.FMul(x, k.FMul(s, k.FSub(F(1), s))), inner, s)
	}
	phi := k.FMul(F(0.5), k.FAdd(F(1), k.Erf(k.FMul(x, F(math.Sqrt2/2)))))
	density := k.FMul(k.Exp(k.FMul(F(-0.5), k.FMul(x, x))), F(1/math.Sqrt(2*math.Pi)))
	return k.FMul(x, phi), k.FMA(x, density, phi)
}

func actGrad(m *Module, act string) {
	maybe := func(k *Kernel, name string, i U32, v F32) { // store, unless the buffer is null
		k.If(k.pred("setp.ne.u64", k.Pointer(name), 0), func() { k.store(name, i, v) })
	}
	m.each("activate_grad_"+act, "overwrites dx, which may be dy, and writes act(x) to y unless y is null.",
		[]Param{Ptr("dx"), Ptr("y"), Ptr("dy"), Ptr("x")}, func(k *Kernel, i U32) {
			y, slope := k.ActGrad(act, k.load("x", i))
			dy := k.load("dy", i)
			maybe(k, "y", i, y)
			k.store("dx", i, k.FMul(dy, slope))
		})
	m.each("glu_grad_"+act, "overwrites dgate and dup, one of which may be dy, and writes act(gate)*up to y unless y is null.",
		[]Param{Ptr("dgate"), Ptr("dup"), Ptr("y"), Ptr("dy"), Ptr("gate"), Ptr("up")}, func(k *Kernel, i U32) {
			y, slope := k.ActGrad(act, k.load("gate", i))
			dy, up := k.load("dy", i), k.load("up", i)
			maybe(k, "y", i, k.FMul(y, up))
			k.store("dgate", i, k.FMul(k.FMul(dy, up), slope))
			k.store("dup", i, k.FMul(dy, y))
		})
}
