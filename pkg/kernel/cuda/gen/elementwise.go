package main

// blockThreads is the number of threads of a block of an elementwise kernel: one element each.
const blockThreads = 256

// each adds a kernel with one thread for each of n elements.
func (m *Module) each(name, doc string, params []Param, body func(k *Kernel, i U32)) {
	k := m.Kernel(name, doc, blockThreads, append(params, Int("n"))...)
	i := k.Index()
	k.ReturnIf(k.Cmp("ge", i, k.IntParam("n")))
	body(k, i)
}

// load reads element i of the buffer of a parameter.
func (k *Kernel) load(name string, i U32) F32 { return k.LdF(k.At(k.Pointer(name), i, 4), 0) }

// store writes element i of the buffer of a parameter.
func (k *Kernel) store(name string, i U32, v F32) { k.StF(k.At(k.Pointer(name), i, 4), 0, v) }

// elementwise returns the kernels that treat every element alone.
func elementwise() *Module {
	m := &Module{Name: "elementwise", Doc: "Operations on elements that stand alone. A thread computes one element."}
	m.each("fill", "sets n elements of y to a value.", []Param{Ptr("y"), Float("value")}, func(k *Kernel, i U32) {
		k.store("y", i, k.FloatParam("value"))
	})
	m.each("copy", "computes y = x.", []Param{Ptr("y"), Ptr("x")}, func(k *Kernel, i U32) {
		k.store("y", i, k.load("x", i))
	})
	m.each("add", "computes y += x.", []Param{Ptr("y"), Ptr("x")}, func(k *Kernel, i U32) {
		k.store("y", i, k.FAdd(k.load("y", i), k.load("x", i)))
	})
	m.each("scale", "computes x *= by.", []Param{Ptr("x"), Float("by")}, func(k *Kernel, i U32) {
		k.store("x", i, k.FMul(k.load("x", i), k.FloatParam("by")))
	})
	m.each("shift", "computes y = x + by.", []Param{Ptr("y"), Ptr("x"), Float("by")}, func(k *Kernel, i U32) {
		k.store("y", i, k.FAdd(k.FloatParam("by"), k.load("x", i)))
	})
	for _, act := range []string{"silu", "gelu_tanh", "gelu"} {
		m.each("activate_"+act, "computes y = act(x).", []Param{Ptr("y"), Ptr("x")}, func(k *Kernel, i U32) {
			k.store("y", i, k.Act(act, k.load("x", i)))
		})
		m.each("glu_"+act, "computes y = act(gate)·up.", []Param{Ptr("y"), Ptr("gate"), Ptr("up")},
			func(k *Kernel, i U32) {
				k.store("y", i, k.FMul(k.Act(act, k.load("gate", i)), k.load("up", i)))
			})
	}
	m.each("softcap", "computes x = limit·tanh(x/limit).", []Param{Ptr("x"), Float("limit")},
		func(k *Kernel, i U32) {
			limit := k.FloatParam("limit")
			k.store("x", i, k.FMul(limit, k.Tanh(k.FDiv(k.load("x", i), limit))))
		})
	m.each("softcap_grad", "multiplies dy by 1 - (y/limit)², where y is the output of softcap.",
		[]Param{Ptr("dy"), Ptr("y"), Float("limit")}, func(k *Kernel, i U32) {
			v := k.FDiv(k.load("y", i), k.FloatParam("limit"))
			k.store("dy", i, k.FMul(k.load("dy", i), k.FMA(k.FNeg(v), v, F(1))))
		})
	gates(m)
	m.each("sink", "multiplies each element of att[T,H,D] by 1/(1+exp(sink-lse)), the share of the scores in a softmax "+
		"that the head's sink takes part in. n is T·H·D.",
		[]Param{Ptr("att"), Ptr("lse"), Ptr("sinks"), Int("h"), Int("d")}, func(k *Kernel, i U32) {
			row := k.Div(i, k.IntParam("d"))
			sink, lse := k.load("sinks", k.Rem(row, k.IntParam("h"))), k.load("lse", row)
			share := k.FDiv(F(1), k.FAdd(F(1), k.Exp(k.FSub(sink, lse))))
			k.store("att", i, k.FMul(k.load("att", i), share))
		})
	rotate(m)
	bfloat16(m)
	return m
}

