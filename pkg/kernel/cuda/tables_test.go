package cuda

import (
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// The layers of a step share one upload of the tables, and a step whose pages are those of the one before uploads its
// rows alone. What is stored and read is the same as with tables of a call's own.
func TestTables_AreUploadedOncePerStep(t *testing.T) {
	for kind, lists := range map[kernel.KVType]int{
		kernel.KVFull: 1, // rows
		kernel.KVF16:  2, // rows and strips
	} {
		t.Run(kind.String(), func(t *testing.T) { uploadsOfSteps(t, kind, lists) })
	}
}

// uploadsOfSteps runs steps on one kind of pages, for which the device has so many lists.
func uploadsOfSteps(t *testing.T, kind kernel.KVType, lists int) {
	t.Cleanup(func() { leak.Check(t) })
	set, err := Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	const layers, heads, d, pageLen = 3, 2, 8, 4
	pages := make([][]kernel.KVPage[float32], 4)
	for i := range pages {
		pages[i] = set.NewKVPages(layers, kind, pageLen*heads*d, d)
	}
	view := func(layer int, of ...int) kernel.KV[float32] {
		kv := kernel.KV[float32]{Type: kind, PageLen: pageLen, Layer: layer}
		for _, i := range of {
			kv.Pages = append(kv.Pages, pages[i])
		}
		return kv
	}
	h := kernel.Heads{H: heads, K: heads, D: d, Scale: 1}
	// values are the same for all layers but the last, so that a table of another layer shows.
	value := func(layer, row int) float32 { return float32(100*layer + row) }
	step := func(want int, spans func(layer int) []kernel.Span[float32]) [][]float32 {
		t.Helper()
		before := set.tables.uploads
		var out [][]float32
		for l := range layers {
			batch := spans(l)
			rows := 0
			for _, s := range batch {
				rows += s.Rows
			}
			x := make([]float32, rows*heads*d)
			for i := range x {
				x[i] = value(l, i/(heads*d))
			}
			k, v := set.FromHost(make([]float32, len(x))), set.FromHost(x)
			set.StoreSpans(batch, k, v, heads, d)
			y := set.Alloc(len(x))
			set.Attend(y, k, batch, h)
			out = append(out, set.Host(y))
		}
		if got := set.tables.uploads - before; got != want {
			t.Errorf("%d uploads of tables for %d layers, want %d", got, layers, want)
		}
		return out
	}
	first := step(lists+1, func(l int) []kernel.Span[float32] {
		return []kernel.Span[float32]{{Rows: 2, Pos: 0, KV: view(l, 0)}, {Rows: 1, Pos: 0, KV: view(l, 2)}}
	})
	// The keys are zero, so that a row is the mean of the values that it sees.
	for l, got := range first {
		want := []float32{value(l, 0), (value(l, 0) + value(l, 1)) / 2, value(l, 2)}
		for row, w := range want {
			if g := got[row*heads*d : (row+1)*heads*d]; g[0] != w || slices.Max(g) != w || slices.Min(g) != w {
				t.Errorf("layer %d, row %d: %v, want %v", l, row, g, w)
			}
		}
	}
	next := func(l int) []kernel.Span[float32] {
		return []kernel.Span[float32]{{Rows: 1, Pos: 2, KV: view(l, 0)}, {Rows: 1, Pos: 1, KV: view(l, 2)}}
	}
	second := step(lists, next)
	// Strips round this one otherwise.
	if want := (value(2, 0) + value(2, 1) + value(2, 0)) / 3; math.Abs(float64(second[2][0]-want)) > 1e-4 {
		t.Errorf("the next position has %v, want %v", second[2][0], want)
	}
	step(0, next)
	step(lists+1, func(l int) []kernel.Span[float32] { // another page
		return []kernel.Span[float32]{{Rows: 1, Pos: 4, KV: view(l, 0, 1)}, {Rows: 1, Pos: 2, KV: view(l, 2)}}
	})
	step(1, func(l int) []kernel.Span[float32] { // the pages of the first sequence in another order: the entries differ
		return []kernel.Span[float32]{{Rows: 1, Pos: 4, KV: view(l, 1, 0)}, {Rows: 1, Pos: 2, KV: view(l, 2)}}
	})
	runtime.KeepAlive(pages)
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}

// Spans with more pages than a table may have go in several tables, which changes no bit. A step over them is no graph.
func TestTables_ManyPagesGoInSeveral(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	set, err := Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	const layers, heads, d, pageLen, rows = 2, 2, 8, 4, 3
	var spans []kernel.Span[float32]
	for range rows {
		kv := kernel.KV[float32]{Type: kernel.KVFull, PageLen: pageLen}
		for range 2 {
			kv.Pages = append(kv.Pages, set.NewKVPages(layers, kernel.KVFull, pageLen*heads*d, d))
		}
		spans = append(spans, kernel.Span[float32]{Rows: 1, Pos: 0, KV: kv})
	}
	x := make([]float32, rows*heads*d)
	for i := range x {
		x[i] = float32(i%7) - 3
	}
	on, h := set.FromHost(x), kernel.Heads{H: heads, K: heads, D: d, Scale: 1}
	run := func(tables int) []float32 {
		t.Helper()
		if got := len(batchTables("test", spans)); got != tables {
			t.Errorf("%d tables, want %d", got, tables)
		}
		y := set.Alloc(len(x))
		set.StoreSpans(spans, on, on, heads, d)
		set.Attend(y, on, spans, h)
		return set.Host(y)
	}
	want := run(1)
	before := tableEntries
	tableEntries = 3 * 2 * layers / 2 // the pages of one span, and half of those of another
	defer func() { tableEntries = before }()
	if got := run(rows); !slices.Equal(got, want) || slices.Equal(got, make([]float32, len(x))) {
		t.Errorf("in several tables %v, in one %v", got, want)
	}
	runtime.KeepAlive(spans)
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}
