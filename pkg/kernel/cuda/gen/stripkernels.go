package main

import "fmt"

// stripParams are the parameters of a kernel that reads the cache, between what it writes and the last ones.
func stripParams(to string, last ...Param) []Param {
	return append([]Param{Ptr(to), Ptr("queries"), Ptr("strips"), Ptr("pages"), Int("h"), Int("kv"), Int("d"),
		Int("length"), Int("window"), Float("cap")}, last...)
}

// stripSplit adds the kernel for few rows: a block has a chunk of 256 positions, and each warp a unit of it.
func stripSplit(m *Module) {
	k := m.Kernel("strip_split", "computes chunk ctaid.x, of 256 positions, of strip ctaid.z and key/value head ctaid.y, "+
		"and writes the greatest score, the sum of the weights and the weighted sum of the values to "+
		"parts[N,K,16,chunks,2+D]. A chunk that no row of the strip attends to is not written.",
		stripThread, stripParams("parts", Int("chunks"))...)
	s := newStrip(k)
	index, chunk := k.Special("ctaid.z"), k.Special("ctaid.x")
	s.take(index)
	s.positions()
	k.ReturnUnless(k.AndP(s.some, s.touched(k.Shl(chunk, 8), chunkLen)))
	s.lanes(index)
	const stages = 2
	room := k.Mad(s.warp, N(stages*sliceBytes), k.SharedAt(4*stages*sliceBytes))
	exchange, stats := k.SharedAt(4*32*64), k.SharedAt(4*2*stripPairs*4)
	unit := k.Mad(chunk, N(chunkLen/unitLen), s.warp)
	s.start = k.Shl(unit, 6)
	active := s.touched(s.start, unitLen)
	l := s.loader(32, stages, s.lane, room, s.minLo, s.maxP, unit, unit)
	at, both := k.NewU(room), k.Add(k.Add(room, room), N(sliceBytes)) // the stages take turns
	// turn waits for a slice and starts the copy of the next one.
	turn := func() {
		k.AsyncWait(0)
		k.Op("bar.warp.sync", "0xffffffff")
		l.next()
	}
	flip := func() { k.Op("sub.u32", at, both, at) }
	most, total := [2]F32{k.NewF(F(floor)), k.NewF(F(floor))}, [2]F32{k.NewF(F(0)), k.NewF(F(0))}
	k.If(active, func() {
		l.next()
		s.clearScores()
		k.For(N(0), s.slices, N(1), func(slice U32) {
			turn()
			s.scores(slice, at)
			flip()
		})
		m, t := s.soften()
		for i := range m {
			k.FSet(most[i], m[i])
			k.FSet(total[i], t[i])
		}
	})
	k.If(k.Cmp("eq", s.quad, N(0)), func() {
		for i := range most {
			to := k.Add(stats, k.Shl(k.Mad(s.warp, N(stripPairs), k.Add(s.group, N(8*i))), 3))
			k.StSF(to, 0, most[i])
			k.StSF(to, 4, total[i])
		}
	})
	k.Barrier()
	// The units are joined in order, by every thread for its two pairs.
	var sum [2]softmax
	var old, part [2][4]F32
	for i := range sum {
		sum[i] = k.softmax()
		for w := range 4 {
			from := k.Add(stats, k.Shl(k.Add(s.group, N(8*i+stripPairs*w)), 3))
			old[i][w], part[i][w] = k.joinSoftmax(sum[i], k.LdSF(from, 0), k.LdSF(from, 4))
		}
	}
	chunks, size := k.IntParam("chunks"), k.Add(s.d, N(2))
	var to [2]U64
	var exists [2]Pred
	for i := range to {
		pair := k.Add(s.group, N(8*i))
		exists[i] = k.Cmp("ne", s.row[i], X(0xffffffff))
		item := k.Mad(k.Mad(index, s.kv, s.head), N(stripPairs), pair)
		to[i] = k.far(k.far(k.Pointer("parts"), k.Mul(item, chunks), size), chunk, size)
		k.If(k.AndP(exists[i], k.Cmp("eq", k.Special("tid.x"), k.Shl(s.group, 2))), func() {
			k.StF(to[i], 0, sum[i].most)
			k.StF(to[i], 4, sum[i].total)
		})
	}
	mine := k.Add(exchange, k.Shl(s.lane, 2))
	k.For(N(0), s.slices, N(1), func(slice U32) {
		var parts [4][4]F32
		for n := range parts {
			for c := range parts[n] {
				parts[n][c] = k.NewF(F(0))
			}
		}
		k.If(active, func() {
			turn()
			for n, fragment := range s.weigh(at) {
				for c, x := range fragment {
					k.FSet(parts[n][c], x)
				}
			}
			flip()
		})
		put := k.Mad(s.warp, N(2048), mine)
		for n := range parts {
			for c, x := range parts[n] {
				k.StSF(put, 128*(4*n+c), x)
			}
		}
		k.Barrier()
		// This warp joins fragment number warp.
		from := k.Mad(s.warp, N(512), mine)
		for c := range 4 {
			value := k.NewF(F(0))
			for w := range 4 {
				value = k.joined(value, k.LdSF(from, 2048*w+128*c), old[c/2][w], part[c/2][w])
			}
			dim := k.Add(k.Mad(slice, N(sliceDims), k.Shl(s.warp, 3)), k.Add(k.Shl(s.quad, 1), N(c%2)))
			k.If(k.AndP(exists[c/2], k.Cmp("lt", dim, s.d)), func() { k.StF(k.At(to[c/2], dim, 4), 8, value) })
		}
		k.Barrier()
	})
	k.Op("cp.async.wait_all")
}

