package cpu

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Attention in training. Rows of queries are computed in blocks. Scratch holds the scores of one block
// with all keys that it attends to, never those of a whole sequence. The sums run in a fixed order, as in
// products of matrices: scores over components, results over positions, and the gradients of keys and
// values over heads and then rows. Positions that a row does not attend to have weight zero, which does
// not change a sum, so results do not depend on the blocks.

const (
	causalRows   = 96      // rows of queries in a block
	causalScores = 1 << 16 // most scores in a block of a long sequence
)

// causalScratch is the scratch of a block of rows.
type causalScratch struct {
	memory         []float32 // the memory that the slices below share
	scores, slopes []float32 // [rows][ld]
	ld             int
	// panels of keys and values whose columns are positions; of either, whose columns are components
	keys, values, across []float32
	queries, dys         []float32 // panels of a block, whose columns are components
	sums, bests, logs    []float32 // for each row: the sum of the weights, the greatest score, the logarithm of the sum
	deltas               []float32 // for each row: dy·y
}

// causalBlock returns the number of rows in a block.
func (s *Set) causalBlock(t int) int {
	tall := len(s.gemm.tiles) - 1
	rows := max(tall, min(causalRows, causalScores/t)/tall*tall)
	return min(rows, t)
}

// causalOps are loops over rows of scores that are ld bytes apart. The first row has n positions, and
// each row one more than the row before. The loops clear the scores past a row's end that tiles read.
type causalOps struct {
	weigh  func(x *float32, ld, n, rows int, best, sum *float32, scale float32)
	slopes func(dw, w *float32, ld, n, rows int, lse *float32, step int, delta *float32, scale float32)
	logs   func(y, x *float32, n int)
}

// causal computes one key/value head of a sequence.
type causal struct {
	*Set
	a          kernel.Heads
	t          int
	qw, kw     int // floats from row to row
	qo, ko, lo int // offsets of the head's first row in q, k and lse
	w          *gemmScratch
	narrow     gemmOps // with narrow panels only, since scores end at a diagonal
	causalScratch
}

// causalHead returns a causal with scratch for a head of the sequence of t rows that begins at row start. The
// caller must call done.
func (s *Set) causalHead(start, head int, t int, a kernel.Heads, backward bool) *causal {
	kv := head / (a.H / a.K)
	c, _ := s.causals.Get().(*causal)
	if c == nil {
		c = &causal{}
	}
	*c = causal{Set: s, a: a, t: t, qw: a.H * a.D, kw: a.K * a.D, w: s.multiplier(), narrow: s.gemm,
		causalScratch: causalScratch{memory: c.memory}}
	c.qo, c.ko, c.lo = start*c.qw+head*a.D, start*c.kw+kv*a.D, start*a.H+head
	c.narrow.wide, c.narrow.tiles = lanes, s.gemm.narrow
	block, wide, d := s.causalBlock(t), roundUp(t, lanes), roundUp(a.D, lanes)
	c.ld = wide + lanes // so that rows do not share the same sets of a cache
	total := 2*block*c.ld + 2*wide*a.D + t*d + 2*block*d + 4*block
	if len(c.memory) < total {
		c.memory = make([]float32, total)
	}
	rest := c.memory
	take := func(n int) []float32 {
		out := rest[:n]
		rest = rest[n:]
		return out
	}
	c.scores, c.keys, c.across, c.sums, c.bests, c.logs = take(block*c.ld), take(wide*a.D), take(t*d), take(block),
		take(block), take(block)
	if backward {
		c.slopes, c.values, c.queries, c.dys, c.deltas = take(block*c.ld), take(wide*a.D), take(block*d), take(block*d),
			take(block)
	}
	return c
}

// done returns the scratch.
func (c *causal) done() {
	s := c.Set
	s.multiplying.Put(c.w)
	s.causals.Put(c)
}

// pack packs the first columns of x at the first depths.
func pack(o *gemmOps, data []float32, x operand, to, depth int) gemmPanels {
	p := gemmPanels{data: data, to: to, depth: depth}
	if x.rs == 1 && to%o.wide == 0 {
		p.whole = x
	} else {
		p.pack(o, x, nil)
	}
	return p
}

