package cpu

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Set implements kernel.Set[float32]. Its methods may be called from several goroutines. Each call runs on the worker
// pool.
type Set struct {
	kernel.HostOps[float32]
	ops
	dense   *gemmOps // products over dense matrices
	class   string
	kv      kernel.KVType
	pool    *pool
	scratch sync.Pool // of *[]float32
	cuts    sync.Pool // of *[]piece
	store   store

	attending   sync.Pool // of *attendScratch
	multiplying sync.Pool // of *gemmScratch
	causals     sync.Pool // of *causal

	mu     sync.Mutex
	tables map[*kernel.Rotary]*table
}

// New returns a set with the given number of threads, including the calling one; 0 means one for each
// processor. It uses the widest instructions that the machine has. Close ends its workers.
func New(threads int) *Set { return newSet(threads, families()[0]) }

// Open is New with the named instructions, one of Instructions.
func Open(threads int, instructions string) (*Set, error) {
	for _, o := range families() {
		if o.name == instructions {
			return newSet(threads, o), nil
		}
	}
	return nil, fmt.Errorf("open cpu kernels: unknown instructions %q, want one of %s", instructions,
		strings.Join(Instructions(), ", "))
}

// Instructions lists the instruction families that the machine can run, the fastest first: "amx",
// "avx512", "avx2", and always "portable", plain Go that the others are compared with. All give the
// same bits.
func Instructions() []string {
	var names []string
	for _, o := range families() {
		names = append(names, o.name)
	}
	return names
}

func families() []ops { return append(native(), portable()) }

func newSet(threads int, o ops) *Set {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	return newParts(o, newPool(threads))
}

// newParts makes a set on a pool.
func newParts(o ops, p *pool) *Set {
	s := &Set{ops: o, class: "cpu/7", kv: kernel.KVAuto, pool: p, tables: map[*kernel.Rotary]*table{}}
	s.dense = &s.gemm
	s.scratch.New = func() any { return new([]float32) }
	s.cuts.New = func() any { return new([]piece) }
	return s
}

// Close ends the workers. The set must not be used after it.
func (s *Set) Close() {
	s.pool.close()
}

// StoringKV returns a set on the same workers whose KV caches store t. Closing this set closes it too.
func (s *Set) StoringKV(t kernel.KVType) *Set {
	other := newParts(s.ops, s.pool)
	other.kv = t
	if t != kernel.KVAuto {
		other.class += "+kv-" + t.String()
	}
	return other
}

// KV returns the type of the set's KV caches.
func (s *Set) KV() kernel.KVType { return s.kv }

// Name returns "cpu".
func (*Set) Name() string { return "cpu" }

// Class names the revision of the summation order. It does not depend on the instructions.
func (s *Set) Class() string { return s.class }

// small is the number of multiply-adds below which a loop is not worth waking a worker for.
const small = 1 << 15

// each calls body for 0..n-1 on the caller and the idle workers. The whole loop takes about cost
// multiply-adds. Calls must write to different memory.
func (s *Set) each(n, cost int, body func(i int)) {
	if cost < small {
		for i := range n {
			body(i)
		}
		return
	}
	s.pool.each(n, body)
}

// buffer returns scratch of n floats with unspecified values. The caller returns it with give.
func (s *Set) buffer(n int) *[]float32 {
	b := s.scratch.Get().(*[]float32)
	if cap(*b) < n {
		*b = make([]float32, n)
	}
	*b = (*b)[:n]
	return b
}

// give returns a buffer.
func (s *Set) give(b *[]float32) { s.scratch.Put(b) }

// bytesOf returns the memory of a buffer.
func bytesOf(b []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(b))), 4*len(b))
}

// must panics with the operation's name unless a slice has the wanted length.
func must(op, name string, got, want int) {
	if got != want {
		panic(fmt.Sprintf("%s: %s has %d elements, want %d", op, name, got, want))
	}
}
