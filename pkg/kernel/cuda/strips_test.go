package cuda_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// strips computes rows from pos on of a cache of float16, with a block for each chunk or one for all.
func (c *cache) strips(q []float32, pos int, split bool) []float32 {
	c.r.Helper()
	a, r := c.a, c.r
	n := len(q) / a.H / a.D
	pairs, strips := n*a.H/a.K, []int32(nil)
	step := 64
	if split {
		step = 16
	}
	for pair := 0; pair < (pairs+step-1)/step*step; pair += 16 {
		strips = append(strips, 0, int32(pos), 0, int32(pair), int32(pairs), 0, 0, 0)
	}
	table, count := r.ints(strips), len(strips)/8
	h, kv, d, window := uint32(a.H), uint32(a.K), uint32(a.D), uint32(a.Window)
	queries, y := r.alloc(count*a.K*((a.D+15)/16*1024+64)), r.alloc(4*len(q))
	r.launch("strip_queries", [3]int{count, a.K, 1}, 0, queries, r.floats(q), table, h, kv, d, float32(a.Scale))
	var sinks uint64
	if a.Sinks != nil {
		sinks = r.floats(a.Sinks)
	}
	length := uint32(c.host.PageLen)
	if !split {
		dims := 128
		if a.D > dims {
			dims = 256
		}
		r.launch(fmt.Sprintf("strip_whole_%d", dims), [3]int{count / 4, a.K, 1}, 0, y, queries, table, c.entries, h, kv,
			d, length, window, float32(a.Softcap), sinks)
		return r.read(y, len(q))
	}
	chunks := (pos+n-1)/256 + 1
	parts := r.alloc(4 * count * a.K * 16 * chunks * (2 + a.D))
	r.launch("strip_split", [3]int{chunks, a.K, count}, 0, parts, queries, table, c.entries, h, kv, d, length, window,
		float32(a.Softcap), uint32(chunks))
	r.launch("strip_join", [3]int{16, a.K, count}, 0, y, parts, table, sinks, h, kv, d, window, uint32(chunks))
	return r.read(y, len(q))
}

func TestStrips_EqualTheReferenceForAnyStrip(t *testing.T) {
	for i, c := range []struct {
		a      kernel.Heads
		n, new int
		length int
	}{
		{kernel.Heads{H: 4, K: 1, D: 10, Scale: 0.3}, 75, 7, 16},
		{kernel.Heads{H: 6, K: 2, D: 40, Scale: 0.2, Window: 21, Softcap: 3, Sinks: []float32{1, -2, 3, 0.5, 1, 2}},
			70, 24, 8},
		{kernel.Heads{H: 4, K: 1, D: 16, Scale: 0.2, Window: 262, Sinks: []float32{1, -2, 3, 0.5}}, 531, 19, 48},
		{kernel.Heads{H: 1, K: 1, D: 136, Scale: 0.1}, 280, 34, 12},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			a, r := c.a, newRig(t)
			k, v, q := normal(2, c.n*a.K*a.D), normal(3, c.n*a.K*a.D), normal(4, c.new*a.H*a.D)
			kept := r.newCache(kernel.KVF16, c.n, c.length, a)
			kept.store(0, k, v)
			pos, row := c.n-c.new, a.H*a.D
			want := make([]float32, len(q))
			ref.New[float32]().Attend(want, q, []kernel.Span[float32]{{Rows: c.new, Pos: pos, KV: kept.host}}, a)
			whole := kept.strips(q, pos, false)
			near(t, "strips of one block", whole, want, 2e-6)
			equal(t, "strips of a block for each chunk", kept.strips(q, pos, true), whole)
			// Rows alone, when the cache has nothing beyond them.
			for i := range c.new {
				if i > 2 && i < c.new-2 {
					continue
				}
				at := pos + i
				alone := r.newCache(kernel.KVF16, c.n, 16, a)
				alone.store(0, k[:(at+1)*a.K*a.D], v[:(at+1)*a.K*a.D])
				for _, split := range []bool{true, false} {
					got := alone.strips(q[i*row:(i+1)*row], at, split)
					equal(t, fmt.Sprintf("row %d alone, split %v", i, split), got, whole[i*row:(i+1)*row])
				}
			}
		})
	}
}

// A span of many rows and one of few go by different kernels.
func TestAttend_SpansOfManyAndFewRows(t *testing.T) {
	a := kernel.Heads{H: 4, K: 1, D: 16, Scale: 0.25}
	s, host := open(t, 0), ref.New[float32]()
	spans := func(set kernel.Set[float32]) (out []kernel.Span[float32]) {
		for i, n := range []int{23, 18} {
			size := 16 * a.K * a.D
			kv := kernel.KV[float32]{Type: kernel.KVF16, PageLen: 16}
			for range 2 {
				kv.Pages = append(kv.Pages, set.NewKVPages(1, kernel.KVF16, size, a.D))
			}
			k, v := set.Alloc(n*a.K*a.D), set.Alloc(n*a.K*a.D)
			set.Upload(k, normal(uint64(i), len(k)))
			set.Upload(v, normal(uint64(i+2), len(v)))
			set.Store(kv, 0, k, v, a.K, a.D)
			rows := []int{20, 2}[i]
			out = append(out, kernel.Span[float32]{Rows: rows, Pos: n - rows, KV: kv})
		}
		return append(out, out[0])
	}
	q := normal(4, 42*a.H*a.D)
	want := make([]float32, len(q))
	host.Attend(want, q, spans(host), a)
	x, y := s.FromHost(q), s.Alloc(len(q))
	all := spans(s)
	s.Attend(y, x, all, a)
	got, row := s.Host(y), a.H*a.D
	near(t, "attention", got, want, 2e-6)
	for _, i := range []int{0, 19} {
		one := []kernel.Span[float32]{{Rows: 1, Pos: all[0].Pos + i, KV: all[0].KV}}
		alone := s.Alloc(row)
		s.Attend(alone, x[i*row:(i+1)*row], one, a)
		equal(t, fmt.Sprintf("row %d alone", i), s.Host(alone), got[i*row:(i+1)*row])
	}
}
