package cuda

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// chunkPositions is the number of positions of a chunk, as the kernels cut them.
const chunkPositions = 256

// partBytes bounds the partial results of a launch. More rows go in several launches, which changes no bit.
const partBytes = 64 << 20

// maxHeadDim is the largest head that the kernels take.
const maxHeadDim = 256

// Store writes keys and values to their pages.
func (s *Set) Store(kv kernel.KV[float32], pos int, k, v kernel.Buffer[float32], heads, d int) {
	s.StoreSpans([]kernel.Span[float32]{{Rows: len(k) / (heads * d), Pos: pos, KV: kv}}, k, v, heads, d)
}

// StoreSpans writes the keys and values of a batch to their pages.
func (s *Set) StoreSpans(spans []kernel.Span[float32], k, v kernel.Buffer[float32], heads, d int) {
	const op = "store"
	rows := 0
	for _, span := range spans {
		rows += span.Rows
	}
	must(op, "k", len(k), rows*heads*d)
	must(op, "v", len(v), len(k))
	keys, values, skip := address(s.device, op, k), address(s.device, op, v), driver.Address(0)
	for _, t := range batchTables(op, spans) {
		f, n := s.need(op, "store_"+t.kind.String()), t.rows
		args := []any{keys + skip, values + skip}
		s.withTable(t, &s.tables.rows, t.list(), func(w *worker, table, pages driver.Address) error {
			args := append(args, table, pages, uint32(heads), uint32(d), uint32(t.length), uint32(n*heads))
			return w.launch(f, driver.Dim{X: blocks(n*heads, 8), Y: 1, Z: 1}, 0, args...)
		})
		skip += driver.Address(4 * n * heads * d)
	}
}

// Attend computes attention over the caches of spans.
func (s *Set) Attend(y, q kernel.Buffer[float32], spans []kernel.Span[float32], a kernel.Heads) {
	const op = "attend"
	all, width := 0, a.H*a.D
	for _, span := range spans {
		all += span.Rows
	}
	must(op, "q", len(q), all*width)
	must(op, "y", len(y), len(q))
	if a.Sinks != nil {
		must(op, "sinks", len(a.Sinks), a.H)
	}
	if a.D > maxHeadDim {
		panic(&kernel.MissingError{Device: s.name, Operation: fmt.Sprintf("attend with heads of %d", a.D)})
	}
	to, from := address(s.device, op, y), address(s.device, op, q)
	for _, t := range batchTables(op, spans) {
		if t.kind == kernel.KVF16 {
			s.attendStrips(to, from, t, a)
		} else {
			s.attendRows(to, from, t, a)
		}
		skip := driver.Address(4 * t.rows * width)
		to, from = to+skip, from+skip
	}
}

// attendRows computes the rows of a table.
func (s *Set) attendRows(to, from driver.Address, t *batchTable, a kernel.Heads) {
	heads := 1
	if a.H/a.K%4 == 0 {
		heads = 4
	}
	f, join := s.need("attend", fmt.Sprintf("attend_%v_%d", t.kind, heads)), s.need("attend", "attend_join")
	list, rows := t.list(), t.rows
	few := 0 // chunks of every row, in a batch that may be a step
	if rows <= stepRows {
		few = roundUp(t.chunks())
	}
	// Rows are cut so that the partial results of each piece fit.
	type piece struct{ lo, hi, chunks int }
	var pieces []piece
	parts, row := 0, 4*a.H*(2+a.D) // bytes; of a row and chunk
	for lo := 0; lo < rows; {
		p := piece{lo: lo, hi: lo}
		for p.hi < rows && p.hi-lo < maxBlocksY {
			chunks := max(few, p.chunks, int(list[2*p.hi+1])/chunkPositions+1)
			if p.hi > lo && (p.hi+1-lo)*chunks*row > partBytes {
				break
			}
			p.hi, p.chunks = p.hi+1, chunks
		}
		pieces = append(pieces, p)
		parts, lo = max(parts, (p.hi-lo)*p.chunks*row), p.hi
	}
	parts = (parts + 15) &^ 15
	s.workspace(int64(parts))
	sinks := s.holdSinks(a.Sinks)
	s.withTable(t, &s.tables.rows, list, func(w *worker, table, pages driver.Address) error {
		for _, p := range pieces {
			n, chunks := uint32(p.hi-p.lo), uint32(p.chunks)
			skip := driver.Address(4 * p.lo * a.H * a.D)
			first := table + driver.Address(8*p.lo)
			err := w.launch(f, driver.Dim{X: chunks, Y: uint32(a.H / heads), Z: n}, 0, w.work, from+skip, first,
				pages, uint32(a.H), uint32(a.K), uint32(a.D), uint32(t.length), uint32(a.Window), chunks,
				float32(a.Scale), float32(a.Softcap))
			if err != nil {
				return err
			}
			err = w.launch(join, driver.Dim{X: uint32(a.H), Y: n, Z: 1}, 0, to+skip, w.work, first, sinks,
				uint32(a.H), uint32(a.D), uint32(a.Window), chunks)
			if err != nil {
				return err
			}
		}
		return nil
	})
}
