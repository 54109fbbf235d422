package main

// scores adds the products of a slice of keys to the scores.
func (s *strip) scores(slice, at U32) {
	for half := range 2 {
		step := s.Add(s.Shl(slice, 1), N(half))
		s.If(s.Cmp("lt", step, s.steps), func() {
			q := s.At(s.queries, step, 1024)
			var parts [2][4]U32
			for i := range parts {
				for r := range parts[i] {
					parts[i][r] = s.U32()
				}
				s.Op("ld.global.v4.u32", group(parts[i][:]...), place(q, 512*i))
			}
			row := s.Add(s.Add(at, s.keyRow), N(2048*half))
			for n, line := range s.keyLine {
				b := s.loadMatrix(s.Add(row, line))
				for j := range 2 {
					for _, a := range parts {
						s.mma(&s.score[2*n+j], &s.score[2*n+j], a, b[2*j], b[2*j+1])
					}
				}
			}
		})
	}
}

// loadMatrix reads four matrices of 8 by 8 and transposes them.
func (s *strip) loadMatrix(at U32) [4]U32 {
	b := [4]U32{s.U32(), s.U32(), s.U32(), s.U32()}
	s.Op("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", group(b[:]...), place(at, 0))
	return b
}

func (s *strip) mma(d, c *[4]F32, a [4]U32, b0, b1 U32) {
	s.Op("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", group(d[:]...), group(a[:]...), group(b0, b1),
		group(c[:]...))
}

// clearScores starts a unit.
func (s *strip) clearScores() {
	for i := range s.score {
		for j := range s.score[i] {
			s.FSet(s.score[i][j], F(0))
		}
	}
}

// soften turns the scores of a unit into weights, as operands A, and returns the greatest score and the sum of the
// weights of both pairs.
func (s *strip) soften() (most, total [2]F32) {
	limit := s.FloatParam("cap")
	capped := s.CmpF("ne", limit, F(0))
	for j := range s.score {
		for c, x := range s.score[j] {
			s.Op("mul.rn.f32", x, x, s.scale[c/2])
		}
	}
	s.If(capped, func() {
		for j := range s.score {
			for _, x := range s.score[j] {
				s.FSet(x, s.FMul(limit, s.Tanh(s.FDiv(x, limit))))
			}
		}
	})
	s.Unless(s.full(s.start, unitLen), func() {
		first := s.Add(s.start, s.Shl(s.quad, 1))
		for i := range s.row {
			at := s.Sub(first, s.lo[i])
			for j := range s.score {
				for e := range 2 {
					x := s.score[j][2*i+e]
					seen := s.Cmp("le", s.Add(at, N(8*j+e)), s.seen[i])
					s.Op("selp.f32", x, x, Fbits(lowest), seen)
				}
			}
		}
	})
	for i := range most {
		most[i], total[i] = s.NewF(F(floor)), s.NewF(F(0))
		for j := range s.score {
			for e := range 2 {
				s.Op("max.f32", most[i], most[i], s.score[j][2*i+e])
			}
		}
		for mask := 1; mask < 4; mask *= 2 {
			most[i] = s.FMax(most[i], s.Swap(most[i], mask))
		}
		for j := range s.score {
			var w [2]F32
			for e := range w {
				w[e] = s.Exp(s.FSub(s.score[j][2*i+e], most[i]))
				s.Op("add.rn.f32", total[i], total[i], w[e])
			}
			hi, lo := s.halves(w[0], w[1])
			s.Op("mov.b32", s.hi[j/2][i+2*(j%2)], hi)
			s.Op("mov.b32", s.low[j/2][i+2*(j%2)], lo)
		}
		for mask := 1; mask < 4; mask *= 2 {
			total[i] = s.FAdd(total[i], s.Swap(total[i], mask))
		}
	}
	return most, total
}

// full says that all rows of the strip attend to all of n positions.
func (s *strip) full(from U32, n int) Pred {
	return s.AndP(s.Cmp("le", s.maxLo, from), s.Cmp("ge", s.minP, s.Add(from, N(n-1))))
}

// touched says that some row of the strip attends to one of n positions.
func (s *strip) touched(from U32, n int) Pred {
	return s.AndP(s.Cmp("ge", s.maxP, from), s.Cmp("le", s.minLo, s.Add(from, N(n-1))))
}

