package main

import "fmt"

// Attention over paged caches of float32 and bytes; strips.go has that over float16. Positions are cut into chunks of
// 256 from position zero. A block computes a chunk: the greatest score, the sum of the weights and the weighted sum of
// the values. A second kernel joins the chunks in order. The result of a row depends on its position and on what the
// cache holds, and on nothing else in the launch.

const (
	chunkLen = 256 // positions of a chunk, and threads of a block
	headSize = 256 // the largest size of a head
)

// cacheType says how a cache stores keys and values.
type cacheType struct {
	name  string
	bytes int                         // of an element
	load  func(k *Kernel, at U64) F32 // without the scale
}

var caches = []cacheType{
	{"f32", 4, func(k *Kernel, at U64) F32 { return k.LdF(at, 0) }},
	{"f16", 2, func(k *Kernel, at U64) F32 { return k.Half(k.LdH(at, 0)) }},
	{"q8", 1, func(k *Kernel, at U64) F32 { return k.FromS(k.LdS8(at, 0)) }},
}

// The tables of a launch. rows[T,2] has for each row the index of its sequence's first page in pages and the row's
// position. pages[P,4] has the addresses of a page's keys [K,D,L], values [K,L,D], scales of keys [K,L] and of
// values, where L is the number of positions of a page.
const tables = "rows[T,2] has the index of the first page of a row's sequence in pages and the row's position; pages[P,4] " +
	"has the addresses of a page's keys[K,D,L], values[K,L,D], scales of keys[K,L] and scales of values."

// place of a position of a row's sequence in its page.
type cell struct {
	page U64 // address of the entry in pages
	at   U32 // position in the page
}

func (k *Kernel) cell(first, pos, length U32) cell {
	page := k.Div(pos, length)
	return cell{k.At(k.Pointer("pages"), k.Add(first, page), 32), k.Sub(pos, k.Mul(page, length))}
}

func (k *Kernel) pointerAt(a U64, off int) U64 {
	r := k.U64()
	k.Op("ld.global.u64", r, place(a, off))
	return r
}

// rowOf returns the first page and the position of a row.
func (k *Kernel) rowOf(row U32) (first, pos U32) {
	at := k.At(k.Pointer("rows"), row, 8)
	return k.LdU(at, 0), k.LdU(at, 4)
}

// windowFrom returns the first position that a position attends to.
func (k *Kernel) windowFrom(pos U32) U32 {
	window, seen := k.IntParam("window"), k.Add(pos, N(1))
	bounded := k.AndP(k.Cmp("gt", window, N(0)), k.Cmp("gt", seen, window))
	return k.Select(bounded, k.Sub(seen, window), N(0))
}

func attention() *Module {
	m := &Module{Name: "attention", Doc: "Attention over paged caches in chunks of 256 positions from position zero. " +
		tables}
	for _, c := range caches {
		store(m, c)
		if c.name == "f16" { // by strips
			continue
		}
		for _, heads := range []int{1, 4} {
			attendPart(m, c, heads)
		}
	}
	attendJoin(m)
	return m
}

