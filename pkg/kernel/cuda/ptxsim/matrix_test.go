package ptxsim_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// element is an element of a matrix in memory.
type element struct {
	name string // type in the instruction
	size int    // bytes
	make func(r *rand.Rand) uint32
	num  func(bits uint32) float64
}

func bf16(v uint32) float64 { return float64(math.Float32frombits(v << 16)) }

// f16 is the value of a normal number or zero.
func f16(v uint32) float64 {
	x := math.Ldexp(1+float64(v&0x3ff)/1024, int(v>>10&31)-15)
	if v&0x7fff == 0 {
		x = 0
	}
	if v>>15 != 0 {
		return -x
	}
	return x
}

var elements = []element{
	{"bf16", 2, func(r *rand.Rand) uint32 { return f32(float32(r.NormFloat64())) >> 16 }, bf16},
	{"f16", 2, func(r *rand.Rand) uint32 { return r.Uint32()&1<<15 | (8+r.Uint32N(12))<<10 | r.Uint32N(1024) }, f16},
	{"tf32", 4, func(r *rand.Rand) uint32 { return f32(float32(r.NormFloat64())) &^ 0x1fff },
		func(v uint32) float64 { return float64(math.Float32frombits(v)) }},
	{"s8", 1, func(r *rand.Rand) uint32 { return r.Uint32N(256) }, func(v uint32) float64 { return float64(int8(v)) }},
	{"u8", 1, func(r *rand.Rand) uint32 { return r.Uint32N(256) }, func(v uint32) float64 { return float64(v) }},
}

// mmaKernel loads the fragments of A [16,K], B [8,K] and C [16,8] from memory by the figures of PTX ISA, multiplies,
// and stores D [16,8] over C. Shift moves the columns of A that a lane loads, for a planted error.
func mmaKernel(e element, k, shift int) string {
	var b strings.Builder
	out := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p := 4 / e.size // elements of a register
	aRegs, bRegs := 16*k/32/p, 8*k/32/p
	acc, reg := "f32", "%f"
	if e.size == 1 {
		acc, reg = "s32", "%r2"
	}
	bBase, cBase := 16*k*e.size, 24*k*e.size
	out("and.b32 %%r4, %%r0, 3; shr.u32 %%r5, %%r0, 2;") // number in the group, group
	// A: row group, columns of the number.
	out("mul.lo.u32 %%r6, %%r5, %d; shl.b32 %%r7, %%r4, 2; add.u32 %%r6, %%r6, %%r7;", k*e.size)
	out("cvt.u64.u32 %%rd2, %%r6; add.u64 %%rd2, %%rd0, %%rd2;")
	var as, bs, cs []string
	for r := range aRegs {
		out("ld.global.b32 %%r%d, [%%rd2+%d];", 10+r, 8*(r%2)*k*e.size+r/2*16+shift)
		as = append(as, fmt.Sprintf("%%r%d", 10+r))
	}
	for r := range bRegs {
		out("ld.global.b32 %%r%d, [%%rd2+%d];", 15+r, bBase+16*r)
		bs = append(bs, fmt.Sprintf("%%r%d", 15+r))
	}
	out("shl.b32 %%r6, %%r5, 5; shl.b32 %%r7, %%r4, 3; add.u32 %%r6, %%r6, %%r7;")
	out("cvt.u64.u32 %%rd3, %%r6; add.u64 %%rd3, %%rd0, %%rd3;")
	for r := range 4 {
		cs = append(cs, fmt.Sprintf("%s%d", reg, r))
		out("ld.global.%s %s, [%%rd3+%d];", acc, cs[r], cBase+r/2*256+r%2*4)
	}
	list := func(s []string) string { return "{" + strings.Join(s, ", ") + "}" }
	out("mma.sync.aligned.m16n8k%d.row.col.%s.%s.%s.%s %s, %s, %s, %s;", k, acc, e.name, e.name, acc, list(cs), list(as),
		list(bs), list(cs))
	for r := range 4 {
		out("st.global.%s [%%rd3+%d], %s;", acc, cBase+r/2*256+r%2*4, cs[r])
	}
	return kernel(b.String())
}

