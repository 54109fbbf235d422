package cuda

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Attention over caches of float16 goes by strips: 16 pairs of a row and a query head that share a key/value head.

const (
	stripPairs = 16
	stripInts  = 8  // of a strip's entry
	splitPairs = 64 // a span of at most so many pairs has a block for each chunk of positions
	groupSize  = 4  // strips of a block of the other spans
)

// stripList has the strips of a table.
type stripList struct {
	split, whole []int32 // [N,8]
	chunks       int     // of the longest span of split
}

// strips cuts the spans of a table into strips, for so many query heads of a key/value head.
func (t *batchTable) strips(perKV int) (out stripList) {
	row := 0
	for _, s := range t.spans {
		pairs := s.rows * perKV
		list, end := &out.split, pairs
		if pairs > splitPairs {
			const block = groupSize * stripPairs
			list, end = &out.whole, (pairs+block-1)/block*block
		} else {
			out.chunks = max(out.chunks, (s.pos+s.rows-1)/chunkPositions+1)
		}
		for pair := 0; pair < end; pair += stripPairs {
			*list = append(*list, int32(s.first), int32(s.pos), int32(row), int32(pair), int32(pairs), 0, 0, 0)
		}
		row += s.rows
	}
	return out
}

// list returns all strips, the split ones first.
func (l *stripList) list() []int32 { return append(l.split, l.whole...) }

// stripSizes returns the bytes of the queries of a strip, and those of its partial results for a chunk.
func stripSizes(a kernel.Heads) (perQuery, perPart int) {
	return a.K * ((a.D+15)/16*1024 + 4*stripPairs), 4 * a.K * stripPairs * (2 + a.D)
}

// attendStrips computes the rows of a table.
func (s *Set) attendStrips(to, from driver.Address, t *batchTable, a kernel.Heads) {
	const op = "attend"
	dims := 128
	if a.D > dims {
		dims = maxHeadDim
	}
	queries, split, join := s.need(op, "strip_queries"), s.need(op, "strip_split"), s.need(op, "strip_join")
	whole := s.need(op, fmt.Sprintf("strip_whole_%d", dims))
	// Strips are cut so that the queries and the partial results of each piece fit.
	type piece struct {
		at, strips, chunks int // chunks is 0 for whole strips
	}
	var pieces []piece
	perQuery, perPart := stripSizes(a)
	work := 0
	cut := func(from, strips, chunks, group int) {
		size := perQuery + chunks*perPart
		most := min(max(partBytes/size/group, 1)*group, maxBlocksY/group*group)
		for at := 0; at < strips; at += most {
			n := min(most, strips-at)
			pieces = append(pieces, piece{from + at, n, chunks})
			work = max(work, n*size)
		}
	}
	all := t.strips(a.H / a.K)
	few, many := len(all.split)/stripInts, len(all.whole)/stripInts
	cut(0, few, roundUp(all.chunks), 1)
	cut(few, many, 0, groupSize)
	work = (work + 15) &^ 15
	s.workspace(int64(work))
	sinks := s.holdSinks(a.Sinks)
	list := all.list()
	s.rec.strips(a.H / a.K)
	s.withTable(t, &s.tables.strips, list, func(w *worker, table, pages driver.Address) error {
		h, kv, d, window := uint32(a.H), uint32(a.K), uint32(a.D), uint32(a.Window)
		for _, p := range pieces {
			strips, n := table+driver.Address(4*stripInts*p.at), uint32(p.strips)
			err := w.launch(queries, driver.Dim{X: n, Y: kv, Z: 1}, 0, w.work, from, strips, h, kv, d, float32(a.Scale))
			if err != nil {
				return err
			}
			if p.chunks == 0 {
				err = w.launch(whole, driver.Dim{X: n / groupSize, Y: kv, Z: 1}, 0, to, w.work, strips, pages, h, kv, d,
					uint32(t.length), window, float32(a.Softcap), sinks)
				if err != nil {
					return err
				}
				continue
			}
			parts, chunks := w.work+driver.Address(p.strips*perQuery), uint32(p.chunks)
			err = w.launch(split, driver.Dim{X: chunks, Y: kv, Z: n}, 0, parts, w.work, strips, pages, h, kv, d,
				uint32(t.length), window, float32(a.Softcap), chunks)
			if err != nil {
				return err
			}
			err = w.launch(join, driver.Dim{X: stripPairs, Y: kv, Z: n}, 0, to, parts, strips, sinks, h, kv, d, window,
				chunks)
			if err != nil {
				return err
			}
		}
		return nil
	})
}
