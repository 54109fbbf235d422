package cuda_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// cache is a paged cache on the device, beside one of the reference.
type cache struct {
	r       *rig
	host    kernel.KV[float32]
	a       kernel.Heads
	entries uint64 // the device's table of pages
	parts   [][4]uint64
}

// newCache makes a cache for n positions.
func (r *rig) newCache(kind kernel.KVType, n, length int, a kernel.Heads) *cache {
	c := &cache{r: r, a: a, host: kernel.KV[float32]{Type: kind, PageLen: length}}
	elements, size := a.K*a.D*length, map[kernel.KVType]int{kernel.KVFull: 4, kernel.KVF16: 2, kernel.KVQ8: 1}[kind]
	pages := (n + length - 1) / length
	c.entries = r.alloc(32 * pages)
	for i := range pages {
		c.host.Pages = append(c.host.Pages, kernel.HostOps[float32]{}.NewKVPages(1, kind, elements, a.D))
		part := [4]uint64{r.alloc(elements * size), r.alloc(elements * size), r.alloc(4 * a.K * length),
			r.alloc(4 * a.K * length)}
		c.parts = append(c.parts, part)
		for j, at := range part {
			binary.LittleEndian.PutUint64(r.bytes(c.entries+uint64(32*i+8*j), 8), at)
		}
	}
	return c
}

// rows returns the table of consecutive positions of the cache.
func (c *cache) rows(pos, n int) uint64 {
	var table []int32
	for i := range n {
		table = append(table, 0, int32(pos+i))
	}
	return c.r.ints(table)
}

// store writes to both caches.
func (c *cache) store(pos int, k, v []float32) {
	n := len(k) / c.a.K / c.a.D
	c.host.Write(pos, k, v, c.a.K, c.a.D)
	c.r.launch("store_"+c.host.Type.String(), [3]int{(n*c.a.K + 7) / 8, 1, 1}, 0, c.r.floats(k), c.r.floats(v),
		c.rows(pos, n), c.entries, uint32(c.a.K), uint32(c.a.D), uint32(c.host.PageLen), uint32(n*c.a.K))
}

// attend computes rows with a kernel that treats some heads together.
func (c *cache) attend(q []float32, pos, heads int) []float32 {
	a, r := c.a, c.r
	n := len(q) / a.H / a.D
	chunks := (pos+n-1)/256 + 1
	parts, y, rows := r.alloc(4*n*a.H*chunks*(2+a.D)), r.alloc(4*len(q)), c.rows(pos, n)
	r.launch(fmt.Sprintf("attend_%v_%d", c.host.Type, heads), [3]int{chunks, a.H / heads, n}, 0, parts, r.floats(q),
		rows, c.entries, uint32(a.H), uint32(a.K), uint32(a.D), uint32(c.host.PageLen), uint32(a.Window),
		uint32(chunks), float32(a.Scale), float32(a.Softcap))
	var sinks uint64
	if a.Sinks != nil {
		sinks = r.floats(a.Sinks)
	}
	r.launch("attend_join", [3]int{a.H, n, 1}, 0, y, parts, rows, sinks, uint32(a.H), uint32(a.D), uint32(a.Window),
		uint32(chunks))
	return r.read(y, len(q))
}

func TestAttend_EqualsTheReferenceForAnyChunks(t *testing.T) {
	for _, kind := range []kernel.KVType{kernel.KVFull, kernel.KVQ8} {
		for i, a := range []kernel.Heads{
			{H: 4, K: 1, D: 10, Scale: 0.3},
			{H: 8, K: 2, D: 40, Scale: 0.2, Window: 5, Softcap: 3, Sinks: []float32{1, -2, 3, 0.5, 1, 2, 0, -1}},
			{H: 4, K: 1, D: 16, Scale: 0.2, Window: 262, Sinks: []float32{1, -2, 3, 0.5}},
		} {
			t.Run(fmt.Sprintf("%v/%d", kind, i), func(t *testing.T) {
				t.Parallel()
				const n, new = 531, 7 // three chunks
				k, v := normal(2, n*a.K*a.D), normal(3, n*a.K*a.D)
				q := normal(4, new*a.H*a.D)
				var whole []float32
				for _, length := range []int{16, 48} {
					c := newRig(t).newCache(kind, n, length, a)
					cut := 9 * a.K * a.D
					c.store(0, k[:cut], v[:cut])
					c.store(9, k[cut:], v[cut:])
					c.same()
					got := c.attend(q, n-new, 4)
					if whole == nil {
						whole = make([]float32, len(q))
						spans := []kernel.Span[float32]{{Rows: new, Pos: n - new, KV: c.host}}
						ref.New[float32]().Attend(whole, q, spans, a)
						near(t, "attention", got, whole, 2e-6)
						whole = got
					}
					equal(t, fmt.Sprintf("pages of %d", length), got, whole)
					row := a.H * a.D
					for i := range new {
						equal(t, fmt.Sprintf("row %d alone, heads alone", i), c.attend(q[i*row:(i+1)*row], n-new+i, 1),
							whole[i*row:(i+1)*row])
					}
				}
			})
		}
	}
}

// same fails unless the device's cache has the bits of the host's.
func (c *cache) same() {
	for i, part := range c.parts {
		p := c.host.Page(i)
		for j, want := range [][]byte{c.bytesOf(p.Keys, p.KeyCodes), c.bytesOf(p.Values, p.ValueCodes),
			c.bytesOf(p.KeyScales, nil), c.bytesOf(p.ValueScales, nil)} {
			got := c.r.bytes(part[j], len(want))
			for b := range want {
				// What was not written is 0xff on the device and 0 on the host.
				if got[b] != want[b] && (got[b] != 0xff || want[b] != 0) {
					c.r.Fatalf("page %d, part %d: byte %d is %d, want %d", i, j, b, got[b], want[b])
				}
			}
		}
	}
}

// bytesOf returns the bytes of floats or codes.
func (c *cache) bytesOf(x []float32, codes []byte) []byte {
	if codes != nil {
		return codes
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}

func TestStore_ZerosInBytes(t *testing.T) {
	a := kernel.Heads{H: 1, K: 1, D: 8}
	c := newRig(t).newCache(kernel.KVQ8, 1, 4, a)
	k := make([]float32, 8)
	k[3] = float32(math.Copysign(1e-31, -1))
	c.store(0, k, k)
	if got := c.r.bytes(c.parts[0][0], 1)[0]; got != 0 {
		t.Errorf("a zero is stored as %d", got)
	}
	c.same()
}
