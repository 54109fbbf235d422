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

// stripTable has the strips of a batch on one kind of page.
type stripTable struct {
	pageTable
	split, whole []int32 // [N,8]
	rows, chunks int
	perKV        int // query heads of a key/value head
}

// add appends the strips of a span.
func (t *stripTable) add(span kernel.Span[float32]) {
	pairs := span.Rows * t.perKV
	if pairs == 0 {
		return
	}
	first := t.sequence(span.KV)
	list, end := &t.split, pairs
	if pairs > splitPairs {
		const block = groupSize * stripPairs
		list, end = &t.whole, (pairs+block-1)/block*block
	} else {
		t.chunks = max(t.chunks, (span.Pos+span.Rows-1)/chunkPositions+1)
	}
	for pair := 0; pair < end; pair += stripPairs {
		*list = append(*list, int32(first), int32(span.Pos), int32(t.rows), int32(pair), int32(pairs), 0, 0, 0)
	}
	t.rows += span.Rows
}

// attendStrips computes the rows of a table.
func (s *Set) attendStrips(to, from driver.Address, t *stripTable, length int, a kernel.Heads) {
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
	perQuery := a.K * ((a.D+15)/16*1024 + 4*stripPairs) // bytes; of a strip
	perPart := 4 * a.K * stripPairs * (2 + a.D)         // of a strip and chunk
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
	few, many := len(t.split)/stripInts, len(t.whole)/stripInts
	cut(0, few, t.chunks, 1)
	cut(few, many, 0, groupSize)
	if len(pieces) == 0 {
		return
	}
	work = (work + 15) &^ 15
	list := append(t.split, t.whole...)
	sinkBytes := (4*len(a.Sinks) + 15) &^ 15
	s.workspace(int64(work + sinkBytes + 4*len(list) + 8*len(t.pages)))
	sinkValues := append([]float32(nil), a.Sinks...)
	s.send(func(w *worker) error {
		at, sinks := w.work+driver.Address(work), driver.Address(0)
		if len(sinkValues) > 0 {
			sinks = at
			if err := w.upload(sinks, bytesOf(sinkValues)); err != nil {
				return err
			}
		}
		at += driver.Address(sinkBytes)
		if err := w.upload(at, bytesOf(list)); err != nil {
			return err
		}
		pages := at + driver.Address(4*len(list))
		if err := w.upload(pages, bytesOf(t.pages)); err != nil {
			return err
		}
		h, kv, d, window := uint32(a.H), uint32(a.K), uint32(a.D), uint32(a.Window)
		for _, p := range pieces {
			strips, n := at+driver.Address(4*stripInts*p.at), uint32(p.strips)
			err := w.launch(queries, driver.Dim{X: n, Y: kv, Z: 1}, 0, w.work, from, strips, h, kv, d, float32(a.Scale))
			if err != nil {
				return err
			}
			if p.chunks == 0 {
				err = w.launch(whole, driver.Dim{X: n / groupSize, Y: kv, Z: 1}, 0, to, w.work, strips, pages, h, kv, d,
					uint32(length), window, float32(a.Softcap), sinks)
				if err != nil {
					return err
				}
				continue
			}
			parts, chunks := w.work+driver.Address(p.strips*perQuery), uint32(p.chunks)
			err = w.launch(split, driver.Dim{X: chunks, Y: kv, Z: n}, 0, parts, w.work, strips, pages, h, kv, d,
				uint32(length), window, float32(a.Softcap), chunks)
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
