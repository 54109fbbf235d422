package main

// Attention over caches of float16 by mma. A strip is 16 pairs of a row and a query head that share a key/value head:
// the rows of operand A. DESIGN.md says why a row has the same bits in any strip.

const (
	stripPairs  = 16
	unitLen     = 64   // positions whose softmax is joined as one
	sliceDims   = 32   // components of keys or values that are copied at a time, for a unit
	sliceBytes  = 4096 // unitLen x sliceDims x 2
	stripThread = 128
	floor       = -1e30 // below every score: the greatest score of no positions
)

// stripTables describes the tables of a launch over strips.
const stripTables = "strips[N,8] has for each strip the index of its sequence's first page in pages, the position " +
	"of the span's first row, that row's number in q[T,H,D], the strip's first pair and the number of pairs of the " +
	"span: pair i is of row i/G and query head i%G of the G that share a key/value head. pages is that of the other " +
	"kernels. queries is what strip_queries wrote. cap is the soft cap of scores, or 0; kv is K, length is L."

func strips() *Module {
	m := &Module{Name: "strips", Doc: "Attention over caches of float16 by mma. " + stripTables}
	stripQueries(m)
	stripSplit(m)
	stripJoin(m)
	for _, dims := range []int{128, 256} {
		stripWhole(m, dims)
	}
	return m
}

// strip is the state of a kernel while it is generated.
type strip struct {
	*Kernel
	warp, lane, group, quad U32 // lane = 4·group + quad
	d, h, kv, perKV, length U32
	steps, slices           U32 // of 16 and 32 components
	head                    U32 // key/value head

	entry             U64 // of the strip in its table
	first, pos0, row0 U32
	pair0, pairs      U32
	some              Pred   // the strip has pairs
	rowA, rowB        U32    // rows of the strip within its span, the last inclusive
	minP, maxP        U32    // positions of these rows
	minLo, maxLo      U32    // the first positions that they attend to
	row               [2]U32 // of this thread's pairs, group and group+8; past the last: 2^32-1
	lo, seen          [2]U32 // first position that the pair attends to, and how many follow it
	queries           U64    // of this lane
	scale             [2]F32
	start             U32 // first position of the unit
	score             [8][4]F32
	hi, low           [4][4]U32 // the weights as operands A

	keyRow, valueRow U32    // where ldmatrix reads, within a slice
	keyLine          [4]U32 // offsets of the lines of 8 positions
	valueLine        [2]U32 // and of 8 components
}

// newStrip reads the parameters that all kernels have.
func newStrip(k *Kernel) *strip {
	s := &strip{Kernel: k}
	tid := k.Special("tid.x")
	s.warp, s.lane = k.Shr(tid, 5), k.And(tid, N(31))
	s.group, s.quad = k.Shr(s.lane, 2), k.And(s.lane, N(3))
	s.d, s.h, s.kv = k.IntParam("d"), k.IntParam("h"), k.IntParam("kv")
	s.perKV = k.Div(s.h, s.kv)
	s.steps, s.slices = k.Shr(k.Add(s.d, N(15)), 4), k.Shr(k.Add(s.d, N(sliceDims-1)), 5)
	s.head = k.Special("ctaid.y")
	return s
}

// take reads the entry of a strip.
func (s *strip) take(index U32) {
	s.entry = s.At(s.Pointer("strips"), index, 32)
	s.first, s.pos0, s.row0 = s.LdU(s.entry, 0), s.LdU(s.entry, 4), s.LdU(s.entry, 8)
	s.pair0, s.pairs = s.LdU(s.entry, 12), s.LdU(s.entry, 16)
	s.some = s.Cmp("lt", s.pair0, s.pairs)
	s.rowA = s.Div(s.pair0, s.perKV)
	s.rowB = s.Div(s.MinU(s.Add(s.pair0, N(stripPairs-1)), s.Sub(s.pairs, N(1))), s.perKV)
}

// positions computes what the strip's rows attend to.
func (s *strip) positions() {
	s.minP, s.maxP = s.Add(s.pos0, s.rowA), s.Add(s.pos0, s.rowB)
	s.minLo, s.maxLo = s.windowFrom(s.minP), s.windowFrom(s.maxP)
	for i := range s.row {
		pair := s.Add(s.pair0, s.Add(s.group, N(8*i)))
		inside := s.Cmp("lt", pair, s.pairs)
		row := s.Div(pair, s.perKV)
		p := s.Add(s.pos0, row)
		lo := s.windowFrom(p)
		s.row[i] = s.Select(inside, row, X(0xffffffff))
		s.lo[i] = s.Select(inside, lo, X(0x7fffffff))
		s.seen[i] = s.Select(inside, s.Sub(p, lo), N(0))
	}
}

// queriesOf returns the memory of a strip's queries: for each step of 16 components the upper and the lower halves as
// operands A, 16 bytes a lane, and then the scale of each pair.
func (s *strip) queriesOf(index U32) U64 {
	return s.far(s.Pointer("queries"), s.Mad(index, s.kv, s.head), s.Mad(s.steps, N(256), N(stripPairs)))
}

