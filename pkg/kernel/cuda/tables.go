package cuda

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Attention and stores read tables: for each row, or strip of rows, the index of its sequence's first page and its
// position, and for each page the addresses of its parts. The layers of a step differ in those addresses only, and the
// next step in a few of them, so the tables stay on the device: they have the pages of all layers, one layer behind the
// other, and are uploaded again when they differ from those of the call before.

// batchTable is the tables of some spans on one kind of page.
type batchTable struct {
	spans  []tableSpan
	rows   int                        // of all spans
	pages  [][]kernel.KVPage[float32] // of all layers
	kind   kernel.KVType
	length int // of pages, in positions
	layer  int
}

// tableSpan is some rows at consecutive positions.
type tableSpan struct{ first, pos, rows int } // first is the index of the first page of the sequence

// batchTables divides spans into those that go together, because they are on one kind of page. They are in the order of
// the spans.
func batchTables(op string, spans []kernel.Span[float32]) []*batchTable {
	var out []*batchTable
	var t *batchTable
	var last *[]kernel.KVPage[float32] // the list of the span before; spans of an encoder's rows share one
	first, of := 0, 0
	for _, s := range spans {
		kv := &s.KV
		pageBounds(op, kv, s.Pos+s.Rows)
		if s.Rows == 0 {
			continue
		}
		if t == nil || kv.Type != t.kind || kv.PageLen != t.length || kv.Layer != t.layer {
			t, last = &batchTable{kind: kv.Type, length: kv.PageLen, layer: kv.Layer}, nil
			out = append(out, t)
		}
		same := last == &kv.Pages[0] && of == len(kv.Pages)
		if !same && len(t.pages) > 0 && (len(t.pages)+len(kv.Pages))*len(kv.Pages[0]) > tableEntries {
			t = &batchTable{kind: kv.Type, length: kv.PageLen, layer: kv.Layer}
			out = append(out, t)
		}
		if !same {
			last, first, of = &kv.Pages[0], len(t.pages), len(kv.Pages)
			t.pages = append(t.pages, kv.Pages...)
		}
		t.spans = append(t.spans, tableSpan{first, s.Pos, s.Rows})
		t.rows += s.Rows
	}
	return out
}

// list returns for each row the index of its sequence's first page and its position.
func (t *batchTable) list() []int32 { // [T,2]
	out := make([]int32, 0, 2*t.rows)
	for _, s := range t.spans {
		for i := range s.rows {
			out = append(out, int32(s.first), int32(s.pos+i))
		}
	}
	return out
}

// chunks returns the number of chunks of the longest span.
func (t *batchTable) chunks() (n int) {
	for _, s := range t.spans {
		n = max(n, (s.pos+s.rows-1)/chunkPositions+1)
	}
	return n
}

// keptSinks bounds the sinks that are kept, a list for each layer.
const keptSinks = 256

// holdSinks returns where the sinks of a layer are on the device; zero for none. What has been put there stays.
func (d *device) holdSinks(sinks []float32) driver.Address {
	if len(sinks) == 0 {
		return 0
	}
	defer d.lockTables()()
	h, key := &d.tables, string(bytesOf(sinks))
	r := h.sinks[key]
	if r == nil {
		if len(h.sinks) == keptSinks || h.sinks == nil {
			h.sinks = map[string]*region{} // those that a graph reads stay with it
		}
		r = &region{}
		r.grow(d.core, len(key))
		h.sinks[key] = r
		d.sendTable(r.at, []byte(key))
	}
	d.rec.keeps(r)
	return r.at
}

