package main

import "fmt"

// Products of quantised weights. A warp computes 16 rows of weights times 8·nx rows of activations with mma: rows of
// weights are the rows of operand A, rows of activations the columns of operand B. DESIGN.md gives the order of sums.

const (
	segmentUnits = 4       // units of a segment
	warpRows     = 16      // rows of weights of a warp
	stages       = 2       // units of a warp's weights in shared memory
	magic        = rounder // an integer sum starts at the bits of this float32, so that its bits are a float32, too
	magicBits    = 0x4b400000
)

// weights says how a type of weights is multiplied. A unit of a row is a run of inputs that is copied to shared
// memory at a time, with the lines of 16 bytes that it lies in.
type weights struct {
	name   string
	inputs int // of a unit
	bytes  int // of a unit
	align  int // of a unit's address in the file, at least; at most 16
	unit   func(t *tile)
}

// lines is the largest number of lines that a unit lies in.
func (w *weights) lines() int { return (16 - w.align + w.bytes + 15) / 16 }

// pitch is the distance of the rows of a unit in shared memory: an odd number of lines, so that the eight rows that a
// warp reads at once are in different banks.
func (w *weights) pitch() int { return 16 * (w.lines() | 1) }

// tile is the state of a kernel of a product while it is generated.
type tile struct {
	*Kernel
	w                       *weights
	nx                      int // groups of 8 rows of activations
	warp, lane, group, quad U32 // lane = 4·group + quad

	stage  U32    // shared memory of this warp
	rows   U32    // of weights: n
	first  U32    // first row of weights of the warp
	of     span   // the rows of activations of the block's matrix
	x0     U32    // first row of activations of the block
	base   U64    // of the weights
	stride U32    // bytes of a row
	units  U32    // of a row
	blocks U32    // of 32 inputs of a row
	done   U32    // blocks before the unit
	pad    U32    // rows of activations in the scratch, padded
	row    [2]U32 // shared memory of rows group and group+8 of the unit
	x      U64    // activations of the next block: row group, part quad
	xstep  U64    // bytes from a block of activations to the next
	scale  U64    // scales and sums of the next block, of columns 2·quad and 2·quad+1
	sstep  U64
	start  U32 // magicBits
	acc    [][4]F32
}

// product adds the kernel of a type with blocks of four warps. If split is set, the warps share 16 rows of weights and
// take segments in turns; else each warp has 16 rows of its own and takes all segments.
func (m *Module) product(w *weights, nx int, split bool) {
	shape := "each of four warps has 16 rows of weights and takes all segments"
	n := 4 * warpRows
	if split {
		shape, n = "four warps share 16 rows of weights and take segments in turns", warpRows
	}
	name := fmt.Sprintf("matmul_%s_%dx%d", w.name, n, 8*nx)
	doc := fmt.Sprintf("computes y[T,N] = x[T,K]*W^T + bias[N]: %s. A block computes %d columns from %d*ctaid.x on of %d "+
		"rows from %d*ctaid.y on. xq and xs are what act_%s wrote for the same pad. A null bias is zero. stride is the "+
		"bytes of a row of w. %s A tile begins at an even row, the one before its group's first if need be, and pad must "+
		"have room for the last tile.", shape, n, n, 8*nx, 8*nx, w.activations(), groupDoc("y", "x", "w"))
	k := m.Kernel(name, doc, 128, Ptr("y"), Ptr("w"), Ptr("xq"), Ptr("xs"), Ptr("bias"), Ptr("groups"), Int("n"),
		Int("k"), Int("stride"), Int("t"), Int("pad"))
	t := &tile{Kernel: k, w: w, nx: nx}
	t.begin(split)
	turns := 1
	if split {
		turns = 4
	}
	total := make([][4]F32, nx)
	for j := range total {
		for i := range total[j] {
			if !split || i == 0 {
				total[j][i] = t.NewF(F(0))
			}
		}
	}
	me := N(0)
	if split {
		me = t.warp
	}
	unitAt := func(q U32) U32 { // the number of the warp's unit q
		segment := t.Shr(q, 2)
		if split {
			segment = t.Mad(segment, N(turns), me)
		}
		return t.Add(t.Shl(segment, 2), t.And(q, N(3)))
	}
	for s := range stages {
		t.fetch(unitAt(N(s)), N(s*t.stageBytes()))
	}
	perRound := segmentUnits * turns
	rounds := t.Div(t.Add(t.units, N(perRound-1)), N(perRound))
	var exchange U32
	if split {
		exchange = t.SharedAt(4 * 128 * 4 * nx)
	}
	t.For(N(0), rounds, N(1), func(round U32) {
		for j := range t.acc {
			for i := range t.acc[j] {
				t.FSet(t.acc[j][i], F(0))
			}
		}
		t.For(N(0), N(segmentUnits), N(1), func(u U32) {
			q := t.Add(t.Shl(round, 2), u)
			unit, stage := unitAt(q), t.Mul(t.And(u, N(stages-1)), N(t.stageBytes()))
			t.If(t.Cmp("lt", unit, t.units), func() {
				t.AsyncWait(stages - 1)
				t.Op("bar.warp.sync", "0xffffffff")
				t.compute(unit, stage)
				t.Op("bar.warp.sync", "0xffffffff")
				t.fetch(unitAt(t.Add(q, N(stages))), stage)
			})
		})
		if split {
			t.exchange(exchange, total, round)
			return
		}
		for j := range total {
			for i := range total[j] {
				t.Op("add.rn.f32", total[j][i], total[j][i], t.acc[j][i])
			}
		}
	})
	t.Op("cp.async.wait_all")
	t.finish(total, split)
}

