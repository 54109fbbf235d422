package cpu

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// TestStore_WritesWhatWriteDoes compares the pages that Store writes, for every family, with those that KV.Write
// writes. It also compares attention over these pages with attention over float32 pages that hold the same numbers.
func TestStore_WritesWhatWriteDoes(t *testing.T) {
	const n = 150
	for _, a := range []kernel.Heads{{H: 6, K: 3, D: 64, Scale: 0.125}, {H: 2, K: 2, D: 24, Scale: 0.2},
		{H: 4, K: 1, D: 20, Scale: 0.2, Window: 40}} {
		for _, kind := range []kernel.KVType{kernel.KVF16, kernel.KVQ8} {
			for _, length := range []int{16, 24} {
				t.Run(fmt.Sprintf("%v, %d heads of %d, pages of %d", kind, a.K, a.D, length), func(t *testing.T) {
					r := rand.New(rand.NewPCG(5, uint64(a.D)))
					k, v, q := normal(r, n*a.K*a.D), normal(r, n*a.K*a.D), normal(r, n*a.H*a.D)
					k[0], k[1], v[2] = 1e-9, 6.55e4, -3e-6 // near the limits of float16
					want := pages(kind, n, length, a)
					want.Write(0, k, v, a.K, a.D)
					full := pages(kernel.KVFull, n, length, a)
					key, value := make([]float32, a.D), make([]float32, a.D)
					for pos := range n {
						for head := range a.K {
							want.Key(key, pos, head)
							want.Value(value, pos, head)
							copy(k[(pos*a.K+head)*a.D:], key)
							copy(v[(pos*a.K+head)*a.D:], value)
						}
					}
					full.Write(0, k, v, a.K, a.D)
					for _, o := range families() {
						s := newSet(2, o)
						defer s.Close()
						got := pages(kind, n, length, a)
						s.Store(got, 0, k, v, a.K, a.D)
						if kind == kernel.KVF16 { // k and v are rounded already, so storing them again is exact
							for i := range got.Pages {
								if !slices.Equal(got.Page(i).KeyCodes, want.Page(i).KeyCodes) ||
									!slices.Equal(got.Page(i).ValueCodes, want.Page(i).ValueCodes) {
									t.Fatalf("%s: page %d has different bytes", o.name, i)
								}
							}
						}
						y, same := make([]float32, len(q)), make([]float32, len(q))
						s.Attend(y, q, []kernel.Span[float32]{{Rows: n, KV: want}}, a)
						s.Attend(same, q, []kernel.Span[float32]{{Rows: n, KV: full}}, a)
						if !slices.Equal(y, same) {
							t.Errorf(
								"%s: attention over float32 pages of the same numbers gives different bits",
								o.name,
							)
						}
					}
				})
			}
		}
	}
}

// pages returns a cache for n positions.
func pages(kind kernel.KVType, n, length int, a kernel.Heads) kernel.KV[float32] {
	kv := kernel.KV[float32]{Type: kind, PageLen: length}
	for range (n + length - 1) / length {
		kv.Pages = append(kv.Pages, kernel.HostOps[float32]{}.NewKVPages(1, kind, length*a.K*a.D, a.D))
	}
	return kv
}