// attendPart adds the kernel of a chunk of several query heads that share a key/value head.
func attendPart(m *Module, c cacheType, heads int) {
	k := m.Kernel(fmt.Sprintf("attend_%s_%d", c.name, heads), fmt.Sprintf("computes chunk ctaid.x of row ctaid.z of q[T,H,D] "+
		"for %d query heads from %d*ctaid.y on, which share a key/value head, and writes the greatest score, the sum of the "+
		"weights and the weighted sum of the values to parts[T,H,chunks,2+D]. A chunk that the row does not attend to is "+
		"not written. cap is the soft cap of scores, or 0. D is at most %d; kv is K, length is L.", heads, heads, headSize),
		chunkLen, Ptr("parts"), Ptr("q"), Ptr("rows"), Ptr("pages"), Int("h"), Int("kv"), Int("d"), Int("length"),
		Int("window"), Int("chunks"), Float("scale"), Float("cap"))
	tid := k.Special("tid.x")
	row, head := k.Special("ctaid.z"), k.Mul(k.Special("ctaid.y"), N(heads))
	first, p := k.rowOf(row)
	lo, from := k.windowFrom(p), k.Mul(k.Special("ctaid.x"), N(chunkLen))
	k.ReturnIf(k.OrP(k.Cmp("gt", from, p), k.Cmp("le", k.Add(from, N(chunkLen)), lo)))
	d, h, length := k.IntParam("d"), k.IntParam("h"), k.IntParam("length")
	queries, weights := k.SharedAt(4*heads*headSize), k.SharedAt(4*heads*chunkLen)
	addresses, scales := k.SharedAt(8*chunkLen), k.SharedAt(4*chunkLen)
	sums := k.SharedAt(4 * heads * headSize * chunkLen / 32)
	r := k.reduction()

	item := k.Mad(row, h, head) // of [T,H]
	q := k.At(k.Pointer("q"), k.Mul(item, d), 4)
	k.For(tid, k.Mul(d, N(heads)), N(chunkLen), func(i U32) {
		k.StSF(k.Add(queries, k.Shl(i, 2)), 0, k.LdF(k.At(q, i, 4), 0))
	})
	// The address of this thread's key and value.
	pos := k.Add(from, tid)
	seen := k.AndP(k.Cmp("ge", pos, lo), k.Cmp("le", pos, p))
	group := k.Div(head, k.Div(h, k.IntParam("kv")))
	keyAt, keyScale := k.U64(), k.NewF(F(1))
	k.Op("mov.u64", keyAt, 0)
	k.If(seen, func() {
		cell := k.cell(first, pos, length)
		vector := k.Mad(group, length, cell.at) // of [K,L]
		component := k.Mad(k.Mul(group, d), length, cell.at)
		k.Op("mad.wide.u32", keyAt, component, c.bytes, k.pointerAt(cell.page, 0))
		value := k.At(k.pointerAt(cell.page, 8), k.Mul(vector, d), c.bytes)
		k.Op("st.shared.u64", place(k.Add(addresses, k.Shl(tid, 3)), 0), value)
		if c.name == "q8" {
			k.FSet(keyScale, k.LdF(k.At(k.pointerAt(cell.page, 16), vector, 4), 0))
			k.StSF(k.Add(scales, k.Shl(tid, 2)), 0, k.LdF(k.At(k.pointerAt(cell.page, 24), vector, 4), 0))
		}
	})
	k.Barrier()

	// Scores: a thread has a position. The sum runs over the components in order.
	score := make([]F32, heads)
	for g := range score {
		score[g] = k.NewF(F(0))
	}
	step, queryOf := k.U64(), make([]U32, heads)
	k.Op("mul.wide.u32", step, length, c.bytes)
	for g := range queryOf {
		queryOf[g] = k.NewU(k.Add(queries, k.Shl(k.Mul(d, N(g)), 2)))
	}
	k.If(seen, func() {
		k.For(N(0), d, N(1), func(U32) {
			key := c.load(k, keyAt)
			if c.name == "q8" {
				key = k.FMul(key, keyScale)
			}
			for g := range score {
				k.FMAInto(score[g], k.LdSF(queryOf[g], 0), key)
				k.Op("add.u32", queryOf[g], queryOf[g], 4)
			}
			k.Op("add.u64", keyAt, keyAt, step)
		})
	})
	limit := k.FloatParam("cap")
	capped := k.CmpF("ne", limit, F(0))
	most, total := make([]F32, heads), make([]F32, heads)
	for g := range score {
		s := k.NewF(k.FMul(score[g], k.FloatParam("scale")))
		k.If(capped, func() { k.FSet(s, k.FMul(limit, k.Tanh(k.FDiv(s, limit)))) })
		s = k.SelectF(seen, s, Fbits(0xff800000))
		most[g] = r.max(s)
		w := k.SelectF(seen, k.Exp(k.FSub(s, most[g])), F(0))
		total[g] = r.sum(w)
		k.StSF(k.Add(weights, k.Shl(tid, 2)), 4*chunkLen*g, w)
	}
	k.Barrier()

	// Values: a warp has 32 positions and a lane every 32nd component.
	begin := k.Shl(r.warp, 5)
	start := k.MaxU(begin, k.Sub(k.MaxU(lo, from), from))
	end := k.MinU(k.Add(begin, N(32)), k.Sub(k.Add(p, N(1)), from))
	k.For(r.lane, d, N(32), func(i U32) {
		acc := make([]F32, heads)
		for g := range acc {
			acc[g] = k.NewF(F(0))
		}
		k.For(start, end, N(1), func(j U32) {
			at := k.U64()
			k.Op("ld.shared.u64", at, place(k.Add(addresses, k.Shl(j, 3)), 0))
			v := c.load(k, k.At(at, i, c.bytes))
			if c.name == "q8" {
				v = k.FMul(v, k.LdSF(k.Add(scales, k.Shl(j, 2)), 0))
			}
			for g := range acc {
				k.FMAInto(acc[g], k.LdSF(k.Add(weights, k.Shl(j, 2)), 4*chunkLen*g), v)
			}
		})
		for g := range acc {
			k.StSF(k.Add(sums, k.Shl(k.Mad(r.warp, N(headSize), i), 2)), 4*headSize*r.warps*g, acc[g])
		}
	})
	k.Barrier()
	chunks := k.IntParam("chunks")
	for g := range heads {
		part := k.Mad(k.Add(item, N(g)), chunks, k.Special("ctaid.x"))
		to := k.far(k.Pointer("parts"), part, k.Add(d, N(2)))
		k.For(tid, d, N(chunkLen), func(i U32) {
			acc := k.LdSF(k.Add(sums, k.Shl(i, 2)), 4*headSize*r.warps*g)
			for w := 1; w < r.warps; w++ {
				acc = k.FAdd(acc, k.LdSF(k.Add(sums, k.Shl(i, 2)), 4*headSize*(r.warps*g+w)))
			}
			k.StF(k.At(to, i, 4), 8, acc)
		})
		k.If(k.Cmp("eq", tid, N(0)), func() {
			k.StF(to, 0, most[g])
			k.StF(to, 4, total[g])
		})
	}
}