// begin reads the parameters and computes what does not change.
func (t *tile) begin(split bool) {
	tid := t.Special("tid.x")
	t.warp, t.lane = t.Shr(tid, 5), t.And(tid, N(31))
	t.group, t.quad = t.Shr(t.lane, 2), t.And(t.lane, N(3))
	t.rows, t.stride, t.pad = t.IntParam("n"), t.IntParam("stride"), t.IntParam("pad")
	inputs := t.IntParam("k")
	t.units = t.Div(t.Add(inputs, N(t.w.inputs-1)), N(t.w.inputs))
	t.blocks = t.Shr(inputs, 5)
	t.rowsOf()
	t.ReturnIf(t.Cmp("ge", t.MaxU(t.x0, t.of.from), t.of.to))
	t.base = t.operand("w", t.of)
	size := stages * t.stageBytes()
	t.stage = t.Mad(t.warp, N(size), t.SharedAt(4*size))
	if split {
		t.first = t.Shl(t.Special("ctaid.x"), 4)
	} else {
		t.first = t.Shl(t.Add(t.Shl(t.Special("ctaid.x"), 2), t.warp), 4)
	}
	t.start = t.NewU(X(magicBits))
	// The scratch is [blocks][pad] of 32 activations, and of their scale and sum.
	row := t.Add(t.x0, t.group)
	if t.nx == 1 {
		// Columns past the last row repeat it, which costs no memory traffic. They are not stored.
		row = t.MinU(row, t.Sub(t.of.to, N(1)))
	}
	size = t.w.blockBytes()
	t.x = t.At(t.At(t.Pointer("xq"), row, size), t.quad, size/4)
	t.scale = t.At(t.Pointer("xs"), t.Add(t.x0, t.Shl(t.quad, 1)), 8)
	t.xstep, t.sstep = t.U64(), t.U64()
	t.Op("mul.wide.u32", t.xstep, t.pad, size)
	t.Op("mul.wide.u32", t.sstep, t.pad, 8)
	t.acc = make([][4]F32, t.nx)
	for j := range t.acc {
		for i := range t.acc[j] {
			t.acc[j][i] = t.F32()
		}
	}
}

// rowsOf finds the rows of activations of the block.
func (t *tile) rowsOf() {
	t.of = t.span("t")
	// Scales of two rows are read together, so tiles begin at even rows. A row before the group's is not stored.
	t.x0 = t.Mad(t.Special("ctaid.y"), N(8*t.nx), t.And(t.of.from, X(0xfffffffe)))
}

// rowAddress returns the address of row r of the warp; rows past the last repeat it.
func (t *tile) rowAddress(r U32) U64 {
	n := t.MinU(t.Add(t.first, r), t.Sub(t.rows, N(1)))
	return t.AtRow(t.base, n, t.stride)
}

// stageBytes is the shared memory of a unit.
func (t *tile) stageBytes() int { return warpRows * t.w.pitch() }

