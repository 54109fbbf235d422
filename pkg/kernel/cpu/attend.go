package cpu

import (
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Attention over paged caches. Positions are cut into chunks of attendChunk, counted from position zero.
// For each query, a chunk yields the greatest score, the sum of the weights and the weighted sum of the
// values; the chunks are then joined in order. The result does not depend on the rest of the batch or on
// how the prompt was split. Queries that share keys can therefore be computed together, and chunks of one
// query apart.

const (
	attendBlock = 16  // positions in a block of keys or values
	attendChunk = 256 // positions in a chunk
	tileQueries = 12  // most queries of a tile
)

// attendOps are the loops of one instruction family.
type attendOps struct {
	full, float16 attendLoops // over blocks of float32, and of float16 if the family has them
	weigh         func(x *float32, n int, scale float32) (best, sum float32)
	join          func(y, x *float32, n int, a, b float32) // y = a·y + b·x, where b·x is added by a fused multiply-add
}

// attendLoops are the loops over blocks of one type; those for many queries come first.
type attendLoops struct {
	scores []scoresLoop
	values []valuesLoop
}

// scoresLoop writes the scores of n queries, [D][ldq/4], with whole blocks of keys.
type scoresLoop struct {
	n   int
	run func(out *float32, ldo int, q *float32, ldq int, keys **float32, d, blocks int)
}

// valuesLoop adds the weighted values of n positions, from row at of the first block on, to the sums of
// queries: 16·groups components, or 16, from byte col on.
type valuesLoop struct {
	n, groups int
	wide, one func(y *float32, ldy int, w *float32, ldw int, blocks **float32, ldv, col, at, n int)
}

// attendTile is a run of queries of one span, or of spans that are joined, which share keys. Query i belongs to row
// i/group and to the query head i%group of those that share the key/value head.
type attendTile struct {
	span     *kernel.Span[float32] // the first of the joined ones
	row      int                   // first row of the spans in the batch
	rows     int                   // of all spans
	kv       int
	first, n int
}

// attendCall has the arguments that all tiles share.
type attendCall struct {
	y, q  []float32
	a     kernel.Heads
	group int
}

// attendPart is the result of some positions for n queries.
type attendPart struct {
	best, sum [tileQueries]float32
	acc       []float32 // [n][D]
}

// attendScratch is the scratch of one worker.
type attendScratch struct {
	keys, values [attendChunk / attendBlock]*float32 // float16 elements if float16 is set, else float32
	float16      bool
	run, part    attendPart
	q            []float32                          // [D][tileQueries]
	scores       [tileQueries * attendChunk]float32 // [n][attendChunk]
	blocks       []float32                          // converted keys and values
}

// Attend computes causal attention over paged caches. The work is cut into tiles of queries that share keys; a worker
// computes all chunks of a tile, one after another, and joins them. If there are fewer tiles than keep all workers
// busy, as for a single long sequence, the chunks are distributed instead.
func (s *Set) Attend(y, q kernel.Buffer[float32], spans []kernel.Span[float32], a kernel.Heads) {
	rows := 0
	for _, sp := range spans {
		rows += sp.Rows
	}
	must("attend", "q", len(q), rows*a.H*a.D)
	must("attend", "y", len(y), rows*a.H*a.D)
	call := &attendCall{y: y, q: q, a: a, group: a.H / a.K}
	var tiles []attendTile
	cost, row, chunks := 0, 0, 0
	for i := 0; i < len(spans); {
		sp := &spans[i]
		joined := joinedSpans(spans[i:])
		here := sp.Rows * joined
		for kv := range a.K {
			for first := 0; first < here*call.group; first += tileQueries {
				tiles = append(tiles, attendTile{sp, row, here, kv, first, min(tileQueries, here*call.group-first)})
			}
		}
		seen := sp.Pos + sp.Rows - first(sp.Pos, a)
		cost += here * a.H * a.D * seen
		chunks += len(tiles) * (seen/attendChunk + 1)
		row += here
		i += joined
	}
	if len(tiles) < 3*len(s.pool.parts) && chunks > len(tiles) && cost >= small {
		s.attendByChunks(call, tiles)
		return
	}
	s.each(len(tiles), cost, func(i int) {
		w := s.attender(&a)
		defer s.attending.Put(w)
		t := &tiles[i]
		lo, hi := call.chunks(t)
		call.load(t, w)
		s.sumChunk(call, t, lo, w, &w.run)
		for c := lo + 1; c < hi; c++ {
			s.sumChunk(call, t, c, w, &w.part)
			s.joinParts(&w.run, &w.part, t.n, a.D)
		}
		s.storeTile(call, t, &w.run)
	})
}

// joinedSpans returns the number of spans from the first on that tiles are made of together. Spans of one row that see
// the same positions, as all rows of an encoder's text do, are joined, so that their queries share what is read.
func joinedSpans(spans []kernel.Span[float32]) int {
	first := &spans[0]
	if first.Rows != 1 {
		return 1
	}
	n := 1
	for n < len(spans) && spans[n].Rows == 1 && spans[n].Pos == first.Pos && sameCache(&spans[n].KV, &first.KV) {
		n++
	}
	return n
}

// sameCache reports whether two views are of the same pages.
func sameCache(a, b *kernel.KV[float32]) bool {
	return a.Type == b.Type && a.PageLen == b.PageLen && a.Layer == b.Layer && len(a.Pages) == len(b.Pages) &&
		unsafe.SliceData(a.Pages) == unsafe.SliceData(b.Pages)
}

// attendByChunks computes the chunks of a few tiles in parallel.
func (s *Set) attendByChunks(call *attendCall, tiles []attendTile) {
	type work struct {
		tile  *attendTile
		chunk int
		part  attendPart
	}
	var all []work
	for i := range tiles {
		lo, hi := call.chunks(&tiles[i])
		for c := lo; c < hi; c++ {
			all = append(all, work{tile: &tiles[i], chunk: c})
		}
	}
	size := tileQueries * call.a.D
	sums := s.buffer(len(all) * size)
	defer s.give(sums)
	s.pool.each(len(all), func(i int) {
		w := s.attender(&call.a)
		defer s.attending.Put(w)
		p := &all[i]
		p.part.acc = (*sums)[i*size : (i+1)*size]
		call.load(p.tile, w)
		s.sumChunk(call, p.tile, p.chunk, w, &p.part)
	})
	for i := 0; i < len(all); {
		run := &all[i]
		for i++; i < len(all) && all[i].tile == run.tile; i++ {
			s.joinParts(&run.part, &all[i].part, run.tile.n, call.a.D)
		}
		s.storeTile(call, run.tile, &run.part)
	}
}

// attender returns the scratch of a worker.
func (s *Set) attender(a *kernel.Heads) *attendScratch {
	w, _ := s.attending.Get().(*attendScratch)
	if w == nil {
		w = &attendScratch{}
	}
	if len(w.q) < tileQueries*a.D {
		store := make([]float32, 3*tileQueries*a.D)
		w.q, w.run.acc, w.part.acc = store[:tileQueries*a.D], store[tileQueries*a.D:2*tileQueries*a.D],
			store[2*tileQueries*a.D:]
	}
	return w
}

// position returns the position of query i of a tile. Joined spans have one row each, all at one position.
func (c *attendCall) position(t *attendTile, i int) int {
	if t.span.Rows == 1 {
		return t.span.Pos
	}
	return t.span.Pos + (t.first+i)/c.group
}

// offset returns where query i of a tile begins in q and y.
func (c *attendCall) offset(t *attendTile, i int) int {
	i += t.first
	return ((t.row+i/c.group)*c.a.H + t.kv*c.group + i%c.group) * c.a.D
}

// query returns query i of a tile.
func (c *attendCall) query(t *attendTile, i int) []float32 { return c.q[c.offset(t, i):][:c.a.D] }

// chunks returns the range of chunks with positions that a tile attends to.
func (c *attendCall) chunks(t *attendTile) (lo, hi int) {
	return first(c.position(t, 0), c.a) / attendChunk, c.position(t, t.n-1)/attendChunk + 1
}

// load packs a tile's queries.
func (c *attendCall) load(t *attendTile, w *attendScratch) {
	i := 0
	for ; i+4 <= t.n; i += 4 {
		q0, q1, q2, q3 := c.query(t, i), c.query(t, i+1), c.query(t, i+2), c.query(t, i+3)
		for d, v := range q0 {
			to := (*[4]float32)(w.q[d*tileQueries+i:])
			to[0], to[1], to[2], to[3] = v, q1[d], q2[d], q3[d]
		}
	}
	for ; i < t.n; i++ {
		for d, v := range c.query(t, i) {
			w.q[d*tileQueries+i] = v
		}
	}
}

// storeTile writes the results of a tile.
func (s *Set) storeTile(call *attendCall, t *attendTile, p *attendPart) {
	if sinks := call.a.Sinks; sinks != nil {
		var extra [tileQueries]float32
		for i := range t.n {
			extra[i] = sinks[t.kv*call.group+(t.first+i)%call.group] - p.best[i]
		}
		s.exp(&extra[0], &extra[0], t.n, 1, 0)
		for i := range t.n {
			p.sum[i] += extra[i]
		}
	}
	for i := range t.n {
		s.element.scale(&call.y[call.offset(t, i)], &p.acc[i*call.a.D], call.a.D, 1/p.sum[i])
	}
}

// joinParts joins the part of later positions with that of earlier ones.
func (s *Set) joinParts(run, part *attendPart, n, d int) {
	var scales [2 * tileQueries]float32
	for i := range n {
		best := run.best[i]
		if run.sum[i] == 0 || part.sum[i] != 0 && part.best[i] > best {
			best = part.best[i]
		}
		scales[2*i], scales[2*i+1] = run.best[i]-best, part.best[i]-best
		run.best[i] = best
	}
	s.exp(&scales[0], &scales[0], 2*n, 1, 0)
	for i := range n {
		switch {
		case part.sum[i] == 0: // the query attends to no position of the chunk
		case run.sum[i] == 0:
			run.sum[i] = part.sum[i]
			copy(run.acc[i*d:(i+1)*d], part.acc[i*d:])
		default:
			run.sum[i] = fma32(part.sum[i], scales[2*i+1], run.sum[i]*scales[2*i])
			s.attend.join(&run.acc[i*d], &part.acc[i*d], d, scales[2*i], scales[2*i+1])
		}
	}
}

// sumChunk computes the part of chunk c for the queries of a tile. Whole blocks of scores are computed, even where some
// queries do not attend to all positions; the weights and the sums of values use each query's own range. Values of
// the positions that all queries attend to are added for all queries at once, those before and after for each query
// alone. The order of a query's sum is the order of positions in both cases.
func (s *Set) sumChunk(call *attendCall, t *attendTile, c int, w *attendScratch, out *attendPart) {
	a, from := &call.a, c*attendChunk
	var lo, hi [tileQueries]int // positions of the chunk that each query attends to
	least, most := attendChunk, 0
	shared, sharedEnd := 0, attendChunk
	for i := range t.n {
		p := call.position(t, i)
		lo[i], hi[i] = max(first(p, *a)-from, 0), min(p+1-from, attendChunk)
		hi[i] = max(hi[i], lo[i])
		if hi[i] > lo[i] {
			least, most = min(least, lo[i]), max(most, hi[i])
		}
		shared, sharedEnd = max(shared, lo[i]), min(sharedEnd, hi[i])
	}
	out.sum = [tileQueries]float32{}
	clear(out.acc[:t.n*a.D])
	if most <= least {
		return
	}
	block, end := least/attendBlock, (most+attendBlock-1)/attendBlock
	once := t.rows*call.group <= tileQueries // no other tile reads these positions
	if once {
		if c == 0 {
			s.prefetchBlocks(t, a.D, from, end, true)
		}
		s.prefetchBlocks(t, a.D, from, end, false)
	}
	s.viewBlocks(call, t, from, block, end, w)
	if once {
		s.prefetchBlocks(t, a.D, from+attendChunk, attendChunk/attendBlock, true)
	}
	for i := 0; i < t.n; {
		for _, loop := range s.loops(w).scores {
			if loop.n <= t.n-i {
				loop.run(&w.scores[i*attendChunk+block*attendBlock], 4*attendChunk, &w.q[i], 4*tileQueries,
					&w.keys[block], a.D, end-block)
				i += loop.n
				break
			}
		}
	}
	scale := float32(a.Scale)
	for i := range t.n {
		if a.Softcap != 0 && hi[i] > lo[i] {
			s.softcap(w.scores[i*attendChunk+lo[i]:i*attendChunk+hi[i]], scale, float32(a.Softcap))
		}
	}
	if a.Softcap != 0 {
		scale = 1
	}
	for i := range t.n {
		if hi[i] > lo[i] {
			out.best[i], out.sum[i] = s.attend.weigh(&w.scores[i*attendChunk+lo[i]], hi[i]-lo[i], scale)
		}
	}
	if shared >= sharedEnd { // the windows of the queries do not overlap
		for i := range t.n {
			s.addValues(w, out.acc, i, 1, lo[i], hi[i], a.D)
		}
		return
	}
	for i := range t.n {
		s.addValues(w, out.acc, i, 1, lo[i], shared, a.D)
	}
	s.addValues(w, out.acc, 0, t.n, shared, sharedEnd, a.D)
	for i := range t.n {
		s.addValues(w, out.acc, i, 1, sharedEnd, hi[i], a.D)
	}
}

// loops returns the loops for the blocks that w points at.
func (s *Set) loops(w *attendScratch) *attendLoops {
	if w.float16 {
		return &s.attend.float16
	}
	return &s.attend.full
}

// softcap turns scores x into most·tanh(scale·x/most), with tanh u = 1 - 2/(exp(2u)+1).
func (s *Set) softcap(x []float32, scale, most float32) {
	s.exp(&x[0], &x[0], len(x), 2*scale/most, 0)
	for i, e := range x {
		x[i] = most * (1 - 2/(e+1))
	}
}

// addValues adds the values of positions lo..hi-1 to the sums of n queries.
func (s *Set) addValues(w *attendScratch, acc []float32, i, n, lo, hi, d int) {
	if hi <= lo {
		return
	}
	blocks, at := &w.values[lo/attendBlock], lo%attendBlock
	size := 4
	if w.float16 {
		size = 2
	}
	for end := i + n; i < end; {
		for _, loop := range s.loops(w).values {
			if loop.n > end-i {
				continue
			}
			weights, col := &w.scores[i*attendChunk+lo], 0
			for ; col+attendBlock*loop.groups <= d; col += attendBlock * loop.groups {
				loop.wide(&acc[i*d+col], 4*d, weights, 4*attendChunk, blocks, size*d, size*col, at, hi-lo)
			}
			for ; col+attendBlock <= d; col += attendBlock {
				loop.one(&acc[i*d+col], 4*d, weights, 4*attendChunk, blocks, size*d, size*col, at, hi-lo)
			}
			for q := range loop.n {
				if col < d {
					plainValues(acc[(i+q)*d+col:(i+q+1)*d], w.scores[(i+q)*attendChunk+lo:(i+q)*attendChunk+hi], blocks,
						d, col, at)
				}
			}
			i += loop.n
			break
		}
	}
}

// attendPortable returns the loops in plain Go.
func attendPortable() attendOps {
	return attendOps{full: attendLoops{
		scores: []scoresLoop{{1, func(out *float32, _ int, q *float32, ldq int, keys **float32, d, blocks int) {
			to := unsafe.Slice(out, blocks*attendBlock)
			for b, key := range unsafe.Slice(keys, blocks) {
				acc := to[b*attendBlock : (b+1)*attendBlock]
				clear(acc)
				for i := range d {
					v := *at(q, i*ldq/4)
					for j, k := range unsafe.Slice(at(key, i*attendBlock), attendBlock) {
						acc[j] = fma32(k, v, acc[j])
					}
				}
			}
		}}},
		values: []valuesLoop{{1, 1, portableValues, portableValues}},
	}, join: plainJoin}
}

func portableValues(y *float32, _ int, w *float32, _ int, blocks **float32, ldv, col, at, n int) {
	plainValues(unsafe.Slice(y, attendBlock), unsafe.Slice(w, n), blocks, ldv/4, col/4, at)
}

// plainValues adds the weighted values of len(w) positions to y, from component col on.
func plainValues(y, w []float32, blocks **float32, d, col, row int) {
	table := unsafe.Slice(blocks, (row+len(w)+attendBlock-1)/attendBlock)
	for i, weight := range w {
		for j, v := range unsafe.Slice(at(table[(row+i)/attendBlock], (row+i)%attendBlock*d+col), len(y)) {
			y[j] = fma32(v, weight, y[j])
		}
	}
}

// plainJoin is join in plain Go.
func plainJoin(y, x *float32, n int, a, b float32) {
	out := unsafe.Slice(y, n)
	for i, v := range unsafe.Slice(x, n) {
		out[i] = fma32(v, b, out[i]*a)
	}
}

// weighOf returns the loop that turns scores x into weights exp(scale·x - best), where best is the
// greatest scale·x, made of a family's other loops.
func weighOf(o *ops) func(x *float32, n int, scale float32) (best, sum float32) {
	return func(x *float32, n int, scale float32) (best, sum float32) {
		best = o.max(x, n) * scale
		o.exp(x, x, n, scale, best)
		return best, o.sum(x, n)
	}
}
