package main

// Attention in training, over rows that lie one behind the other in documents. A row attends to the rows of its document
// up to itself. Sums run over chunks of 256 rows from the beginning of the document, so that the bits of a document
// depend on nothing else.

// documentParams are the parameters of every kernel of it.
func documentParams(buffers ...Param) []Param {
	return append(buffers, Ptr("bounds"), Int("h"), Int("kv"), Int("d"), Int("window"), Float("scale"), Float("cap"),
		Int("low"), Int("high"), Int("threshold"), Float("keep"), Int("from"))
}

const documentTables = "bounds[T,2] has the first row of a row's document and the one behind its last. cap is the soft cap " +
	"of scores, or 0. low and high are the key of dropout, threshold the bound of its random numbers, keep the factor of " +
	"what it keeps, from the number of its first row; kv is K."

// document is the state of a kernel while it is generated.
type document struct {
	*Kernel
	d, h, kv   U32
	tid        U32
	begin, end U32 // rows of the document
	r          *reduction
}

func newDocument(k *Kernel, row U32) *document {
	t := &document{Kernel: k, d: k.IntParam("d"), h: k.IntParam("h"), kv: k.IntParam("kv"), tid: k.Special("tid.x")}
	at := k.At(k.Pointer("bounds"), row, 8)
	t.begin, t.end = k.LdU(at, 0), k.LdU(at, 4)
	t.r = k.reduction()
	return t
}

// query and key return the vector of a row and a head of a buffer.
func (t *document) query(name string, row, head U32) U64 {
	return t.far(t.Pointer(name), t.Mad(row, t.h, head), t.d)
}

func (t *document) key(name string, row, head U32) U64 {
	return t.far(t.Pointer(name), t.Mad(row, t.kv, head), t.d)
}

// dot returns the product of a vector in shared memory and one in global memory, component by component.
func (t *document) dot(a U32, b U64) F32 {
	sum := t.NewF(F(0))
	t.For(N(0), t.d, N(1), func(i U32) {
		t.FMAInto(sum, t.LdSF(t.Add(a, t.Shl(i, 2)), 0), t.LdF(t.At(b, i, 4), 0))
	})
	return sum
}

// fetch copies a vector to shared memory. A barrier must follow.
func (t *document) fetch(to U32, from U64) {
	t.For(t.tid, t.d, N(chunkLen), func(i U32) { t.StSF(t.Add(to, t.Shl(i, 2)), 0, t.LdF(t.At(from, i, 4), 0)) })
}

// score makes a score of a product, and says how it grows with the product.
func (t *document) score(dot F32) (score, slope F32) {
	score, slope = t.NewF(t.FMul(dot, t.FloatParam("scale"))), t.NewF(t.FloatParam("scale"))
	limit := t.FloatParam("cap")
	t.If(t.CmpF("ne", limit, F(0)), func() {
		v := t.Tanh(t.FDiv(score, limit))
		t.FSet(score, t.FMul(limit, v))
		t.FSet(slope, t.FMul(slope, t.FMA(t.FNeg(v), v, F(1))))
	})
	return score, slope
}

// kept returns the factor of dropout of a row's weight for another row.
func (t *document) kept(row, head, other U32) F32 {
	factor, threshold := t.NewF(F(1)), t.IntParam("threshold")
	t.If(t.Cmp("ne", threshold, N(0)), func() {
		key := t.U64()
		t.Op("mov.b64", key, group(t.IntParam("low"), t.IntParam("high")))
		at := t.Sub(other, t.begin)
		bits := t.random(key, t.Add(t.IntParam("from"), t.Mad(row, t.h, head)), at)
		t.FSet(factor, t.SelectF(t.Cmp("lt", bits, threshold), F(0), t.FloatParam("keep")))
	})
	return factor
}

// random returns the number that decides whether dropout drops a value.
func (k *Kernel) random(key U64, row, at U32) U32 {
	key = k.mix(k.skip(key, row))
	lo, hi := k.U32(), k.U32()
	k.Op("mov.b64", group(lo, hi), k.mix(k.skip(key, k.Shr(at, 1))))
	return k.Select(k.Cmp("eq", k.And(at, N(1)), N(0)), lo, hi)
}

// lowest returns the first row that a row attends to.
func (t *document) lowest(row U32) U32 { return t.Add(t.begin, t.windowFrom(t.Sub(row, t.begin))) }

// weighted adds count vectors of an array, times the weights in shared memory, to a sum in shared memory that this thread
// owns component by component. at returns the vector of index j.
func (t *document) weighted(sum, weights, count U32, at func(j U32) U64, scale F32) {
	t.For(t.tid, t.d, N(chunkLen), func(i U32) {
		to := t.Add(sum, t.Shl(i, 2))
		acc := t.NewF(t.FMul(t.LdSF(to, 0), scale))
		t.For(N(0), count, N(1), func(j U32) {
			t.FMAInto(acc, t.LdSF(t.Add(weights, t.Shl(j, 2)), 0), t.LdF(t.At(at(j), i, 4), 0))
		})
		t.StSF(to, 0, acc)
	})
}