// runMMA runs the kernel with random matrices and returns the largest difference to a plain product.
func runMMA(t *testing.T, e element, k, shift int) float64 {
	t.Helper()
	d := ptxsim.NewDevice(ptxsim.Options{})
	r := rand.New(rand.NewPCG(1, uint64(k)))
	m := load(t, d, mmaKernel(e, k, shift))
	data := make([]byte, 24*k*e.size+512)
	x := make([]float64, 24*k)
	for i := range x {
		v := e.make(r)
		x[i] = e.num(v)
		var buf [4]byte
		binary.LittleEndian.PutUint32(buf[:], v)
		copy(data[i*e.size:], buf[:e.size])
	}
	c := make([]float64, 128)
	for i := range c {
		c[i] = float64(r.IntN(100))
		v := f32(float32(c[i]))
		if e.size == 1 {
			v = uint32(c[i])
		}
		binary.LittleEndian.PutUint32(data[24*k*e.size+4*i:], v)
	}
	p := alloc(t, d, data)
	if err := m.Launch("k", one(1), one(32), 0, p); err != nil {
		t.Fatal(err)
	}
	worst := 0.0
	for i, v := range words(t, d, p+uint64(24*k*e.size), 128) {
		row, col := i/8, i%8
		want := c[i]
		for j := range k {
			want += x[row*k+j] * x[16*k+col*k+j]
		}
		got := float64(math.Float32frombits(v))
		if e.size == 1 {
			got = float64(int32(v))
		} else {
			want = float64(float32(want))
		}
		worst = max(worst, math.Abs(got-want))
	}
	return worst
}

func TestMMA_IsTheProduct(t *testing.T) {
	for _, e := range elements {
		for _, k := range map[int][]int{1: {16, 32}, 2: {8, 16}, 4: {4, 8}}[e.size] {
			if worst := runMMA(t, e, k, 0); worst != 0 {
				t.Errorf("%s, k %d: the difference to the plain product is %g", e.name, k, worst)
			}
		}
	}
}

func TestMMA_WrongFragmentIsSeen(t *testing.T) {
	if worst := runMMA(t, elements[0], 16, 4); worst == 0 {
		t.Error("a fragment of the wrong columns gives the right product")
	}
}

// Under Operands, a product with zero that was another product with zero changes the result, and nothing else does.
func TestMMA_DependsOnItsOperands(t *testing.T) {
	d := ptxsim.NewDevice(ptxsim.Options{Operands: true})
	const k = 16
	m := load(t, d, mmaKernel(elements[0], k, 0))
	run := func(last uint32) []uint32 {
		data := make([]byte, 24*k*2+512)
		for i := range 24 * k {
			v := uint16(f32(float32(i%7)) >> 16)
			if i < 16*k && i%k == k-1 {
				v = 0
			}
			if i >= 16*k && i%k == k-1 {
				v = uint16(last)
			}
			binary.LittleEndian.PutUint16(data[2*i:], v)
		}
		p := alloc(t, d, data)
		if err := m.Launch("k", one(1), one(32), 0, p); err != nil {
			t.Fatal(err)
		}
		return words(t, d, p+24*k*2, 128)
	}
	differ := func(a, b []uint32) (n int) {
		for i := range a {
			if a[i] != b[i] {
				n++
			}
			x, y := math.Float32frombits(a[i]), math.Float32frombits(b[i])
			if math.Abs(float64(x-y)) > 1e-6*float64(x) {
				t.Errorf("element %d is %v and %v", i, x, y)
			}
		}
		return n
	}
	first := run(0x3f80)
	if n := differ(first, run(0x3f80)); n != 0 {
		t.Errorf("%d elements differ for the same operands", n)
	}
	if n := differ(first, run(0)); n < 32 || n > 96 {
		t.Errorf("%d of 128 elements differ for other operands", n)
	}
}