// weigh returns the sums of the values of a slice, 8 components a fragment, times the weights. A block of 16 positions
// that a row attends to in part is multiplied for the row alone, with zeros for the other positions, so that the
// operands of a row do not depend on what else is in the cache.
func (s *strip) weigh(at U32) (part [4][4]F32) {
	for n := range part {
		for c := range part[n] {
			part[n][c] = s.NewF(F(0))
		}
	}
	for t := range 4 {
		from := s.Add(s.start, N(16*t))
		s.If(s.touched(from, 16), func() {
			row := s.Add(s.Add(at, s.valueRow), N(1024*t))
			var b [2][4]U32
			for n, line := range s.valueLine {
				b[n] = s.loadMatrix(s.Add(row, line))
			}
			full := s.full(from, 16)
			s.If(full, func() {
				for n := range part {
					for _, a := range [][4]U32{s.hi[t], s.low[t]} {
						s.mma(&part[n], &part[n], a, b[n/2][n%2*2], b[n/2][n%2*2+1])
					}
				}
			})
			s.Unless(full, func() {
				s.For(s.rowA, s.Add(s.rowB, N(1)), N(1), func(r U32) { s.weighRow(t, r, from, b, &part) })
			})
		})
	}
	return part
}

// weighRow is weigh for one row and 16 positions.
func (s *strip) weighRow(t int, r, from U32, b [2][4]U32, part *[4][4]F32) {
	p := s.Add(s.pos0, r)
	lo := s.windowFrom(p)
	seen := s.Sub(p, lo)
	s.If(s.AndP(s.Cmp("ge", p, from), s.Cmp("le", lo, s.Add(from, N(15)))), func() {
		var mask [2]U32
		first := s.Sub(s.Add(from, s.Shl(s.quad, 1)), lo)
		for i := range mask {
			a := s.Select(s.Cmp("le", s.Add(first, N(8*i)), seen), X(0xffff), N(0))
			b := s.Select(s.Cmp("le", s.Add(first, N(8*i+1)), seen), X(0xffff0000), N(0))
			mask[i] = s.Or(a, b)
		}
		mine := [2]Pred{s.Cmp("eq", s.row[0], r), s.Cmp("eq", s.row[1], r)}
		for n := range part {
			b0, b1 := s.And(b[n/2][n%2*2], mask[0]), s.And(b[n/2][n%2*2+1], mask[1])
			sum := [4]F32{s.F32(), s.F32(), s.F32(), s.F32()}
			s.mma(&sum, &part[n], s.hi[t], b0, b1)
			s.mma(&sum, &sum, s.low[t], b0, b1)
			for c := range sum {
				s.Op("selp.f32", part[n][c], sum[c], part[n][c], mine[c/2])
			}
		}
	})
}

// softmax is a sum of weighted values so far: the greatest score and the sum of the weights. The values are kept
// elsewhere.
type softmax struct{ most, total F32 }

func (k *Kernel) softmax() softmax { return softmax{k.NewF(F(floor)), k.NewF(F(0))} }

// reset forgets everything.
func (k *Kernel) reset(t softmax) {
	k.FSet(t.most, F(floor))
	k.FSet(t.total, F(0))
}

// joinSoftmax adds a later part to t and returns the factors of the values so far and of the part's.
func (k *Kernel) joinSoftmax(t softmax, most, total F32) (old, part F32) {
	greatest := k.FMax(t.most, most)
	old, part = k.Exp(k.FSub(t.most, greatest)), k.Exp(k.FSub(most, greatest))
	k.FSet(t.total, k.FMA(total, part, k.FMul(t.total, old)))
	k.FSet(t.most, greatest)
	return old, part
}

// joined returns a value so far after a join.
func (k *Kernel) joined(value, part, oldFactor, partFactor F32) F32 {
	return k.FMA(part, partFactor, k.FMul(value, oldFactor))
}

// share returns the factor that makes a sum of weighted values a result, given the address of the sinks or null.
func (k *Kernel) share(t softmax, sinks U64, head U32) F32 {
	sink := k.NewF(Fbits(lowest))
	k.If(k.pred("setp.ne.u64", sinks, 0), func() { k.Op("ld.global.f32", sink, place(k.At(sinks, head, 4), 0)) })
	greatest := k.FMax(t.most, sink)
	f := k.Exp(k.FSub(t.most, greatest))
	return k.FDiv(f, k.FMA(t.total, f, k.Exp(k.FSub(sink, greatest))))
}

// result is a sum of weighted values times its share. A zero has no sign: whether it had one depends on the parts that
// were left out.
func (k *Kernel) result(sum, share F32) F32 { return k.FAdd(k.FMul(sum, share), F(0)) }
