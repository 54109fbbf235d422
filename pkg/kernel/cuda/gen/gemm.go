package main

import "fmt"

const depth = 16 // inputs of a step of gemm

// gemm adds C[M,N] = A[M,K]·B[N,K]^T + bias[N] in float32, with any strides of A and B, so that it is the product of
// dense weights and both of its gradients. Every output is one chain of fused multiply-adds, k ascending, so its bits
// depend on no other row or column and not on the tile. rows is the height of the tile; its width is 64.
func gemm(m *Module, rows int, round bool) {
	const columns, threads = 64, 256
	high, wide := rows/16, columns/16 // outputs of a thread: high x wide
	name, doc := fmt.Sprintf("gemm_f32_%d", rows), ""
	if round {
		name, doc = fmt.Sprintf("gemm_bf16_%d", rows), "Both operands are rounded to bfloat16."
	}
	k := m.Kernel(name, fmt.Sprintf("computes c[M,N] = sum over k of a[m*arow+k*acol]*b[n*brow+k*bcol], k ascending, plus "+
		"bias[n]; the sum starts from c if add is 1. Rows of c are ldc apart. A block has %d columns from %d*ctaid.x on and "+
		"%d rows from %d*ctaid.y on. A null bias is zero. Strides are in elements. %s %s", columns, columns, rows, rows,
		groupDoc("c", "a", "b"), doc), threads, Ptr("c"), Ptr("a"), Ptr("b"), Ptr("bias"), Ptr("groups"), Int("m"), Int("n"),
		Int("k"), Int("arow"), Int("acol"), Int("brow"), Int("bcol"), Int("ldc"), Int("add"))
	tid := k.Special("tid.x")
	sharedA, sharedB := k.SharedAt(4*depth*(rows+4)), k.SharedAt(4*depth*(columns+4))
	m0, n0 := k.Mul(k.Special("ctaid.y"), N(rows)), k.Mul(k.Special("ctaid.x"), N(columns))
	of := k.span("m")
	rowsM := k.Sub(of.to, of.from)
	k.ReturnIf(k.Cmp("ge", m0, rowsM))
	arow, ldc := k.IntParam("arow"), k.IntParam("ldc")
	a, b, c := k.far(k.Pointer("a"), of.from, arow), k.operand("b", of), k.far(k.Pointer("c"), of.from, ldc)
	limit := k.IntParam("k")
	fill := func(to U32, base U64, first, count, row, col U32, size int, at U32) {
		// Thread tid copies input tid%16 of the rows tid/16, tid/16+16, ... of the tile.
		step := k.And(tid, N(depth-1))
		in := k.Add(at, step)
		for i := 0; i < size; i += threads / depth {
			r := k.Add(k.Shr(tid, 4), N(i))
			v := k.NewF(F(0))
			inside := k.AndP(k.Cmp("lt", k.Add(first, r), count), k.Cmp("lt", in, limit))
			k.If(inside, func() {
				from := k.far(base, k.Add(first, r), row)
				from = k.far(from, in, col)
				k.Op("ld.global.f32", v, place(from, 0))
			})
			if round {
				v = k.FromBits(k.Shl(k.RoundBF16(v), 16))
			}
			k.StSF(k.Add(to, k.Shl(k.Mad(step, N(size+4), r), 2)), 0, v)
		}
	}
	y, x := k.Shr(tid, 4), k.And(tid, N(15))
	rowsN := k.IntParam("n")
	acc := make([][]F32, high)
	outputs := func(body func(i, j int, n U32, at U64)) {
		for i := range high {
			for j := range wide {
				mm, nn := k.Add(m0, k.Add(y, N(16*i))), k.Add(n0, k.Add(x, N(16*j)))
				k.If(k.AndP(k.Cmp("lt", mm, rowsM), k.Cmp("lt", nn, rowsN)), func() {
					body(i, j, nn, k.At(k.far(c, mm, ldc), nn, 4))
				})
			}
		}
	}
	for i := range acc {
		for range wide {
			acc[i] = append(acc[i], k.NewF(F(0)))
		}
	}
	k.If(k.Cmp("ne", k.IntParam("add"), N(0)), func() {
		outputs(func(i, j int, _ U32, at U64) { k.Op("ld.global.f32", acc[i][j], place(at, 0)) })
	})
	acol, brow, bcol := k.IntParam("acol"), k.IntParam("brow"), k.IntParam("bcol")
	atA, atB := k.Add(sharedA, k.Shl(y, 2)), k.Add(sharedB, k.Shl(x, 2))
	k.For(N(0), limit, N(depth), func(at U32) {
		fill(sharedA, a, m0, rowsM, arow, acol, rows, at)
		fill(sharedB, b, n0, rowsN, brow, bcol, columns, at)
		k.Barrier()
		for step := range depth {
			a, b := make([]F32, high), make([]F32, wide)
			for i := range a {
				a[i] = k.LdSF(atA, 4*(step*(rows+4)+16*i))
			}
			for j := range b {
				b[j] = k.LdSF(atB, 4*(step*(columns+4)+16*j))
			}
			for i := range a {
				for j := range b {
					k.FMAInto(acc[i][j], a[i], b[j])
				}
			}
		}
		k.Barrier()
	})
	bias := k.operand("bias", of)
	biased := k.pred("setp.ne.u64", bias, 0)
	outputs(func(i, j int, n U32, at U64) {
		k.If(biased, func() { k.Op("add.rn.f32", acc[i][j], acc[i][j], k.LdF(k.At(bias, n, 4), 0)) })
		k.StF(at, 0, acc[i][j])
	})
}

// far returns base + 4·index·stride, where the product may have more than 32 bits.
func (k *Kernel) far(base U64, index, stride U32) U64 {
	wide, r := k.U64(), k.U64()
	k.Op("mul.wide.u32", wide, index, stride)
	k.Op("mad.lo.u64", r, wide, 4, base)
	return r
}