// pageBounds panics unless a sequence has pages for positions up to n-1.
func pageBounds(op string, kv *kernel.KV[float32], n int) {
	if n > len(kv.Pages)*kv.PageLen {
		panic(fmt.Sprintf("%s: %d positions in %d pages of %d", op, n, len(kv.Pages), kv.PageLen))
	}
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

// entry is what a table says of a page of a layer.
type entry [4]uint64

func entryOf(p *kernel.KVPage[float32]) entry {
	return entry{place(p.Keys, p.KeyCodes), place(p.Values, p.ValueCodes), place(p.KeyScales, nil),
		place(p.ValueScales, nil)}
}

const entryBytes = 8 * len(entry{})

// regionLeast is the size of the smallest region, in bytes.
const regionLeast = 4 << 10

// region is memory that grows when more is needed. Nothing is kept then.
type region struct {
	scope *scope
	at    driver.Address
	bytes int
}

// grow makes sure that there is room, and reports whether the memory is another one.
func (r *region) grow(d *core, bytes int) bool {
	if bytes <= r.bytes {
		return false
	}
	s := d.newScope()
	n := max(bytes+bytes/2, regionLeast)
	r.at, r.bytes, r.scope = s.alloc(int64(n), setUse), n, s // the one before is freed behind what uses it
	return true
}

// heldList is a list on the device.
type heldList struct {
	place region
	list  []int32
}

// tables is what the device has of tables. Its lists and entries are those that the last function in the queue which
// uploads any has brought, so mu is held until the functions that read them are in the queue, too.
type tables struct {
	mu           sync.Mutex
	rows, strips heldList
	lows         heldList // of low-rank products of a graph
	place        region
	entries      []uint64 // [L,P,4]
	layers       int
	rotations    []*heldRotation
	sinks        map[string]*region // by their bits

	uploads int // so far
}

// withTable puts a table and a list for it on the device unless they are there, and f into the queue, with the places
// of the list and of the pages of the table's layer.
func (d *device) withTable(
	t *batchTable, l *heldList, list []int32, f func(w *worker, list, pages driver.Address) error,
) {
	defer d.lockTables()()
	at, pages := d.holdList(l, list), d.holdPages(t)
	d.send(func(w *worker) error { return f(w, at, pages) })
}

// lockTables locks the tables, unless operations are recorded: then they are locked already, for all of them.
func (d *device) lockTables() (unlock func()) {
	if d.rec != nil {
		return func() {}
	}
	d.tables.mu.Lock()
	return d.tables.mu.Unlock
}

// holdList puts a list on the device, which does not change any more. The caller holds tables.mu.
func (d *device) holdList(l *heldList, list []int32) driver.Address {
	if l.place.grow(d.core, 4*len(list)) || !slices.Equal(l.list, list) {
		d.rec.changes(l)
		l.list = list
		d.sendTable(l.place.at, bytesOf(list))
	}
	d.rec.uses(l)
	return l.place.at
}

// holdPages puts the pages of a table on the device, and returns where those of its layer are. The caller holds
// tables.mu.
func (d *device) holdPages(t *batchTable) driver.Address {
	h := &d.tables
	n, layers := t.stride(), len(t.pages[0])
	if h.place.grow(d.core, n*layers*entryBytes) || !h.hasPages(t) {
		d.rec.changes(h)
		h.entries, h.layers = make([]uint64, n*layers*len(entry{})), layers
		for l := range layers {
			for i, p := range t.pages {
				e := entryOf(&p[l])
				copy(h.entries[len(e)*(l*n+i):], e[:])
			}
		}
		d.sendTable(h.place.at, bytesOf(h.entries))
	}
	d.rec.uses(h)
	return h.place.at + driver.Address(t.layer*n*entryBytes)
}

// stride returns the number of entries of a layer. Some are spare, so that it seldom changes while sequences grow.
func (t *batchTable) stride() int { return roundUp(len(t.pages)) }

// roundUp returns a number that is at most a quarter more than n, of which there are few.
func roundUp(n int) int {
	step := 1 << max(0, bits.Len(uint(n))-3)
	return (n + step - 1) / step * step
}

// hasPages reports whether the device has the pages of a table. The layers of a page lie in one allocation at equal
// distances, so the first and the last of them say it all.
func (h *tables) hasPages(t *batchTable) bool {
	n, layers := t.stride(), len(t.pages[0])
	if layers != h.layers || n*layers*len(entry{}) != len(h.entries) {
		return false
	}
	for i, p := range t.pages {
		first, last := entryOf(&p[0]), entryOf(&p[layers-1])
		at, end := len(entry{})*i, len(entry{})*((layers-1)*n+i)
		if entry(h.entries[at:]) != first || entry(h.entries[end:]) != last {
			return false
		}
	}
	return true
}

// sendTable uploads a list that does not change any more.
func (d *device) sendTable(at driver.Address, list []byte) {
	d.tables.uploads++
	d.core.send(func(w *worker) error { return w.upload(at, list) })
}
