package main

// Low-rank products of many adapters in two launches. A table has an entry for each 16 rows of a product, and a block
// takes one entry and some columns. Every output has the operations of gemm_f32, scale and add: a chain of fused
// multiply-adds over inputs that are padded with zeros to a multiple of 16, one product, one sum.

const lowRows = 16 // rows of an entry, at most

// The layout of an entry: addresses of x, y, A and B, where its part of u begins in elements, the number of its rows,
// the sizes I, r and N, and the scale.
const (
	lowX     = 0
	lowY     = 8
	lowA     = 16
	lowB     = 24
	lowU     = 32
	lowCount = 36
	lowIn    = 40
	lowRank  = 44
	lowOut   = 48
	lowScale = 52
	lowEntry = 64 // bytes
)

func lowRanks() *Module {
	m := &Module{Name: "lowrank", Doc: "Low-rank products of many adapters: y[T,N] += (s*(x[T,I]*A^T))*B^T for each " +
		"entry of a table. An entry has 64 bytes: the addresses of x, y, A[r,I] and B[N,r], then 32 bits each: where " +
		"u[T,r] begins, in elements, T, I, r, N and the float32 s. T is at most 16. Entries with T = 0 are passed " +
		"over."}
	lowUp(m)
	lowDown(m)
	return m
}

// lowUp adds the kernel of the first half.
func lowUp(m *Module) {
	p := lowProduct{Kernel: m.Kernel("low_up", "computes u = s*(x*A^T) of entry ctaid.y, 16 columns from 16*ctaid.x "+
		"on.", 256, Ptr("table"), Ptr("u")), wide: 1, deep: 64}
	entry := p.entry()
	rank := p.LdU(entry, lowRank)
	scale := p.f32("ld.global.f32", place(entry, lowScale))
	u := p.At(p.Pointer("u"), p.LdU(entry, lowU), 4)
	p.run(p.address(entry, lowX), p.address(entry, lowA), p.LdU(entry, lowIn), rank, func(row, column U32, sum F32) {
		p.StF(p.At(p.far(u, row, rank), column, 4), 0, p.FMul(sum, scale))
	})
}

// lowDown adds the kernel of the second half.
func lowDown(m *Module) {
	p := lowProduct{Kernel: m.Kernel("low_down", "computes y += u*B^T of entry ctaid.y, 64 columns from 64*ctaid.x on.",
		256, Ptr("table"), Ptr("u")), wide: 4, deep: 16}
	entry := p.entry()
	rank, out := p.LdU(entry, lowRank), p.LdU(entry, lowOut)
	u, y := p.At(p.Pointer("u"), p.LdU(entry, lowU), 4), p.address(entry, lowY)
	p.run(u, p.address(entry, lowB), rank, out, func(row, column U32, sum F32) {
		at := p.At(p.far(y, row, out), column, 4)
		p.StF(at, 0, p.FAdd(p.LdF(at, 0), sum))
	})
}

// lowProduct is one of the two kernels: a product of 16 rows with 16·wide columns by 256 threads, each of which has
// wide outputs of a row. Inputs go through shared memory, deep at a time; those of the next turn are read from global
// memory while these are multiplied.
type lowProduct struct {
	*Kernel
	wide, deep int
	rows       U32 // of the entry
}

// entry returns the address of the block's entry. Threads of an empty one end.
func (p *lowProduct) entry() U64 {
	at := p.At(p.Pointer("table"), p.Special("ctaid.y"), lowEntry)
	p.rows = p.LdU(at, lowCount)
	p.ReturnIf(p.Cmp("eq", p.rows, N(0)))
	return at
}

func (p *lowProduct) address(entry U64, offset int) U64 {
	r := p.U64()
	p.Op("ld.global.u64", r, place(entry, offset))
	return r
}

// run computes a[rows,inputs]·b[columns,inputs]ᵀ and calls done with each sum of the thread.
func (p *lowProduct) run(a, b U64, inputs, columns U32, done func(row, column U32, sum F32)) {
	const threads = 256
	stride := p.deep + 4 // of a row in shared memory, in elements: rows begin in different banks
	left := p.Mul(p.Special("ctaid.x"), N(16*p.wide))
	p.ReturnIf(p.Cmp("ge", left, columns)) // all threads of the block
	tid := p.Special("tid.x")
	row, column := p.Shr(tid, 4), p.And(tid, N(15))
	sharedA, sharedB := p.SharedAt(4*lowRows*stride), p.SharedAt(4*16*p.wide*stride)

	// Thread tid copies input tid%deep of the rows tid/deep, tid/deep+256/deep, ... of both tiles.
	input, first, each := p.Rem(tid, N(p.deep)), p.Div(tid, N(p.deep)), threads/p.deep
	nextA, nextB := make([]F32, lowRows/each), make([]F32, 16*p.wide/each)
	read := func(next []F32, from U64, row, limit, at U32) {
		in := p.Add(at, input)
		for i, v := range next {
			p.FSet(v, F(0))
			r := p.Add(row, N(i*each))
			p.If(p.AndP(p.Cmp("lt", r, limit), p.Cmp("lt", in, inputs)), func() {
				p.Op("ld.global.f32", v, place(p.At(p.far(from, r, inputs), in, 4), 0))
			})
		}
	}
	readBoth := func(at U32) {
		read(nextA, a, first, p.rows, at)
		read(nextB, b, p.Add(left, first), columns, at)
	}
	write := func(next []F32, to U32) {
		to = p.Add(to, p.Shl(p.Mad(first, N(stride), input), 2))
		for i, v := range next {
			p.StSF(to, 4*i*each*stride, v)
		}
	}
	for _, next := range [][]F32{nextA, nextB} {
		for i := range next {
			next[i] = p.F32()
		}
	}
	sums := make([]F32, p.wide)
	for j := range sums {
		sums[j] = p.NewF(F(0))
	}
	mine := p.Cmp("lt", row, p.rows)
	fromA := p.Add(sharedA, p.Mul(row, N(4*stride)))
	fromB := p.Add(sharedB, p.Mul(column, N(4*stride)))
	readBoth(N(0))
	p.For(N(0), inputs, N(p.deep), func(at U32) {
		write(nextA, sharedA)
		write(nextB, sharedB)
		p.Barrier()
		readBoth(p.Add(at, N(p.deep)))
		p.If(mine, func() {
			padded := p.And(p.Add(p.Sub(inputs, at), N(15)), X(0xfffffff0))
			p.For(N(0), p.MinU(padded, N(p.deep)), N(16), func(step U32) {
				atA, atB := p.Add(fromA, p.Shl(step, 2)), p.Add(fromB, p.Shl(step, 2))
				for i := 0; i < 16; i += 4 {
					x := p.four(atA, 4*i)
					for j := range sums {
						for n, w := range p.four(atB, 4*(16*j*stride+i)) {
							p.FMAInto(sums[j], x[n], w)
						}
					}
				}
			})
		})
		p.Barrier()
	})
	p.If(mine, func() {
		for j, sum := range sums {
			c := p.Add(left, p.Add(column, N(16*j)))
			p.If(p.Cmp("lt", c, columns), func() { done(row, c, sum) })
		}
	})
}

// four reads four floats of shared memory.
func (p *lowProduct) four(at U32, offset int) (v [4]F32) {
	for i := range v {
		v[i] = p.F32()
	}
	p.Op("ld.shared.v4.f32", group(v[:]...), place(at, offset))
	return v
}
