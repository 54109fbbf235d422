package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// pagesOf writes n random positions into pages and returns their keys and values. The rest of the pages is NaN.
func pagesOf(r *rand.Rand, n int, a kernel.Heads, pageLen int) (kernel.KV[float32], []float32, []float32) {
	kv := kernel.KV[float32]{PageLen: pageLen}
	for range (n + pageLen - 1) / pageLen {
		page := func() []float32 { return slices.Repeat([]float32{float32(math.NaN())}, pageLen*a.K*a.D) }
		kv.Pages = append(kv.Pages, []kernel.KVPage[float32]{{Keys: page(), Values: page()}})
	}
	k, v := normal(r, n*a.K*a.D), normal(r, n*a.K*a.D)
	kv.Write(0, k, v, a.K, a.D)
	return kv, k, v
}

// normal returns n normally distributed numbers.
func normal(r *rand.Rand, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

// TestAttend_OneResult checks that every instruction family, page length, number of threads and split of a prompt gives
// the same bits, and that these are near the results of the reference.
func TestAttend_OneResult(t *testing.T) {
	for _, a := range []kernel.Heads{
		{H: 9, K: 3, D: 64, Scale: 0.125},
		{H: 4, K: 4, D: 20, Scale: 0.3, Window: 37},
		{H: 8, K: 1, D: 96, Scale: 0.1, Window: 200},
		{H: 16, K: 1, D: 32, Scale: 0.2},
	} {
		t.Run(fmt.Sprintf("%d heads on %d of %d, window %d", a.H, a.K, a.D, a.Window), func(t *testing.T) {
			const n = 300
			r := rand.New(rand.NewPCG(3, uint64(a.D)))
			kv, k, v := pagesOf(r, n, a, 16)
			q := normal(r, n*a.H*a.D)
			want := make([]float32, len(q))
			reference := ref.New[float32]()
			reference.Attend(want, q, []kernel.Span[float32]{{Rows: n, KV: kv}}, a)
			var first []float32
			for _, o := range families() {
				for _, threads := range []int{1, 3} {
					if o.name == "portable" && threads > 1 {
						continue
					}
					s := newSet(threads, o)
					defer s.Close()
					y := make([]float32, len(q))
					s.Attend(y, q, []kernel.Span[float32]{{Rows: n, KV: kv}}, a)
					if first == nil {
						first = y
						for i := range y {
							if math.Abs(float64(y[i]-want[i])) > 1e-5 {
								t.Fatalf("element %d is %v, want %v as in the reference", i, y[i], want[i])
							}
						}
					}
					if !slices.Equal(y, first) {
						t.Errorf("%s on %d threads gives different bits", o.name, threads)
					}
				}
			}
			s := New(2)
			defer s.Close()
			for _, pageLen := range []int{5, 16, 48} {
				other := kernel.KV[float32]{PageLen: pageLen}
				for range n/pageLen + 1 {
					other.Pages = append(other.Pages,
						[]kernel.KVPage[float32]{{Keys: make([]float32, pageLen*a.K*a.D),
							Values: make([]float32, pageLen*a.K*a.D)}})
				}
				other.Write(0, k, v, a.K, a.D)
				for _, size := range []int{1, 2, 5, 64, 257} {
					y := make([]float32, len(q))
					for pos := 0; pos < n; pos += size {
						rows := min(size, n-pos)
						lo, hi := pos*a.H*a.D, (pos+rows)*a.H*a.D
						s.Attend(y[lo:hi], q[lo:hi], []kernel.Span[float32]{{Rows: rows, Pos: pos, KV: other}}, a)
					}
					if !slices.Equal(y, first) {
						t.Errorf("pages of %d, %d rows at a time: different bits", pageLen, size)
					}
				}
			}
		})
	}
}

// TestAttend_RowsAtOnePosition checks that rows which see the same positions, as those of an encoder do, have the bits
// that each has alone, beside other sequences and rows at other positions, for every type of cache.
func TestAttend_RowsAtOnePosition(t *testing.T) {
	for _, c := range []struct {
		kernel.Heads
		kv kernel.KVType
	}{
		{kernel.Heads{H: 3, K: 3, D: 32, Scale: 0.2, Sinks: []float32{0.5, -1, 3}}, kernel.KVFull},
		{kernel.Heads{H: 6, K: 2, D: 20, Scale: 0.3, Window: 37}, kernel.KVFull},
		{kernel.Heads{H: 2, K: 2, D: 16, Scale: 0.2}, kernel.KVFull},
		{kernel.Heads{H: 6, K: 2, D: 32, Scale: 0.2, Sinks: []float32{0.5, -1, 3, 0, 1, 2}}, kernel.KVF16},
		{kernel.Heads{H: 2, K: 1, D: 32, Scale: 0.2, Window: 260, Softcap: 2}, kernel.KVQ8},
	} {
		a, r := c.Heads, rand.New(rand.NewPCG(5, uint64(c.D)))
		cache := func(n int) kernel.KV[float32] {
			if c.kv == kernel.KVFull {
				kv, _, _ := pagesOf(r, n, a, 16)
				return kv
			}
			kv := pages(c.kv, n, 16, a)
			kv.Write(0, normal(r, n*a.K*a.D), normal(r, n*a.K*a.D), a.K, a.D)
			return kv
		}
		var spans []kernel.Span[float32]
		for _, n := range []int{1, 5, 12, 13, 270} {
			kv := cache(n)
			for range n {
				spans = append(spans, kernel.Span[float32]{Rows: 1, Pos: n - 1, KV: kv})
			}
			spans = append(spans, kernel.Span[float32]{Rows: 1, Pos: n / 2, KV: kv},
				kernel.Span[float32]{Rows: n - n/2, Pos: n / 2, KV: kv})
			spans = append(spans, kernel.Span[float32]{Rows: 1, Pos: n / 2, KV: cache(n)})
		}
		rows := 0
		for _, s := range spans {
			rows += s.Rows
		}
		width := a.H * a.D
		q, y, alone := normal(r, rows*width), make([]float32, rows*width), make([]float32, rows*width)
		want := make([]float32, rows*width)
		ref.New[float32]().Attend(want, q, spans, a)
		for _, o := range families() {
			s := newSet(2, o)
			defer s.Close()
			s.Attend(y, q, spans, a)
			row := 0
			for i, span := range spans {
				lo, hi := row*width, (row+span.Rows)*width
				s.Attend(alone[lo:hi], q[lo:hi], []kernel.Span[float32]{span}, a)
				if row += span.Rows; !slices.Equal(alone[lo:hi], y[lo:hi]) {
					t.Fatalf("%s, %+v: span %d at position %d has other bits than alone", o.name, a, i, span.Pos)
				}
			}
			for i := range y {
				if math.Abs(float64(y[i]-want[i])) > 1e-5 {
					t.Fatalf("%s: element %d is %v, want %v as in the reference", o.name, i, y[i], want[i])
				}
			}
		}
	}
}