// clearShared sets a vector in shared memory, which this thread owns component by component, to zeros.
func (t *document) clearShared(to U32) {
	t.For(t.tid, t.d, N(chunkLen), func(i U32) { t.StSF(t.Add(to, t.Shl(i, 2)), 0, F(0)) })
}

func documents() *Module {
	m := &Module{Name: "documents", Doc: "Attention in training, over documents one behind the other. " + documentTables}
	documentForward(m)
	documentQueries(m)
	documentKeys(m)
	return m
}

// documentForward adds the kernel of the result.
func documentForward(m *Module) {
	k := m.Kernel("document_attend", "computes head ctaid.y of row ctaid.x of y[T,H,D] from q[T,H,D], k and v[T,K,D], and "+
		"writes the log-sum-exp of its scores to lse[T,H]. "+documentTables, chunkLen,
		documentParams(Ptr("y"), Ptr("lse"), Ptr("q"), Ptr("k"), Ptr("v"))...)
	row, head := k.Special("ctaid.x"), k.Special("ctaid.y")
	t := newDocument(k, row)
	query, weights, sums := k.SharedAt(4*headSize), k.SharedAt(4*chunkLen), k.SharedAt(4*headSize)
	t.fetch(query, t.query("q", row, head))
	t.clearShared(sums)
	k.Barrier()
	group := k.Div(head, k.Div(t.h, t.kv))
	lo := t.lowest(row)
	// Chunks begin at multiples of 256 of the document; those before the window are left out.
	first := k.Add(t.begin, k.And(k.Sub(lo, t.begin), X(0xffffffff-chunkLen+1)))
	state := k.softmax()
	k.For(first, k.Add(row, N(1)), N(chunkLen), func(from U32) {
		other := k.Add(from, t.tid)
		seen := k.AndP(k.Cmp("ge", other, lo), k.Cmp("le", other, row))
		score := k.NewF(Fbits(lowest))
		k.If(seen, func() {
			s, _ := t.score(t.dot(query, t.key("k", other, group)))
			k.FSet(score, s)
		})
		most := t.r.max(score)
		w := k.SelectF(seen, k.Exp(k.FSub(score, most)), F(0))
		old, part := k.joinSoftmax(state, most, t.r.sum(w))
		k.StSF(k.Add(weights, k.Shl(t.tid, 2)), 0, k.FMul(k.FMul(w, part), t.kept(row, head, other)))
		k.Barrier()
		count := k.MinU(N(chunkLen), k.Sub(k.Add(row, N(1)), from))
		t.weighted(sums, weights, count, func(j U32) U64 { return t.key("v", k.Add(from, j), group) }, old)
		k.Barrier()
	})
	y := t.query("y", row, head)
	k.For(t.tid, t.d, N(chunkLen), func(i U32) {
		k.StF(k.At(y, i, 4), 0, k.FDiv(k.LdSF(k.Add(sums, k.Shl(i, 2)), 0), state.total))
	})
	k.If(k.Cmp("eq", t.tid, N(0)), func() {
		k.StF(k.At(k.Pointer("lse"), k.Mad(row, t.h, head), 4), 0, k.FAdd(state.most, k.Log(state.total)))
	})
}

// gradient returns the factor of the value's gradient and the gradient of the product of a query and a key. given is
// what the kernel has in shared memory of the one side: both vectors; the other side's come from global memory.
func (t *document) gradient(dot, along F32, row, head, other U32) (weight, slope F32) {
	score, by := t.score(dot)
	item := t.Mad(row, t.h, head)
	w := t.Exp(t.FSub(score, t.LdF(t.At(t.Pointer("lse"), item, 4), 0)))
	kept := t.kept(row, head, other)
	delta := t.LdF(t.At(t.Pointer("delta"), item, 4), 0)
	ds := t.FMul(w, t.FSub(t.FMul(kept, along), delta))
	return t.FMul(w, kept), t.FMul(ds, by)
}

