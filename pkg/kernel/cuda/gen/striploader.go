package main

// loader copies slices to shared memory: keys of a unit by components, then its values.
type loader struct {
	*strip
	threads    int // that copy together
	id         U32 // of this thread
	room       U32 // shared memory of the ring
	stages     int
	begin, end U32 // positions that are read
	straight   Pred
	unit, part U32 // that are copied next
	last       U32 // unit
	stage      U32 // offset that they are copied to
	key, value U64 // of this lane's 8 positions, lane%8
	count      U32 // of them that exist
}

func (s *strip) loader(threads, stages int, id, room, begin, end, unit, last U32) *loader {
	l := &loader{strip: s, threads: threads, id: id, room: room, stages: stages, begin: begin, end: end,
		unit: s.NewU(unit), last: last, part: s.NewU(N(0)), stage: s.NewU(N(0)), key: s.U64(), value: s.U64(),
		count: s.NewU(N(0))}
	s.length = s.IntParam("length")
	// Lines of 8 elements lie in one page, at multiples of 16 bytes.
	l.straight = s.Cmp("eq", s.And(s.Or(s.d, s.length), N(7)), N(0))
	s.Op("mov.u64", l.key, 0)
	s.Op("mov.u64", l.value, 0)
	return l
}

// next copies the next slice, if there is one, and ends a group.
func (l *loader) next() {
	l.If(l.Cmp("le", l.unit, l.last), func() {
		to := l.Add(l.room, l.stage)
		l.If(l.straight, func() {
			l.If(l.Cmp("eq", l.part, N(0)), l.open)
			l.If(l.Cmp("lt", l.part, l.slices), func() { l.keys(to) })
			l.If(l.Cmp("ge", l.part, l.slices), func() { l.values(to) })
		})
		l.Unless(l.straight, func() { l.scattered(to) })
		l.Op("add.u32", l.part, l.part, 1)
		done := l.Cmp("eq", l.part, l.Shl(l.slices, 1))
		l.Op("selp.b32", l.part, 0, l.part, done)
		l.Op("@"+string(done)+" add.u32", l.unit, l.unit, 1)
		l.Op("add.u32", l.stage, l.stage, sliceBytes)
		l.Op("selp.b32", l.stage, 0, l.stage, l.Cmp("eq", l.stage, N(l.stages*sliceBytes)))
	})
	l.AsyncCommit()
}

// open finds the pages of a unit.
func (l *loader) open() {
	from := l.Mad(l.unit, N(unitLen), l.Shl(l.And(l.lane, N(7)), 3))
	// Positions from..from+7 exist up to end; before begin they may not be in memory any more.
	l.Op("mov.u32", l.count, 0)
	l.If(l.AndP(l.Cmp("le", from, l.end), l.Cmp("gt", l.Add(from, N(8)), l.begin)), func() {
		l.Op("min.u32", l.count, l.Sub(l.Add(l.end, N(1)), from), 8)
		cell := l.cell(l.first, from, l.length)
		l.Op("mad.wide.u32", l.key, l.Mad(l.Mul(l.head, l.d), l.length, cell.at), 2, l.pointerAt(cell.page, 0))
		l.Op("mad.wide.u32", l.value, l.Mul(l.Mad(l.head, l.length, cell.at), l.d), 2, l.pointerAt(cell.page, 8))
	})
}

// keys copies 32 components of 64 positions: rows of 8 lines, whose order depends on the row, so that ldmatrix meets
// every bank once.
func (l *loader) keys(to U32) {
	line, first := l.And(l.id, N(7)), l.Shr(l.id, 3)
	l.For(first, N(sliceDims), N(l.threads/8), func(row U32) {
		c := l.Mad(l.part, N(sliceDims), row)
		size := l.Select(l.Cmp("lt", c, l.d), l.Shl(l.count, 1), N(0))
		c = l.MinU(c, l.Sub(l.d, N(1)))
		at := l.Add(l.Mad(row, N(128), to), l.Shl(l.Xor(line, l.And(row, N(7))), 4))
		l.copy(at, l.At(l.key, l.Mul(c, l.length), 2), size)
	})
}