// scoresOf writes the products of rows lo..hi-1 of x with the positions that they attend to. Row lo of
// the result is row 0 of out.
func (c *causal) scoresOf(out, x []float32, p gemmPanels, lo, hi int) {
	tall := len(c.narrow.tiles) - 1
	g := gemmCall{c: out, ldc: c.ld, a: rowsOf(x[lo*c.qw:], c.qw)}
	for i := lo; i < hi; i += tall {
		rows := min(tall, hi-i)
		seen := p
		seen.from, seen.to = first(i, c.a)&^(lanes-1), roundUp(i+rows, lanes)
		seen.data = p.data[seen.from*p.depth:]
		g.strip(&c.narrow, c.w, &seen, i-lo, rows, 0, p.depth)
	}
}

// clearMasked clears the scores of positions that tiles read but row p does not attend to.
func (c *causal) clearMasked(row []float32, p int) {
	from, to := first(p, c.a), p+1
	clear(row[max(0, from-gemmMaxRows):from])
	clear(row[to:min(to+gemmMaxRows, c.ld)])
}

// AttendCausal computes attention over whole sequences, one head and one block of rows at a time.
func (s *Set) AttendCausal(y, lse, q, k, v kernel.Buffer[float32], b, t int, a kernel.Heads) {
	must("attend causal", "q", len(q), b*t*a.H*a.D)
	must("attend causal", "y", len(y), b*t*a.H*a.D)
	must("attend causal", "k", len(k), b*t*a.K*a.D)
	must("attend causal", "v", len(v), b*t*a.K*a.D)
	must("attend causal", "lse", len(lse), b*t*a.H)
	if t == 0 {
		return
	}
	block := s.causalBlock(t)
	blocks := (t + block - 1) / block
	s.each(b*a.H*blocks, b*t*t*a.H*a.D, func(i int) {
		head, lo := i/blocks, i%blocks*block
		c := s.causalHead(head/a.H*t, head%a.H, t, a, false)
		defer c.done()
		c.forward(y[c.qo:], lse[c.lo:], q[c.qo:], k[c.ko:], v[c.ko:], lo, min(lo+block, t))
	})
}

// forward computes rows lo..hi-1.
func (c *causal) forward(y, lse, q, k, v []float32, lo, hi int) {
	c.scoresOf(c.scores, q, pack(&c.narrow, c.keys, rowsOf(k, c.kw), hi, c.a.D), lo, hi)
	c.weighRows(lo, hi)
	c.drop(c.scores, lo, hi)
	values := pack(&c.gemm, c.across, columnsOf(v, c.kw), c.a.D, hi)
	g := gemmCall{c: y[lo*c.qw:], ldc: c.qw, a: rowsOf(c.scores, c.ld)}
	tall := len(c.gemm.tiles) - 1
	for i := lo; i < hi; i += tall {
		rows, from := min(tall, hi-i), first(i, c.a)
		g.strip(&c.gemm, c.w, &values, i-lo, rows, from, i+rows-from)
	}
	logs := c.logsOf(hi - lo)
	for p := lo; p < hi; p++ {
		out := &y[p*c.qw]
		c.element.scale(out, out, c.a.D, 1/c.sums[p-lo])
		lse[p*c.a.H] = c.bests[p-lo] + logs[p-lo]
	}
}

// canBatch reports whether one loop can process all rows up to hi-1. Every row must attend to position 0, and there
// must be no soft cap.
func (c *causal) canBatch(hi int) bool {
	return c.train.rows != nil && c.a.Softcap == 0 && (c.a.Window == 0 || hi <= c.a.Window)
}

// weighRows turns rows of scores into weights that are not divided by their sums yet.
func (c *causal) weighRows(lo, hi int) {
	scale := float32(c.a.Scale)
	if c.canBatch(hi) {
		c.train.rows.weigh(&c.scores[0], 4*c.ld, lo+1, hi-lo, &c.bests[0], &c.sums[0], scale)
		return
	}
	for p := lo; p < hi; p++ {
		row, from := c.scores[(p-lo)*c.ld:][:c.ld], first(p, c.a)
		if c.a.Softcap != 0 {
			c.softcap(row[from:p+1], float32(c.a.Scale), float32(c.a.Softcap))
			scale = 1
		}
		c.bests[p-lo], c.sums[p-lo] = c.attend.weigh(&row[from], p+1-from, scale)
		c.clearMasked(row, p)
	}
}