// documentQueries adds the kernel of the gradient of queries, after document_delta.
func documentQueries(m *Module) {
	m.each("document_delta", "writes the sum over d of dy*y for each of the n rows and heads of [T,H,D] to delta[T,H].",
		[]Param{Ptr("delta"), Ptr("dy"), Ptr("y"), Int("d")}, func(k *Kernel, item U32) {
			d, sum := k.IntParam("d"), k.NewF(F(0))
			dy, y := k.far(k.Pointer("dy"), item, d), k.far(k.Pointer("y"), item, d)
			k.For(N(0), d, N(1), func(i U32) { k.FMAInto(sum, k.LdF(k.At(dy, i, 4), 0), k.LdF(k.At(y, i, 4), 0)) })
			k.store("delta", item, sum)
		})
	k := m.Kernel("document_dq", "computes head ctaid.y of row ctaid.x of dq[T,H,D]; delta is what document_delta wrote. "+
		documentTables, chunkLen, documentParams(Ptr("dq"), Ptr("dy"), Ptr("lse"), Ptr("delta"), Ptr("q"), Ptr("k"),
		Ptr("v"))...)
	row, head := k.Special("ctaid.x"), k.Special("ctaid.y")
	t := newDocument(k, row)
	query, dy := k.SharedAt(4*headSize), k.SharedAt(4*headSize)
	slopes, sums := k.SharedAt(4*chunkLen), k.SharedAt(4*headSize)
	t.fetch(query, t.query("q", row, head))
	t.fetch(dy, t.query("dy", row, head))
	t.clearShared(sums)
	k.Barrier()
	group, lo := k.Div(head, k.Div(t.h, t.kv)), t.lowest(row)
	k.For(lo, k.Add(row, N(1)), N(chunkLen), func(from U32) {
		other, slope := k.Add(from, t.tid), k.NewF(F(0))
		k.If(k.Cmp("le", other, row), func() {
			dot, along := t.dot(query, t.key("k", other, group)), t.dot(dy, t.key("v", other, group))
			_, s := t.gradient(dot, along, row, head, other)
			k.FSet(slope, s)
		})
		k.StSF(k.Add(slopes, k.Shl(t.tid, 2)), 0, slope)
		k.Barrier()
		count := k.MinU(N(chunkLen), k.Sub(k.Add(row, N(1)), from))
		t.weighted(sums, slopes, count, func(j U32) U64 { return t.key("k", k.Add(from, j), group) }, F(1))
		k.Barrier()
	})
	dq := t.query("dq", row, head)
	k.For(t.tid, t.d, N(chunkLen), func(i U32) {
		k.StF(k.At(dq, i, 4), 0, k.LdSF(k.Add(sums, k.Shl(i, 2)), 0))
	})
}

// documentKeys adds the kernel of the gradients of keys and values.
func documentKeys(m *Module) {
	k := m.Kernel("document_dkv", "computes key/value head ctaid.y of row ctaid.x of dk and dv[T,K,D] from the later rows of "+
		"the document, query head by query head. "+documentTables, chunkLen, documentParams(Ptr("dk"), Ptr("dv"),
		Ptr("dy"), Ptr("lse"), Ptr("delta"), Ptr("q"), Ptr("k"), Ptr("v"))...)
	other, group := k.Special("ctaid.x"), k.Special("ctaid.y")
	t := newDocument(k, other)
	key, value := k.SharedAt(4*headSize), k.SharedAt(4*headSize)
	weights, slopes := k.SharedAt(4*chunkLen), k.SharedAt(4*chunkLen)
	sumK, sumV := k.SharedAt(4*headSize), k.SharedAt(4*headSize)
	t.fetch(key, t.key("k", other, group))
	t.fetch(value, t.key("v", other, group))
	t.clearShared(sumK)
	t.clearShared(sumV)
	k.Barrier()
	perKV, window := k.Div(t.h, t.kv), k.IntParam("window")
	// Rows from this one on attend to it, as many as the window has.
	end := k.NewU(t.end)
	k.If(k.Cmp("ne", window, N(0)), func() { k.Op("min.u32", end, end, k.Add(other, window)) })
	k.For(N(0), perKV, N(1), func(member U32) {
		head := k.Mad(group, perKV, member)
		k.For(other, end, N(chunkLen), func(from U32) {
			row, weight, slope := k.Add(from, t.tid), k.NewF(F(0)), k.NewF(F(0))
			k.If(k.Cmp("lt", row, end), func() {
				dot, along := t.dot(key, t.query("q", row, head)), t.dot(value, t.query("dy", row, head))
				w, s := t.gradient(dot, along, row, head, other)
				k.FSet(weight, w)
				k.FSet(slope, s)
			})
			k.StSF(k.Add(weights, k.Shl(t.tid, 2)), 0, weight)
			k.StSF(k.Add(slopes, k.Shl(t.tid, 2)), 0, slope)
			k.Barrier()
			count := k.MinU(N(chunkLen), k.Sub(end, from))
			t.weighted(sumK, slopes, count, func(j U32) U64 { return t.query("q", k.Add(from, j), head) }, F(1))
			t.weighted(sumV, weights, count, func(j U32) U64 { return t.query("dy", k.Add(from, j), head) }, F(1))
			k.Barrier()
		})
	})
	dk, dv := t.key("dk", other, group), t.key("dv", other, group)
	k.For(t.tid, t.d, N(chunkLen), func(i U32) {
		k.StF(k.At(dk, i, 4), 0, k.LdSF(k.Add(sumK, k.Shl(i, 2)), 0))
		k.StF(k.At(dv, i, 4), 0, k.LdSF(k.Add(sumV, k.Shl(i, 2)), 0))
	})
}
