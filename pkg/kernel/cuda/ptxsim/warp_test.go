package ptxsim_test

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// run launches a kernel over a copy of the words and returns what it leaves.
func run(t *testing.T, text string, grid, block int, in []uint32) []uint32 {
	t.Helper()
	d := ptxsim.NewDevice(ptxsim.Options{})
	m := load(t, d, text)
	data := make([]byte, 4*len(in))
	for i, v := range in {
		binary.LittleEndian.PutUint32(data[4*i:], v)
	}
	p := alloc(t, d, data)
	if err := m.Launch("k", one(grid), one(block), 0, p); err != nil {
		t.Fatal(err)
	}
	return words(t, d, p, len(in))
}

func randomWords(n int) []uint32 {
	r := rand.New(rand.NewPCG(3, uint64(n)))
	out := make([]uint32, n)
	for i := range out {
		out[i] = r.Uint32()
	}
	return out
}

func equal(t *testing.T, got, want []uint32) {
	t.Helper()
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("word %d is %#x, not %#x", i, got[i], want[i])
		}
	}
}

func TestShuffle(t *testing.T) {
	in := randomWords(64)
	for _, c := range []struct {
		mode   string
		b, c   int
		source func(lane int) int // -1: the lane keeps its own value
	}{
		{"idx", 5, 31, func(int) int { return 5 }},
		{"idx", 3, 0x181f, func(l int) int { return l&^7 + 3 }},
		{"up", 1, 0, func(l int) int { return l - 1 }},
		{"up", 3, 0x1800, func(l int) int { return choose(l%8 < 3, -1, l-3) }},
		{"down", 2, 31, func(l int) int { return choose(l > 29, -1, l+2) }},
		{"down", 1, 0x1c1f, func(l int) int { return choose(l%4 == 3, -1, l+1) }},
		{"bfly", 16, 31, func(l int) int { return l ^ 16 }},
		{"bfly", 1, 0x1f, func(l int) int { return l ^ 1 }},
	} {
		text := kernel(fmt.Sprintf(`ld.global.b32 %%r4, [%%rd1];
			shfl.sync.%s.b32 %%r5|%%p0, %%r4, %d, %d, 0xffffffff;
			selp.b32 %%r6, 1, 0, %%p0; st.global.b32 [%%rd1], %%r5; st.global.b32 [%%rd1+128], %%r6;`, c.mode, c.b, c.c))
		want := slices.Clone(in)
		for l := range 32 {
			from := c.source(l)
			want[32+l] = choose[uint32](from >= 0, 1, 0)
			want[l] = in[choose(from < 0, l, from)]
		}
		t.Run(fmt.Sprintf("%s %d %#x", c.mode, c.b, c.c), func(t *testing.T) {
			equal(t, run(t, text, 1, 32, in), want)
		})
	}
}