// stripJoin adds the kernel that joins the chunks of a pair.
func stripJoin(m *Module) {
	k := m.Kernel("strip_join", "joins the chunks of pair ctaid.x of strip ctaid.z and key/value head ctaid.y in order "+
		"and writes y[T,H,D]. sinks[H], unless it is null, are scores that take part in the softmax without a value.",
		stripThread, Ptr("y"), Ptr("parts"), Ptr("strips"), Ptr("sinks"), Int("h"), Int("kv"), Int("d"), Int("window"),
		Int("chunks"))
	s := newStrip(k)
	index, tid := k.Special("ctaid.z"), k.Special("tid.x")
	s.take(index)
	pair := k.Add(s.pair0, k.Special("ctaid.x"))
	k.ReturnIf(k.Cmp("ge", pair, s.pairs))
	row := k.Div(pair, s.perKV)
	head := k.Mad(s.head, s.perKV, k.Sub(pair, k.Mul(row, s.perKV)))
	p := k.Add(s.pos0, row)
	from, to := k.Shr(k.windowFrom(p), 8), k.Add(k.Shr(p, 8), N(1))
	size := k.Add(s.d, N(2))
	item := k.Mad(k.Mad(index, s.kv, s.head), N(stripPairs), k.Special("ctaid.x"))
	base := k.far(k.Pointer("parts"), k.Mul(item, k.IntParam("chunks")), size)
	y := k.far(k.Pointer("y"), k.Mad(k.Add(s.row0, row), s.h, head), s.d)
	k.For(tid, s.d, N(stripThread), func(i U32) {
		t, value := k.softmax(), k.NewF(F(0))
		k.For(from, to, N(1), func(c U32) {
			at := k.far(base, c, size)
			old, part := k.joinSoftmax(t, k.LdF(at, 0), k.LdF(at, 4))
			k.FSet(value, k.joined(value, k.LdF(k.At(at, i, 4), 8), old, part))
		})
		k.StF(k.At(y, i, 4), 0, k.result(value, k.share(t, k.Pointer("sinks"), head)))
	})
}

