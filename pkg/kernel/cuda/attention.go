package cuda

import (
	"fmt"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Attention reads tables: for each row the index of its sequence's first page and its position, and for each page the
// addresses of its parts. Both are uploaded for every call, behind the workspace of the partial results.

// chunkPositions is the number of positions of a chunk, as the kernels cut them.
const chunkPositions = 256

// partBytes bounds the partial results of a launch. More rows go in several launches, which changes no bit.
const partBytes = 64 << 20

// maxHeadDim is the largest head that the kernels take.
const maxHeadDim = 256

// pageTable is the tables of a batch on one kind of page.
type pageTable struct {
	rows  []int32  // [T,2]
	pages []uint64 // [P,4]
	last  *[]kernel.KVPage[float32]
	first int // of the last sequence
}

// add appends rows of consecutive positions.
func (t *pageTable) add(kv kernel.KV[float32], pos, rows int) {
	if len(kv.Pages) == 0 {
		return
	}
	first := t.sequence(kv)
	for i := range rows {
		t.rows = append(t.rows, int32(first), int32(pos+i))
	}
}

// sequence appends the pages of a sequence and returns the index of the first.
func (t *pageTable) sequence(kv kernel.KV[float32]) int {
	// Spans of an encoder's rows share one list.
	if t.last != &kv.Pages[0] {
		t.last, t.first = &kv.Pages[0], len(t.pages)/4
		for i := range kv.Pages {
			p := kv.Page(i)
			t.pages = append(t.pages, place(p.Keys, p.KeyCodes), place(p.Values, p.ValueCodes),
				place(p.KeyScales, nil), place(p.ValueScales, nil))
		}
	}
	return t.first
}

// place is the address of floats, or of codes if there are none.
func place(x []float32, codes []byte) uint64 {
	switch {
	case len(x) > 0:
		return uint64(uintptr(unsafe.Pointer(&x[0])))
	case len(codes) > 0:
		return uint64(uintptr(unsafe.Pointer(&codes[0])))
	}
	return 0
}

// bytes is the size of both tables, each rounded to 16.
func (t *pageTable) bytes() (rows, pages int) { return (4*len(t.rows) + 15) &^ 15, 8 * len(t.pages) }

// upload copies the tables to the device.
func (t *pageTable) upload(w *worker, at driver.Address) (rows, pages driver.Address, err error) {
	skip, _ := t.bytes()
	if err := w.upload(at, bytesOf(t.rows)); err != nil {
		return 0, 0, err
	}
	pages = at + driver.Address(skip)
	return at, pages, w.upload(pages, bytesOf(t.pages))
}

// pageBounds panics unless a sequence has pages for positions up to n-1.
func pageBounds(op string, kv kernel.KV[float32], n int) {
	if n > len(kv.Pages)*kv.PageLen {
		panic(fmt.Sprintf("%s: %d positions in %d pages of %d", op, n, len(kv.Pages), kv.PageLen))
	}
}

// Store writes keys and values to their pages.
func (s *Set) Store(kv kernel.KV[float32], pos int, k, v kernel.Buffer[float32], heads, d int) {
	const op = "store"
	must(op, "v", len(v), len(k))
	n := len(k) / (heads * d)
	must(op, "k", len(k), n*heads*d)
	f, from, values := s.need(op, "store_"+kv.Type.String()), address(s.device, op, k), address(s.device, op, v)
	if n == 0 {
		return
	}
	pageBounds(op, kv, pos+n)
	var t pageTable
	t.add(kv, pos, n)
	a, b := t.bytes()
	s.workspace(int64(a + b))
	s.send(func(w *worker) error {
		rows, pages, err := t.upload(w, w.work)
		if err != nil {
			return err
		}
		return w.launch(f, driver.Dim{X: blocks(n*heads, 8), Y: 1, Z: 1}, 0, from, values, rows, pages, uint32(heads),
			uint32(d), uint32(kv.PageLen), uint32(n*heads))
	})
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
	for i := 0; i < len(spans); { // spans on one kind of page go together
		kind, length := spans[i].KV.Type, spans[i].KV.PageLen
		t, strips, rows := pageTable{}, stripTable{perKV: a.H / a.K}, 0
		for ; i < len(spans) && spans[i].KV.Type == kind && spans[i].KV.PageLen == length; i++ {
			pageBounds(op, spans[i].KV, spans[i].Pos+spans[i].Rows)
			rows += spans[i].Rows
			if kind == kernel.KVF16 {
				strips.add(spans[i])
			} else {
				t.add(spans[i].KV, spans[i].Pos, spans[i].Rows)
			}
		}
		if kind == kernel.KVF16 {
			s.attendStrips(to, from, &strips, length, a)
		} else {
			s.attendRows(to, from, &t, kind, length, a)
		}
		to, from = to+driver.Address(4*rows*width), from+driver.Address(4*rows*width)
	}
}

// attendRows computes the rows of a table.
func (s *Set) attendRows(to, from driver.Address, t *pageTable, kind kernel.KVType, length int, a kernel.Heads) {
	heads := 1
	if a.H/a.K%4 == 0 {
		heads = 4
	}
	f, join := s.need("attend", fmt.Sprintf("attend_%v_%d", kind, heads)), s.need("attend", "attend_join")
	rows := len(t.rows) / 2
	if rows == 0 {
		return
	}
	// Rows are cut so that the partial results of each piece fit.
	type piece struct{ lo, hi, chunks int }
	var pieces []piece
	parts, row := 0, 4*a.H*(2+a.D) // bytes; of a row and chunk
	for lo := 0; lo < rows; {
		p := piece{lo: lo, hi: lo}
		for p.hi < rows && p.hi-lo < maxBlocksY {
			chunks := max(p.chunks, int(t.rows[2*p.hi+1])/chunkPositions+1)
			if p.hi > lo && (p.hi+1-lo)*chunks*row > partBytes {
				break
			}
			p.hi, p.chunks = p.hi+1, chunks
		}
		pieces = append(pieces, p)
		parts, lo = max(parts, (p.hi-lo)*p.chunks*row), p.hi
	}
	parts = (parts + 15) &^ 15
	sinkBytes := (4*len(a.Sinks) + 15) &^ 15
	b1, b2 := t.bytes()
	s.workspace(int64(parts + sinkBytes + b1 + b2))
	sinkValues := append([]float32(nil), a.Sinks...)
	s.send(func(w *worker) error {
		at, sinks := w.work+driver.Address(parts), driver.Address(0)
		if len(sinkValues) > 0 {
			sinks = at
			if err := w.upload(sinks, bytesOf(sinkValues)); err != nil {
				return err
			}
		}
		table, pages, err := t.upload(w, at+driver.Address(sinkBytes))
		if err != nil {
			return err
		}
		for _, p := range pieces {
			n, chunks := uint32(p.hi-p.lo), uint32(p.chunks)
			skip := driver.Address(4 * p.lo * a.H * a.D)
			first := table + driver.Address(8*p.lo)
			err := w.launch(f, driver.Dim{X: chunks, Y: uint32(a.H / heads), Z: n}, 0, w.work, from+skip, first, pages,
				uint32(a.H), uint32(a.K), uint32(a.D), uint32(length), uint32(a.Window), chunks, float32(a.Scale),
				float32(a.Softcap))
			if err != nil {
				return err
			}
			err = w.launch(join, driver.Dim{X: uint32(a.H), Y: n, Z: 1}, 0, to+skip, w.work, first, sinks, uint32(a.H),
				uint32(a.D), uint32(a.Window), chunks)
			if err != nil {
				return err
			}
		}
		return nil
	})
}