func TestCollectives(t *testing.T) {
	in := randomWords(32)
	for i := range in {
		in[i] &= 0x800000ff
	}
	fold := func(f func(a, b uint32) uint32, from, to int) uint32 {
		v := in[from]
		for _, x := range in[from+1 : to] {
			v = f(v, x)
		}
		return v
	}
	var odd uint32
	for i, v := range in {
		odd |= v & 1 << i
	}
	for _, c := range []struct {
		instr string
		want  func(lane int) uint32
	}{
		{"redux.sync.add.s32 %r5, %r4, -1;", func(int) uint32 { return fold(func(a, b uint32) uint32 { return a + b }, 0, 32) }},
		{"redux.sync.max.s32 %r5, %r4, -1;", func(int) uint32 {
			return fold(func(a, b uint32) uint32 { return uint32(max(int32(a), int32(b))) }, 0, 32)
		}},
		{"redux.sync.max.u32 %r5, %r4, -1;", func(int) uint32 { return slices.Max(in) }},
		{"redux.sync.xor.b32 %r5, %r4, -1;", func(int) uint32 { return fold(func(a, b uint32) uint32 { return a ^ b }, 0, 32) }},
		{"shr.u32 %r6, %r0, 3; shl.b32 %r6, %r6, 3; shl.b32 %r7, 255, %r6; redux.sync.add.u32 %r5, %r4, %r7;",
			func(l int) uint32 { return fold(func(a, b uint32) uint32 { return a + b }, l&^7, l&^7+8) }},
		{"vote.sync.ballot.b32 %r5, %p0, -1;", func(int) uint32 { return odd }},
		{"vote.sync.any.pred %p1, %p0, -1; selp.b32 %r5, 1, 0, %p1;", func(int) uint32 { return choose[uint32](odd != 0, 1, 0) }},
		{"vote.sync.all.pred %p1, %p0, -1; selp.b32 %r5, 1, 0, %p1;", func(int) uint32 { return choose[uint32](odd == 1<<32-1, 1, 0) }},
		{"vote.sync.uni.pred %p1, %p0, -1; selp.b32 %r5, 1, 0, %p1;", func(int) uint32 { return 0 }},
		{"mov.b32 %r5, 0; @%p0 activemask.b32 %r5;", func(l int) uint32 { return choose(odd>>l&1 != 0, odd, 0) }},
		{"and.b32 %r6, %r4, 1; match.any.sync.b32 %r5, %r6, -1;", func(l int) uint32 { return choose(odd>>l&1 != 0, odd, ^odd) }},
		{"mov.u32 %r5, %lanemask_lt;", func(l int) uint32 { return 1<<l - 1 }},
		{"mov.u32 %r5, %lanemask_ge;", func(l int) uint32 { return -(1 << l) }},
		{"bar.red.popc.u32 %r5, 0, %p0;", func(int) uint32 { return uint32(bits.OnesCount32(odd)) }},
		{"bar.red.and.pred %p1, 0, !%p0; selp.b32 %r5, 1, 0, %p1;", func(int) uint32 { return choose[uint32](odd == 0, 1, 0) }},
		{"bar.red.or.pred %p1, 0, %p0; selp.b32 %r5, 1, 0, %p1;", func(int) uint32 { return choose[uint32](odd != 0, 1, 0) }},
	} {
		t.Run(c.instr, func(t *testing.T) {
			want := make([]uint32, 32)
			for l := range want {
				want[l] = c.want(l)
			}
			equal(t, run(t, kernel("ld.global.b32 %r4, [%rd1]; and.b32 %r5, %r4, 1; setp.eq.u32 %p0, %r5, 1;"+c.instr+
				"st.global.b32 [%rd1], %r5;"), 1, 32, in), want)
		})
	}
}

// Lanes leave a loop at different times and take different branches in it, and shuffle together after it.
func TestBranches_MeetAgain(t *testing.T) {
	got := run(t, kernel(`
	mov.u32 %r4, 0;
	mov.u32 %r5, 0;
LOOP:
	setp.gt.u32 %p0, %r5, %r0;
	@%p0 bra OUT;
	and.b32 %r6, %r5, 1;
	setp.eq.u32 %p1, %r6, 0;
	@%p1 bra EVEN;
	and.b32 %r6, %r0, 2;
	setp.eq.u32 %p2, %r6, 0;
	@%p2 bra NEXT;
	add.u32 %r4, %r4, 100;
	bra.uni NEXT;
EVEN:
	add.u32 %r4, %r4, %r5;
NEXT:
	activemask.b32 %r7;
	popc.b32 %r7, %r7;
	add.u32 %r4, %r4, %r7;
	add.u32 %r5, %r5, 1;
	bra LOOP;
OUT:
	shfl.sync.bfly.b32 %r9, %r4, 1, 31, -1;
	st.global.b32 [%rd1], %r9;`), 1, 32, make([]uint32, 32))
	sum := func(l int) uint32 {
		s := 0
		for i := 0; i <= l; i++ {
			if i%2 == 0 {
				s += i
			} else if l&2 != 0 {
				s += 100
			}
			s += 32 - i // the lanes that are still in the loop
		}
		return uint32(s)
	}
	for l, v := range got {
		if want := sum(l ^ 1); v != want {
			t.Fatalf("lane %d has %d, not %d", l, v, want)
		}
	}
}