// gates adds the gate of GPT-OSS.
func gates(m *Module) {
	m.each("clamped_gate", "computes g = min(gate, limit)·alpha and u = (clamp(up, ±limit)+1)/alpha.",
		[]Param{Ptr("g"), Ptr("u"), Ptr("gate"), Ptr("up"), Float("alpha"), Float("limit")}, func(k *Kernel, i U32) {
			alpha, limit := k.FloatParam("alpha"), k.FloatParam("limit")
			k.store("g", i, k.FMul(k.FMin(k.load("gate", i), limit), alpha))
			up := k.FMin(k.FMax(k.load("up", i), k.FNeg(limit)), limit)
			k.store("u", i, k.FDiv(k.FAdd(up, F(1)), alpha))
		})
	m.each("clamped_gate_grad", "takes the gradients of g and u in place to those of gate and up.",
		[]Param{Ptr("dg"), Ptr("du"), Ptr("gate"), Ptr("up"), Float("alpha"), Float("limit")},
		func(k *Kernel, i U32) {
			alpha, limit := k.FloatParam("alpha"), k.FloatParam("limit")
			dg := k.FMul(k.load("dg", i), alpha)
			k.store("dg", i, k.SelectF(k.CmpF("gt", k.load("gate", i), limit), F(0), dg))
			du, up := k.FDiv(k.load("du", i), alpha), k.load("up", i)
			k.store("du", i, k.SelectF(k.CmpF("gt", k.FAbs(up), limit), F(0), du))
		})
}

// rotate adds the rotary embedding. Its angles come as tables of one row for each row of x, which the host computes in
// float64.
func rotate(m *Module) {
	params := []Param{Ptr("x"), Ptr("sin"), Ptr("cos"), Int("h"), Int("d"), Int("half"), Float("direction")}
	for _, pairs := range []bool{false, true} {
		name, doc := "rotate_halves", "components i and i+half"
		if pairs {
			name, doc = "rotate_pairs", "components 2i and 2i+1"
		}
		m.each(name, "rotates "+doc+" of each head of x[T,H,D] by the angles whose sines and cosines are in "+
			"sin[T,half] and cos[T,half]. direction is 1, or -1 for the gradient. n is T·H·half.", params,
			func(k *Kernel, i U32) {
				half, d := k.IntParam("half"), k.IntParam("d")
				pair, head := k.Rem(i, half), k.Div(i, half)
				angle := k.Mad(k.Div(head, k.IntParam("h")), half, pair)
				sin, cos := k.FMul(k.load("sin", angle), k.FloatParam("direction")), k.load("cos", angle)
				first, second := k.Mad(head, d, pair), U32("")
				if pairs {
					first = k.Add(first, pair)
					second = k.Add(first, N(1))
				} else {
					second = k.Add(first, half)
				}
				x := k.Pointer("x")
				at, to := k.At(x, first, 4), k.At(x, second, 4)
				a, b := k.LdF(at, 0), k.LdF(to, 0)
				k.StF(at, 0, k.FSub(k.FMul(a, cos), k.FMul(b, sin)))
				k.StF(to, 0, k.FAdd(k.FMul(a, sin), k.FMul(b, cos)))
			})
	}
}

// bfloat16 adds the conversions between float32 and bfloat16.
func bfloat16(m *Module) {
	m.each("round_bf16", "rounds x in place to bfloat16, to nearest even, and writes the bits to h.",
		[]Param{Ptr("h"), Ptr("x")}, func(k *Kernel, i U32) {
			at := k.At(k.Pointer("x"), i, 4)
			word := k.RoundBF16(k.LdF(at, 0))
			k.Op("st.global.u16", place(k.At(k.Pointer("h"), i, 2), 0), k.low16(word))
			k.StU(at, 0, k.Shl(word, 16))
		})
	m.each("widen_bf16", "converts the bfloat16 bits h to x.", []Param{Ptr("x"), Ptr("h")}, func(k *Kernel, i U32) {
		k.StU(k.At(k.Pointer("x"), i, 4), 0, k.Shl(k.LdU16(k.At(k.Pointer("h"), i, 2), 0), 16))
	})
}

// RoundBF16 returns the bits of the nearest bfloat16 in the low half of a word. A NaN keeps its sign and the high
// bits of its fraction and becomes quiet, as in package tensor.
func (k *Kernel) RoundBF16(x F32) U32 {
	bits := k.Bits(x)
	odd := k.And(k.Shr(bits, 16), N(1))
	rounded := k.Shr(k.Add(k.Add(bits, X(0x7fff)), odd), 16)
	quiet := k.Or(k.Shr(bits, 16), X(0x40))
	return k.Select(k.pred("setp.nan.f32", x, x), quiet, rounded)
}

// low16 returns the low half of a word.
func (k *Kernel) low16(w U32) H16 {
	lo, hi := k.H16(), k.H16()
	k.Op("mov.b32", group(lo, hi), w)
	return lo
}