// attendJoin adds the kernel that joins the chunks of a row and a head.
func attendJoin(m *Module) {
	k := m.Kernel("attend_join", "joins the chunks of head ctaid.x of row ctaid.y in order and writes y[T,H,D]. sinks[H], "+
		"unless it is null, are scores that take part in the softmax without a value.", 128, Ptr("y"), Ptr("parts"),
		Ptr("rows"), Ptr("sinks"), Int("h"), Int("d"), Int("window"), Int("chunks"))
	tid, row, head := k.Special("tid.x"), k.Special("ctaid.y"), k.Special("ctaid.x")
	_, p := k.rowOf(row)
	from, to := k.Shr(k.windowFrom(p), 8), k.Add(k.Shr(p, 8), N(1))
	d := k.IntParam("d")
	item := k.Mad(row, k.IntParam("h"), head)
	size := k.Add(d, N(2))
	base := k.far(k.Pointer("parts"), k.Mul(item, k.IntParam("chunks")), size)
	part := func(c U32) U64 { return k.far(base, c, size) }
	most := k.NewF(Fbits(0xff800000))
	k.For(from, to, N(1), func(c U32) { k.Op("max.f32", most, most, k.LdF(part(c), 0)) })
	sinks, sink := k.Pointer("sinks"), k.NewF(Fbits(0xff800000))
	k.If(k.pred("setp.ne.u64", sinks, 0), func() {
		k.Op("ld.global.f32", sink, place(k.At(sinks, head, 4), 0))
		k.Op("max.f32", most, most, sink)
	})
	total := k.NewF(F(0))
	k.For(from, to, N(1), func(c U32) {
		at := part(c)
		k.FMAInto(total, k.LdF(at, 4), k.Exp(k.FSub(k.LdF(at, 0), most)))
	})
	k.Op("add.rn.f32", total, total, k.Exp(k.FSub(sink, most))) // without a sink exp(-inf) is 0
	y := k.At(k.Pointer("y"), k.Mul(item, d), 4)
	k.For(tid, d, N(128), func(i U32) {
		acc := k.NewF(F(0))
		k.For(from, to, N(1), func(c U32) {
			at := part(c)
			k.FMAInto(acc, k.LdF(k.At(at, i, 4), 8), k.Exp(k.FSub(k.LdF(at, 0), most)))
		})
		k.StF(k.At(y, i, 4), 0, k.FDiv(acc, total))
	})
}