func TestLoadMatrix(t *testing.T) {
	in := randomWords(128)
	in16 := func(matrix, row, col int) uint32 { return in[matrix*32+row*4+col/2] >> (col % 2 * 16) & 0xffff }
	for _, trans := range []bool{false, true} {
		for _, n := range []int{1, 2, 4} {
			regs := map[int]string{1: "{%r10}", 2: "{%r10, %r11}", 4: "{%r10, %r11, %r12, %r13}"}[n]
			// The address of the other lanes is not used, and is not one.
			text := ".shared .align 16 .b8 s[512];\n" + kernel(fmt.Sprintf(`
	shl.b32 %%r4, %%r0, 4; mov.u32 %%r5, s; add.u32 %%r5, %%r5, %%r4; 
	cvt.u64.u32 %%rd2, %%r4; add.u64 %%rd2, %%rd0, %%rd2;
	ld.global.v4.b32 {%%r6, %%r7, %%r8, %%r9}, [%%rd2];
	st.shared.v4.b32 [%%r5], {%%r6, %%r7, %%r8, %%r9};
	bar.warp.sync -1;
	setp.lt.u32 %%p0, %%r0, %d; selp.b32 %%r5, %%r5, 100003, %%p0;
	mov.b32 %%r11, 0; mov.b32 %%r12, 0; mov.b32 %%r13, 0;
	ldmatrix.sync.aligned.m8n8.x%d%s.shared.b16 %s, [%%r5];
	st.global.v4.b32 [%%rd2], {%%r10, %%r11, %%r12, %%r13};`, 8*n, n, choose(trans, ".trans", ""), regs))
			want := slices.Clone(in)
			for l := range 32 {
				for i := range 4 {
					a, b := in16(i, l/4, l%4*2), in16(i, l/4, l%4*2+1)
					if trans {
						a, b = in16(i, l%4*2, l/4), in16(i, l%4*2+1, l/4)
					}
					want[4*l+i] = choose(i < n, b<<16|a, 0)
				}
			}
			equal(t, run(t, text, 1, 32, in), want)
		}
	}
}

func TestMoveMatrix(t *testing.T) {
	in := randomWords(32)
	got := run(t, kernel("ld.global.b32 %r4, [%rd1]; movmatrix.sync.aligned.m8n8.trans.b16 %r5, %r4; st.global.b32 [%rd1], %r5;"),
		1, 32, in)
	for i := range 64 {
		row, col := i/8, i%8
		at := func(w []uint32, row, col int) uint32 { return w[row*4+col/2] >> (col % 2 * 16) & 0xffff }
		if at(got, row, col) != at(in, col, row) {
			t.Fatalf("element %d,%d is not that of %d,%d", row, col, col, row)
		}
	}
}

func TestMMA_SumsOfHalves(t *testing.T) {
	// D of f16 with A all 1, B all 2, C all 0.5: 16·2 + 0.5.
	got := run(t, kernel(`mov.b32 %r4, 0x3c003c00; mov.b32 %r5, 0x40004000; mov.b32 %r6, 0x38003800; mov.b32 %r7, %r6;
	mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r6, %r7}, {%r4, %r4, %r4, %r4}, {%r5, %r5}, {%r7, %r6};
	st.global.b32 [%rd1], %r6;`), 1, 32, make([]uint32, 32))
	for _, v := range got {
		if v != 0x50105010 {
			t.Fatalf("sum is %#x", v)
		}
	}
	got = run(t, kernel(`mov.b32 %r4, 0x7f7f7f7f; mov.b32 %r6, 0x7fffff00; mov.b32 %r10, %r6;
	mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%r6, %r7, %r8, %r9}, {%r4, %r4, %r4, %r4}, {%r4, %r4},
		{%r10, %r10, %r10, %r10};
	st.global.b32 [%rd1], %r9;`), 1, 32, make([]uint32, 32))
	if got[0] != 0x7fffffff {
		t.Errorf("saturated sum is %#x", got[0])
	}
}