// drop drops weights, or their gradients, of rows lo..hi-1.
func (c *causal) drop(scores []float32, lo, hi int) {
	if c.a.Dropout.Rate == 0 {
		return
	}
	for p := lo; p < hi; p++ {
		from := first(p, c.a)
		kernel.Drop(scores[(p-lo)*c.ld:][from:p+1], c.a.Dropout, c.lo+p*c.a.H, from)
	}
}

// logsOf returns the logarithms of the sums of rows.
func (c *causal) logsOf(rows int) []float32 {
	logs := c.logs[:rows]
	if ops := c.train.rows; ops != nil {
		ops.logs(&logs[0], &c.sums[0], rows)
		return logs
	}
	for i := range logs {
		logs[i] = float32(logOf(float64(c.sums[i])))
	}
	return logs
}

// logOf returns the natural logarithm of a positive normal number, to within 1e-12. It splits x into
// 2^e·m with m between sqrt(1/2) and sqrt(2), where log m is a fast series in (m-1)/(m+1).
func logOf(x float64) float64 {
	const least = 0x3fe6a09e667f3bcd // sqrt(1/2)
	bits := math.Float64bits(x)
	exponent := int64(bits-least) >> 52 // without a branch, which would be unpredictable
	e, m := float64(exponent), math.Float64frombits(bits-uint64(exponent)<<52)
	s := (m - 1) / (m + 1)
	z := float64(s * s)
	sum := 1.0 / 15
	for _, c := range [...]float64{1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1} {
		sum = float64(sum*z) + c
	}
	return float64(e*math.Ln2) + float64(2*s*sum)
}

// AttendCausalGrad overwrites dq, dk and dv. It recomputes the weights from the scores and the stored
// log-sum-exp. Query heads that share a key/value head are one piece of work, so that the gradients of
// keys and values are summed in one order.
func (s *Set) AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v kernel.Buffer[float32], b, t int, a kernel.Heads) {
	must("attend causal grad", "dy", len(dy), b*t*a.H*a.D)
	must("attend causal grad", "y", len(y), b*t*a.H*a.D)
	must("attend causal grad", "q", len(q), b*t*a.H*a.D)
	must("attend causal grad", "dq", len(dq), b*t*a.H*a.D)
	must("attend causal grad", "k", len(k), b*t*a.K*a.D)
	must("attend causal grad", "dk", len(dk), b*t*a.K*a.D)
	must("attend causal grad", "v", len(v), b*t*a.K*a.D)
	must("attend causal grad", "dv", len(dv), b*t*a.K*a.D)
	must("attend causal grad", "lse", len(lse), b*t*a.H)
	if t == 0 {
		return
	}
	s.each(b*a.K, 5*b*t*t*a.H*a.D/2, func(i int) {
		c := s.causalHead(i/a.K*t, i%a.K*(a.H/a.K), t, a, true)
		defer c.done()
		c.backward(dq, dk, dv, dy, y, lse, q, k, v)
	})
}

// backward computes the gradients of a key/value head and of its query heads.
func (c *causal) backward(dq, dk, dv, dy, y, lse, q, k, v []float32) {
	a, t, block := c.a, c.t, c.causalBlock(c.t)
	keys := pack(&c.narrow, c.keys, rowsOf(k[c.ko:], c.kw), t, a.D)
	values := pack(&c.narrow, c.values, rowsOf(v[c.ko:], c.kw), t, a.D)
	across := pack(&c.gemm, c.across, columnsOf(k[c.ko:], c.kw), a.D, t)
	for head := range a.H / a.K {
		for lo := 0; lo < t; lo += block {
			hi := min(lo+block, t)
			c.scoresOf(c.scores, q[c.qo:], keys, lo, hi)
			c.scoresOf(c.slopes, dy[c.qo:], values, lo, hi)
			c.drop(c.slopes, lo, hi)
			c.slope(dy[c.qo:], y[c.qo:], lse[c.lo:], lo, hi)
			c.drop(c.scores, lo, hi)
			c.queryGrad(dq[c.qo:], across, lo, hi)
			c.keyGrad(dk[c.ko:], c.slopes, pack(&c.gemm, c.queries, columnsOf(q[c.qo+lo*c.qw:], c.qw), a.D, hi-lo),
				lo, hi, head == 0)
			c.keyGrad(dv[c.ko:], c.scores, pack(&c.gemm, c.dys, columnsOf(dy[c.qo+lo*c.qw:], c.qw), a.D, hi-lo), lo,
				hi, head == 0)
		}
		c.qo += a.D
		c.lo++
	}
}

