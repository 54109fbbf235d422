package cuda

import (
	"runtime"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// What the set allocates for the largest of each operation is within what PassBytes says before, and not much less.
func TestPassBytes_BoundWhatOperationsAllocate(t *testing.T) {
	for name, c := range map[string]struct {
		kv         kernel.KVType
		heads      kernel.Heads
		rows, cols int // of a batch; of the matrix
		vocab      int
		rank       int // of adapters
	}{
		"attention of float32": {kernel.KVFull, kernel.Heads{H: 8, K: 2, D: 64, Scale: 1}, 20, 64, 100, 2},
		"attention of float16": {kernel.KVF16, kernel.Heads{H: 8, K: 2, D: 64, Scale: 1}, 20, 64, 100, 2},
		"activations":          {kernel.KVFull, kernel.Heads{H: 1, K: 1, D: 8, Scale: 1}, 33, 4096, 100, 2},
		"candidates":           {kernel.KVFull, kernel.Heads{H: 1, K: 1, D: 8, Scale: 1}, 5, 64, 2100, 2},
		"adapters":             {kernel.KVFull, kernel.Heads{H: 1, K: 1, D: 8, Scale: 1}, 40, 64, 100, 2000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { leak.Check(t) })
			set, err := Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
			if err != nil {
				t.Fatal(err)
			}
			const layers, pages, pageLen = 2, 20, 16
			h := c.heads
			w := &kernel.Matrix[float32]{Rows: 16, Cols: c.cols, DType: tensor.Q8_0,
				Raw: make([]byte, 16*tensor.Q8_0.RowBytes(c.cols))}
			p := kernel.Passes[float32]{Rows: c.rows, Logits: min(c.rows, rankRows), Vocab: c.vocab,
				Products: []kernel.PassProduct[float32]{{W: w, Rows: c.rows}}, LowRanks: c.rank, Heads: h, Sinks: 1,
				Rotated: h.D, KV: c.kv, Layers: layers, Pages: pages, PageLen: pageLen}
			bound := set.PassBytes(p)
			set.Pack(w)
			set.MatMul(set.Alloc(c.rows*16), set.Alloc(c.rows*c.cols), w, nil, c.rows)
			set.Rank(set.Alloc(p.Logits*c.vocab), p.Logits, c.vocab, min(c.vocab, kernel.MaxRank))
			a := kernel.Matrix[float32]{Rows: c.rank, Cols: 8, Dense: set.Alloc(c.rank * 8)}
			b := kernel.Matrix[float32]{Rows: 8, Cols: c.rank, Dense: set.Alloc(c.rank * 8)}
			set.LowRanks([]kernel.LowRank[float32]{{X: set.Alloc(c.rows * 8), Y: set.Alloc(c.rows * 8), A: &a, B: &b,
				Scale: 1, Rows: c.rows}})
			// Spans of few rows, whose positions are cut into chunks, and one of many.
			size, pos := pageLen*h.K*h.D, make([]int32, c.rows)
			held := set.NewKVPages(pages*layers, c.kv, size, h.D)
			kv := kernel.KV[float32]{Type: c.kv, PageLen: pageLen}
			for i := range pages {
				kv.Pages = append(kv.Pages, held[i*layers:(i+1)*layers])
			}
			x, keys := set.Alloc(c.rows*h.H*h.D), set.Alloc(c.rows*h.K*h.D)
			h.Sinks = make([]float32, h.H)
			var few []kernel.Span[float32]
			for i := range c.rows {
				own := kv
				own.Pages = append([][]kernel.KVPage[float32](nil), kv.Pages...) // another list for each
				few = append(few, kernel.Span[float32]{Rows: 1, Pos: pages*pageLen - 1, KV: own})
				pos[i] = int32(i)
			}
			many := []kernel.Span[float32]{{Rows: c.rows, Pos: 0, KV: kv}}
			set.Rotate(keys, &kernel.Rotary{Dims: h.D, Freq: make([]float64, h.D/2), Scale: 1}, pos, h.K, h.D)
			set.StoreSpans(many, keys, keys, h.K, h.D)
			set.Attend(set.Alloc(len(x)), x, many, h)
			for i := range pages * pageLen / c.rows { // so that there are no NaNs
				set.Store(kv, i*c.rows, keys, keys, h.K, h.D)
			}
			set.Attend(set.Alloc(len(x)), x, few, h)
			set.Host(x[:1])
			set.mu.Lock()
			used := set.used[setUse]
			set.mu.Unlock()
			if used > bound || 8*used < bound {
				t.Errorf("%d bytes are allocated, the bound is %d", used, bound)
			}
			runtime.KeepAlive(held)
			if err := set.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