// lanes computes where ldmatrix reads, and opens the queries.
func (s *strip) lanes(index U32) {
	r, block := s.And(s.lane, N(7)), s.Shr(s.lane, 3)
	low, high := s.And(block, N(1)), s.Shr(block, 1)
	line := s.Mad(low, N(8), r)
	s.keyRow, s.valueRow = s.Shl(line, 7), s.Shl(line, 6)
	for i := range s.keyLine {
		s.keyLine[i] = s.Shl(s.Xor(s.Add(high, N(2*i)), r), 4)
	}
	for i := range s.valueLine {
		s.valueLine[i] = s.Shl(s.Xor(s.Add(high, N(2*i)), s.Shr(r, 1)), 4)
	}
	base := s.queriesOf(index)
	s.queries = s.At(base, s.lane, 16)
	scales := s.At(s.At(base, s.steps, 1024), s.group, 4)
	s.scale = [2]F32{s.LdF(scales, 0), s.LdF(scales, 32)}
	for i := range s.score {
		for j := range s.score[i] {
			s.score[i][j] = s.F32()
		}
	}
	for i := range s.hi {
		for j := range s.hi[i] {
			s.hi[i][j], s.low[i][j] = s.U32(), s.U32()
		}
	}
}

// stripQueries adds the kernel that prepares operands A. A query is scaled by a power of two, so that its greatest
// component is between 2^14 and 2^15, and split into two float16, which keep 22 bits.
func stripQueries(m *Module) {
	k := m.Kernel("strip_queries", "writes the queries of strip ctaid.x and key/value head ctaid.y in the order of operand "+
		"A, each as two float16, and the scale of their scores. Pairs that do not exist are zeros.", 32, Ptr("queries"),
		Ptr("q"), Ptr("strips"), Int("h"), Int("kv"), Int("d"), Float("scale"))
	s := newStrip(k)
	index := k.Special("ctaid.x")
	s.take(index)
	var from [2]U64
	var inside [2]Pred
	for i := range from {
		pair := k.Add(s.pair0, k.Add(s.group, N(8*i)))
		inside[i] = k.Cmp("lt", pair, s.pairs)
		row := k.Div(pair, s.perKV)
		head := k.Mad(s.head, s.perKV, k.Sub(pair, k.Mul(row, s.perKV)))
		from[i] = k.far(k.Pointer("q"), k.Mad(k.Add(s.row0, row), s.h, head), s.d)
	}
	to := s.queriesOf(index)
	// load returns the components of a step that this lane has: register r of operand A has row group+8·(r%2) and
	// components from 2·quad+8·(r/2) on.
	load := func(step U32) (x [4][2]F32) {
		for r := range x {
			for e := range x[r] {
				c := k.Add(k.Mad(step, N(16), N(8*(r/2)+e)), k.Shl(s.quad, 1))
				x[r][e] = k.NewF(F(0))
				k.If(k.AndP(inside[r%2], k.Cmp("lt", c, s.d)), func() {
					k.Op("ld.global.f32", x[r][e], place(k.At(from[r%2], c, 4), 0))
				})
			}
		}
		return x
	}
	most := [2]U32{k.NewU(N(0)), k.NewU(N(0))}
	k.For(N(0), s.steps, N(1), func(step U32) {
		for r, pair := range load(step) {
			for _, x := range pair {
				k.Op("max.u32", most[r%2], most[r%2], k.And(k.Bits(x), X(0x7fffffff)))
			}
		}
	})
	var factor [2]F32
	for i := range most {
		for mask := 1; mask < 4; mask *= 2 {
			most[i] = k.MaxU(most[i], k.u32("shfl.sync.bfly.b32", most[i], mask, "0x1f", "0xffffffff"))
		}
		exponent := k.MaxU(k.Shr(most[i], 23), N(15)) // of the greatest component, plus 127
		factor[i] = k.FromBits(k.Shl(k.Sub(N(127+127+14), exponent), 23))
		back := k.FromBits(k.Shl(k.Sub(exponent, N(14)), 23))
		k.If(k.Cmp("eq", s.quad, N(0)), func() {
			at := k.At(k.At(to, s.steps, 1024), k.Add(s.group, N(8*i)), 4)
			k.StF(at, 0, k.FMul(k.FloatParam("scale"), back))
		})
	}
	k.For(N(0), s.steps, N(1), func(step U32) {
		var hi, lo [4]U32
		for r, pair := range load(step) {
			hi[r], lo[r] = k.halves(k.FMul(pair[0], factor[r%2]), k.FMul(pair[1], factor[r%2]))
		}
		at := k.At(k.At(to, step, 1024), s.lane, 16)
		k.Op("st.global.v4.u32", place(at, 0), group(hi[:]...))
		k.Op("st.global.v4.u32", place(at, 512), group(lo[:]...))
	})
}

// halves rounds two floats to float16, and what that leaves of them. The first is in the lower half of a word.
func (k *Kernel) halves(a, b F32) (hi, lo U32) {
	hi = k.u32("cvt.rn.f16x2.f32", b, a)
	x, y := k.H16(), k.H16()
	k.Op("mov.b32", group(x, y), hi)
	return hi, k.u32("cvt.rn.f16x2.f32", k.FSub(b, k.Half(y)), k.FSub(a, k.Half(x)))
}