// values copies 32 components of 64 positions: rows of 4 lines.
func (l *loader) values(to U32) {
	line, part := l.And(l.id, N(3)), l.Sub(l.part, l.slices)
	c := l.Mad(part, N(sliceDims), l.Shl(line, 3))
	exists := l.Cmp("lt", c, l.d)
	c = l.MinU(c, l.Sub(l.d, N(8)))
	l.For(N(0), N(unitLen), N(l.threads/4), func(i U32) { // one loop for all lanes, which exchange values
		row := l.Add(l.Shr(l.id, 2), i)
		block, within := l.Shr(row, 3), l.And(row, N(7))
		// A group of 8 positions is known to the lane of its number.
		count := l.u32("shfl.sync.idx.b32", l.count, block, "0x1f", "0xffffffff")
		low, high, base := l.U32(), l.U32(), l.U64()
		l.Op("mov.b64", group(low, high), l.value)
		low = l.u32("shfl.sync.idx.b32", low, block, "0x1f", "0xffffffff")
		high = l.u32("shfl.sync.idx.b32", high, block, "0x1f", "0xffffffff")
		l.Op("mov.b64", base, group(low, high))
		pos := l.Mad(l.unit, N(unitLen), row)
		there := l.AndP(exists, l.AndP(l.Cmp("lt", within, count), l.Cmp("ge", pos, l.begin)))
		at := l.Add(l.Mad(row, N(64), to), l.Shl(l.Xor(line, l.And(l.Shr(row, 1), N(3))), 4))
		l.copy(at, l.At(base, l.Mad(within, l.d, c), 2), l.Select(there, N(16), N(0)))
	})
}

// copy copies size bytes of a line and fills it up with zeros.
func (l *loader) copy(to U32, from U64, size U32) {
	l.Op("cp.async.cg.shared.global", place(to, 0), place(from, 0), 16, size)
}

// scattered copies a slice element by element, for heads and pages of other lengths.
func (l *loader) scattered(to U32) {
	keys := l.Cmp("lt", l.part, l.slices)
	part := l.Select(keys, l.part, l.Sub(l.part, l.slices))
	l.For(l.id, N(unitLen*sliceDims), N(l.threads), func(i U32) {
		j, row := l.And(i, N(unitLen-1)), l.Shr(i, 6) // position and component
		pos, c := l.Mad(l.unit, N(unitLen), j), l.Mad(part, N(sliceDims), row)
		x := l.H16()
		l.Op("mov.b16", x, "0x0000")
		there := l.AndP(l.Cmp("lt", c, l.d), l.AndP(l.Cmp("ge", pos, l.begin), l.Cmp("le", pos, l.end)))
		l.If(there, func() {
			cell := l.cell(l.first, pos, l.length)
			key := l.Mad(l.Mad(l.head, l.d, c), l.length, cell.at)
			value := l.Mad(l.Mad(l.head, l.length, cell.at), l.d, c)
			base := l.U64()
			l.Op("selp.b64", base, l.pointerAt(cell.page, 0), l.pointerAt(cell.page, 8), keys)
			l.Op("ld.global.b16", x, place(l.At(base, l.Select(keys, key, value), 2), 0))
		})
		line := func(row, column U32, mask int, swap U32) U32 {
			return l.Add(l.Shl(l.Xor(l.Shr(column, 3), l.And(swap, N(mask))), 4), l.Shl(l.And(column, N(7)), 1))
		}
		key := l.Mad(row, N(128), line(row, j, 7, row))
		value := l.Mad(j, N(64), line(j, row, 3, l.Shr(j, 1)))
		l.Op("st.shared.b16", place(l.Add(to, l.Select(keys, key, value)), 0), x)
	})
}