// slope turns rows of scores into weights w, and rows of dy·v into the gradients of the scores,
// w·(dy·v - dy·y)·scale.
func (c *causal) slope(dy, y, lse []float32, lo, hi int) {
	scale := float32(c.a.Scale)
	deltas := c.deltas[:hi-lo]
	c.train.rowDots(&deltas[0], &dy[lo*c.qw], 4*c.qw, &y[lo*c.qw], 4*c.qw, c.a.D, hi-lo)
	if c.canBatch(hi) {
		c.train.rows.slopes(&c.slopes[0], &c.scores[0], 4*c.ld, lo+1, hi-lo, &lse[lo*c.a.H], 4*c.a.H, &deltas[0], scale)
		return
	}
	for p := lo; p < hi; p++ {
		weights, slopes := c.scores[(p-lo)*c.ld:][:c.ld], c.slopes[(p-lo)*c.ld:][:c.ld]
		from := first(p, c.a)
		n := p + 1 - from
		if c.a.Softcap != 0 {
			c.cappedSlopes(slopes[from:p+1], weights[from:p+1], scale, lse[p*c.a.H], deltas[p-lo])
		} else {
			c.train.scoreSlopes(&slopes[from], &weights[from], n, scale, lse[p*c.a.H], deltas[p-lo])
		}
		c.clearMasked(weights, p)
		c.clearMasked(slopes, p)
	}
}

// cappedSlopes is slope for scores with a soft cap, whose derivative is one more factor.
func (c *causal) cappedSlopes(slopes, weights []float32, scale, lse, delta float32) {
	most := float32(c.a.Softcap)
	c.softcap(weights, scale, most)
	for i, s := range weights {
		u := float32(s / most)
		slopes[i] = float32((slopes[i] - delta) * float32(scale*(1-float32(u*u))))
	}
	c.train.scoreSlopes(&slopes[0], &weights[0], len(weights), 1, lse, 0)
}

// queryGrad writes the gradient of queries lo..hi-1.
func (c *causal) queryGrad(dq []float32, keys gemmPanels, lo, hi int) {
	tall := len(c.gemm.tiles) - 1
	g := gemmCall{c: dq[lo*c.qw:], ldc: c.qw, a: rowsOf(c.slopes, c.ld)}
	for i := lo; i < hi; i += tall {
		rows, from := min(tall, hi-i), first(i, c.a)
		g.strip(&c.gemm, c.w, &keys, i-lo, rows, from, i+rows-from)
	}
}

// keyGrad adds the contribution of queries lo..hi-1 to the positions that they attend to:
// out[position] += Σ weight·x. The first block of the first head that attends to a position overwrites
// it instead.
func (c *causal) keyGrad(out, weights []float32, x gemmPanels, lo, hi int, fresh bool) {
	tall := len(c.gemm.tiles) - 1
	g := gemmCall{c: out, ldc: c.kw, near: true, a: columnsOf(weights, c.ld)}
	for i := first(lo, c.a) / tall * tall; i < hi; i += tall {
		rows := min(tall, hi-i)
		from, to := max(lo, i), hi
		if c.a.Window > 0 {
			to = min(hi, i+rows-1+c.a.Window)
		}
		if from < to {
			g.add = !fresh || i < lo
			g.strip(&c.gemm, c.w, &x, i, rows, from-lo, to-from)
		}
	}
}