// stripWhole adds the kernel for many rows: each of four warps has a strip of one span, takes its units in order, and
// joins them as stripSplit and stripJoin do. The sums of the chunks so far are in y.
func stripWhole(m *Module, dims int) {
	k := m.Kernel(fmt.Sprintf("strip_whole_%d", dims), fmt.Sprintf("writes y[T,H,D] for four strips of one span, from "+
		"4*(nctaid.x-1-ctaid.x) on, and key/value head ctaid.y. Strips without pairs fill up the last four of a span. D "+
		"is at most %d. sinks[H], unless it is null, are scores that take part in the softmax without a value.", dims),
		stripThread, stripParams("y", Ptr("sinks"))...)
	s := newStrip(k)
	// The last rows have the most positions and begin first.
	block := k.Shl(k.Sub(k.Sub(k.Special("nctaid.x"), k.Special("ctaid.x")), N(1)), 2)
	s.take(block)
	blockFirst := s.windowFrom(k.Add(s.pos0, s.rowA))
	blockLast := k.Add(s.pos0, k.Div(k.MinU(k.Add(s.pair0, N(4*stripPairs-1)), k.Sub(s.pairs, N(1))), s.perKV))
	index := k.Add(block, s.warp)
	s.take(index)
	s.positions()
	s.lanes(index)
	const stages = 4
	room := k.SharedAt(stages * sliceBytes)
	unit, last := k.NewU(k.Shr(blockFirst, 6)), k.Shr(blockLast, 6)
	l := s.loader(stripThread, stages, k.Special("tid.x"), room, blockFirst, blockLast, unit, last)
	k.For(N(0), N(stages-1), N(1), func(U32) { l.next() })
	at := k.NewU(N(0)) // offset of the slice in the ring
	turn := func() {
		k.AsyncWait(stages - 2)
		k.Barrier()
		l.next()
	}
	flip := func() {
		k.Op("add.u32", at, at, sliceBytes)
		k.Op("and.b32", at, at, stages*sliceBytes-1)
	}
	acc := make([][4]F32, dims/8)
	for n := range acc {
		for c := range acc[n] {
			acc[n][c] = k.NewF(F(0))
		}
	}
	chunk, sum := [2]softmax{k.softmax(), k.softmax()}, [2]softmax{k.softmax(), k.softmax()}
	var y [2]U64
	var head [2]U32
	for i := range y {
		pair := k.Add(s.pair0, k.Add(s.group, N(8*i)))
		row := k.Div(pair, s.perKV)
		head[i] = k.Mad(s.head, s.perKV, k.Sub(pair, k.Mul(row, s.perKV)))
		y[i] = k.far(k.Pointer("y"), k.Mad(k.Add(s.row0, row), s.h, head[i]), s.d)
	}
	written := k.NewU(N(0)) // chunks that are in y
	k.For(unit, k.Add(last, N(1)), N(1), func(u U32) {
		s.start = k.Shl(u, 6)
		active := k.AndP(s.some, s.touched(s.start, unitLen))
		s.clearScores()
		k.For(N(0), s.slices, N(1), func(slice U32) {
			turn()
			k.If(active, func() { s.scores(slice, k.Add(room, at)) })
			flip()
		})
		var old, part [2]F32
		for i := range old {
			old[i], part[i] = k.NewF(F(1)), k.NewF(F(0))
		}
		k.If(active, func() {
			most, total := s.soften()
			for i := range most {
				o, p := k.joinSoftmax(chunk[i], most[i], total[i])
				k.FSet(old[i], o)
				k.FSet(part[i], p)
			}
		})
		k.For(N(0), s.slices, N(1), func(slice U32) {
			turn()
			k.If(active, func() {
				parts := s.weigh(k.Add(room, at))
				for i := range dims / sliceDims { // registers have no index
					k.If(k.Cmp("eq", slice, N(i)), func() {
						for n, fragment := range parts {
							for c, x := range fragment {
								a := acc[4*i+n][c]
								k.FSet(a, k.joined(a, x, old[c/2], part[c/2]))
							}
						}
					})
				}
			})
			flip()
		})
		// At the end of a chunk it is joined with those in y.
		ends := k.Cmp("eq", u, last)
		k.If(k.OrP(ends, k.Cmp("eq", k.And(u, N(3)), N(3))), func() {
			var share [2]F32
			for i := range sum {
				old[i], part[i] = k.joinSoftmax(sum[i], chunk[i].most, chunk[i].total)
				share[i] = k.SelectF(ends, k.share(sum[i], k.Pointer("sinks"), head[i]), F(1))
				k.reset(chunk[i])
			}
			some := k.Cmp("ne", written, N(0))
			for n := range acc {
				k.If(k.Cmp("gt", s.d, N(8*n)), func() {
					for c, a := range acc[n] {
						dim := k.Add(k.Shl(s.quad, 1), N(8*n+c%2))
						exists := k.Cmp("ne", s.row[c/2], X(0xffffffff))
						k.If(k.AndP(exists, k.Cmp("lt", dim, s.d)), func() {
							to, before := k.At(y[c/2], dim, 4), k.NewF(F(0))
							k.If(some, func() { k.Op("ld.global.f32", before, place(to, 0)) })
							k.StF(to, 0, k.result(k.joined(before, a, old[c/2], part[c/2]), share[c/2]))
						})
						k.FSet(a, F(0))
					}
				})
			}
			k.Op("add.u32", written, written, 1)
		})
	})
	k.Op("cp.async.wait_all")
}