// store adds the kernel that writes keys and values to a cache, with the bits of kernel.KV.Write.
func store(m *Module, c cacheType) {
	k := m.Kernel("store_"+c.name, "writes k[T,K,D] and v[T,K,D] to the cache. A warp takes one vector of k and v: vector "+
		"8*ctaid.x + tid.x/32 of T*K. n is T*K; kv is K, length is L.", blockThreads, Ptr("k"), Ptr("v"), Ptr("rows"),
		Ptr("pages"), Int("kv"), Int("d"), Int("length"), Int("n"))
	tid := k.Special("tid.x")
	vector, lane := k.Add(k.Shl(k.Special("ctaid.x"), 3), k.Shr(tid, 5)), k.And(tid, N(31))
	k.ReturnIf(k.Cmp("ge", vector, k.IntParam("n")))
	kv, d, length := k.IntParam("kv"), k.IntParam("d"), k.IntParam("length")
	row := k.Div(vector, kv)
	group := k.Sub(vector, k.Mul(row, kv))
	first, pos := k.rowOf(row)
	cell := k.cell(first, pos, length)
	keyAt := k.Mad(k.Mul(group, d), length, cell.at)
	place1 := k.Mad(group, length, cell.at)
	for i, name := range []string{"k", "v"} {
		from := k.far(k.Pointer(name), vector, d)
		to := k.pointerAt(cell.page, 8*i)
		back := F32("")
		if c.name == "q8" {
			back = k.byteScale(from, lane, d, k.At(k.pointerAt(cell.page, 16+8*i), place1, 4))
		}
		k.For(lane, d, N(32), func(e U32) {
			x := k.LdF(k.At(from, e, 4), 0)
			at := k.Mad(place1, d, e)
			if name == "k" {
				at = k.Mad(e, length, keyAt)
			}
			to := k.At(to, at, c.bytes)
			switch c.name {
			case "f32":
				k.StF(to, 0, x)
			case "f16":
				k.StH(to, 0, k.HalfOf(x))
			default:
				k.Op("st.global.u8", place(to, 0), k.Bits(k.FAdd(k.FMul(x, back), F(rounder))))
			}
		})
	}
}

// byteScale writes the scale of a vector of bytes and returns the factor that makes its values bytes. A vector whose
// values are all below 1e-30 is stored as zeros.
func (k *Kernel) byteScale(from U64, lane, d U32, to U64) F32 {
	size := k.NewU(N(0))
	k.For(lane, d, N(32), func(e U32) {
		k.Op("max.u32", size, size, k.And(k.LdU(k.At(from, e, 4), 0), X(0x7fffffff)))
	})
	for mask := 16; mask > 0; mask /= 2 {
		size = k.MaxU(size, k.u32("shfl.sync.bfly.b32", size, mask, "0x1f", "0xffffffff"))
	}
	most := k.FromBits(size)
	tiny := k.CmpF("lt", most, F(1e-30))
	k.If(k.Cmp("eq", lane, N(0)), func() { k.StF(to, 0, k.SelectF(tiny, F(0), k.FDiv(most, F(127)))) })
	return k.SelectF(tiny, F(0), k.FDiv(F(127), most))
}