// fetch starts the copies of a unit to a stage, if there is such a unit, and ends their group.
func (t *tile) fetch(unit, stage U32) {
	t.If(t.Cmp("lt", unit, t.units), func() {
		lines := t.w.lines()
		room := t.Add(t.stage, stage)
		left := t.Sub(t.stride, t.Mul(unit, N(t.w.bytes)))
		size := t.U64()
		t.Op("cvt.u64.u32", size, t.MinU(left, N(t.w.bytes)))
		for i := 0; i < warpRows*lines; i += 32 {
			copyIndex := t.Add(t.lane, N(i))
			row := t.Div(copyIndex, N(lines))
			line := t.Sub(copyIndex, t.Mul(row, N(lines)))
			from := t.At(t.rowAddress(row), unit, t.w.bytes)
			end, at := t.U64(), t.U64()
			t.Op("add.u64", end, from, size)
			t.Op("and.b64", at, from, "0xfffffffffffffff0")
			at = t.At(at, line, 16)
			inside := t.pred("setp.lt.u64", at, end)
			if i+32 > warpRows*lines {
				inside = t.AndP(inside, t.Cmp("lt", copyIndex, N(warpRows*lines)))
			}
			to := t.Add(t.Mad(row, N(t.w.pitch()), room), t.Shl(line, 4))
			t.Op("@"+string(inside)+" cp.async.cg.shared.global", place(to, 0), place(at, 0), 16)
		}
	})
	t.AsyncCommit()
}

// compute adds the products of a unit.
func (t *tile) compute(unit, stage U32) {
	for h := range t.row {
		r := t.Add(t.group, N(8*h))
		at := t.Add(t.Mad(r, N(t.w.pitch()), t.stage), stage)
		if t.w.align < 16 {
			low := t.U32()
			t.Op("cvt.u32.u64", low, t.At(t.rowAddress(r), unit, t.w.bytes))
			at = t.Add(at, t.And(low, N(15)))
		}
		t.row[h] = at
	}
	// The addresses of the unit's activations.
	t.done = t.Mul(unit, N(t.w.inputs/32))
	keptX, keptScale := t.x, t.scale
	defer func() { t.x, t.scale = keptX, keptScale }()
	t.x, t.scale = t.ahead(t.x, t.done, t.xstep), t.ahead(t.scale, t.done, t.sstep)
	t.w.unit(t)
}

// ahead returns base + count·step in a new register.
func (t *tile) ahead(base U64, count U32, step U64) U64 {
	wide, r := t.U64(), t.U64()
	t.Op("cvt.u64.u32", wide, count)
	t.Op("mad.lo.u64", r, wide, step, base)
	return r
}

// next moves to the activations of the next block.
func (t *tile) next() {
	t.Op("add.u64", t.x, t.x, t.xstep)
	if t.w.quantised() {
		t.Op("add.u64", t.scale, t.scale, t.sstep)
	}
}

// exchange adds the segments of a round to the totals, in order. Warp i adds element i of every fragment.
func (t *tile) exchange(at U32, total [][4]F32, round U32) {
	slot := t.Add(at, t.Shl(t.lane, 2))
	mine := t.Mad(t.warp, N(512*t.nx), slot)
	for j := range t.acc {
		for i := range t.acc[j] {
			t.StSF(mine, 128*(4*j+i), t.acc[j][i])
		}
	}
	t.Barrier()
	theirs := t.Mad(t.warp, N(128), slot)
	for s := range 4 {
		// A round has four segments, but for the last one.
		segment := t.Add(t.Shl(round, 2), N(s))
		t.If(t.Cmp("lt", t.Shl(segment, 2), t.units), func() {
			for j := range total {
				t.Op("add.rn.f32", total[j][0], total[j][0], t.LdSF(theirs, 512*t.nx*s+512*j))
			}
		})
	}
	t.Barrier()
}

// finish adds the bias and writes the outputs that exist.
func (t *tile) finish(total [][4]F32, split bool) {
	t.rowsOf() // again, so that it takes no registers meanwhile
	y, bias := t.Pointer("y"), t.operand("bias", t.of)
	biased := t.pred("setp.ne.u64", bias, 0)
	x0 := t.Add(t.x0, t.Shl(t.quad, 1))
	put := func(n, col U32, v F32) {
		inside := t.AndP(t.Cmp("ge", col, t.of.from), t.Cmp("lt", col, t.of.to))
		t.If(t.AndP(t.Cmp("lt", n, t.rows), inside), func() {
			sum := t.NewF(v)
			t.If(biased, func() { t.Op("add.rn.f32", sum, sum, t.LdF(t.At(bias, n, 4), 0)) })
			t.StF(t.At(t.AtRow(y, col, t.Shl(t.rows, 2)), n, 4), 0, sum)
		})
	}
	for j := range total {
		col := t.Add(x0, N(8*j))
		if split { // this warp has element number warp
			n := t.Add(t.Add(t.first, t.group), t.Shl(t.Shr(t.warp, 1), 3))
			put(n, t.Add(col, t.And(t.warp, N(1))), total[j][0])
			continue
		}
		for i, v := range total[j] {
			put(t.Add(t.Add(t.first, t.group), N(8*(i/2))), t.Add(col, N(i%2)), v)
		}
	}
}
