package ptxsim_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

func TestDevice_Memory(t *testing.T) {
	d := ptxsim.NewDevice(ptxsim.Options{Memory: 1000})
	a, err := d.Alloc(600)
	if err != nil {
		t.Fatal(err)
	}
	if a%256 != 0 {
		t.Errorf("address %#x is not a multiple of 256", a)
	}
	data := memory(t, d, a, 600)
	if uint64(uintptr(unsafe.Pointer(&data[0]))) != a {
		t.Error("the address is not that of the memory")
	}
	if data[0] != 0xff || data[599] != 0xff {
		t.Error("new memory is not 0xff")
	}
	if _, err := d.Alloc(500); !errors.Is(err, ptxsim.ErrMemory) {
		t.Errorf("error of a large allocation is %v", err)
	}
	for _, c := range []struct {
		addr uint64
		n    int
	}{{a, 601}, {a + 600, 1}, {a - 1, 1}, {a, -1}, {0, 1}, {a + 1, math.MaxInt}} {
		if _, err := d.Bytes(c.addr, c.n); !errors.Is(err, ptxsim.ErrAddress) {
			t.Errorf("%d bytes at %#x: error is %v", c.n, c.addr, err)
		}
	}
	if got := memory(t, d, a+600, 0); len(got) != 0 {
		t.Error("no bytes at the end are not empty")
	}
	if err := d.Free(a + 256); !errors.Is(err, ptxsim.ErrAddress) {
		t.Errorf("error of a free inside an allocation is %v", err)
	}
	if err := d.Free(a); err != nil || d.Used() != 0 {
		t.Errorf("free: %v, %d bytes in use", err, d.Used())
	}
	if _, err := d.Bytes(a, 1); !errors.Is(err, ptxsim.ErrAddress) {
		t.Errorf("error of freed memory is %v", err)
	}
	var fresh uint64
	for range 50 { // neighbours are apart
		if fresh, err = d.Alloc(8); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Bytes(fresh+8, 1); !errors.Is(err, ptxsim.ErrAddress) {
			t.Fatalf("error of the byte after an allocation is %v", err)
		}
	}
	m := load(t, d, kernel("ld.global.b32 %r4, [%rd0];"))
	if err := d.Free(fresh); err != nil {
		t.Fatal(err)
	}
	fault(t, m.Launch("k", one(1), one(1), 0, fresh), ptxsim.CheckBounds)
}

// Every width and vector is stored to shared and local memory, loaded, and stored to global memory.
func TestMemory_WidthsAndVectors(t *testing.T) {
	for _, space := range []string{"shared", "local", "global", ""} {
		for _, n := range []int{1, 2, 4} {
			for _, bits := range []int{8, 16, 32, 64} {
				if n*bits > 128 {
					continue
				}
				reg := map[int]string{8: "%h", 16: "%h", 32: "%r1", 64: "%rd1"}[bits]
				vec, list := "", ""
				for i := range n {
					list += choose(i > 0, ", ", "") + fmt.Sprintf("%s%d", reg, 2+i)
				}
				if n > 1 {
					vec, list = fmt.Sprintf(".v%d", n), "{"+list+"}"
				}
				size := n * bits / 8
				text := ".shared .align 16 .b8 s[512];\n" + kernel(fmt.Sprintf(`.local .align 16 .b8 l[16];
	mul.lo.u32 %%r4, %%r0, %d; cvt.u64.u32 %%rd2, %%r4; add.u64 %%rd3, %%rd0, %%rd2;
	mov.u64 %%rd4, s; add.u64 %%rd4, %%rd4, %%rd2; mov.u64 %%rd5, l; add.u64 %%rd6, %%rd3, 1024;
	cvta.local.u64 %%rd7, %%rd5;
	ld.global%s.b%d %s, [%%rd3];
	st%s%s.b%d [%s], %s;
	ld%s%s.u%d %s, [%s];
	st.global%s.b%d [%%rd3+512], %s;`, size, vec, bits, list,
					choose(space == "", "", "."+space), vec, bits,
					map[string]string{"shared": "%rd4", "local": "%rd5", "global": "%rd6", "": "%rd7"}[space], list,
					choose(space == "", "", "."+space), vec, bits, list,
					map[string]string{"shared": "%rd4", "local": "%rd5", "global": "%rd6", "": "%rd7"}[space],
					vec, bits, list))
				in := randomWords(384)
				want := slices.Clone(in)
				copy(want[128:], in[:size*8])
				if space == "global" {
					copy(want[256:], in[:size*8])
				}
				t.Run(fmt.Sprintf("%s v%d b%d", space, n, bits), func(t *testing.T) {
					equal(t, run(t, text, 1, 32, in), want)
				})
			}
		}
	}
}

func TestMemory_SignsExtend(t *testing.T) {
	got := run(t, kernel("ld.global.s8 %r4, [%rd1]; ld.global.u8 %r5, [%rd1]; ld.global.s16 %r6, [%rd1]; "+
		"bar.warp.sync -1; st.global.v4.b32 [%rd0], {%r4, %r5, %r6, %r6};"), 1, 1, []uint32{0x8081, 0, 0, 0})
	if !slices.Equal(got, []uint32{0xffffff81, 0x81, 0xffff8081, 0xffff8081}) {
		t.Errorf("extended values are %#x", got)
	}
}

func TestModule_VariablesAndParameters(t *testing.T) {
	d := ptxsim.NewDevice(ptxsim.Options{})
	m := load(t, d, `
.const .align 4 .f32 table[4] = {0f3F800000, 2.0, 0d4008000000000000, -4.0};
.global .align 8 .b64 counter;
.global .align 4 .u32 start[2] = {7, 0x10};
.visible .entry k(.param .u64 out, .param .align 8 .b8 pack[16], .param .f64 d, .param .u16 h, .param .s32 i)
.reqntid 4, 1, 1
{
	.reg .b64 %rd<6>;
	.reg .b32 %r<8>;
	.reg .f32 %f<2>;
	.reg .f64 %d<2>;
	.reg .b16 %h<2>;
	ld.param.u64 %rd0, [out];
	mov.u32 %r0, %tid.x;
	mul.wide.u32 %rd1, %r0, 32;
	add.u64 %rd1, %rd0, %rd1;
	shl.b32 %r1, %r0, 2;
	mov.u32 %r2, table;
	cvt.u64.u32 %rd2, %r1;
	mov.u64 %rd3, table;
	add.u64 %rd3, %rd3, %rd2;
	ld.const.f32 %f0, [%rd3];
	st.global.f32 [%rd1], %f0;
	ld.param.v2.u32 {%r3, %r4}, [pack+8];
	st.global.v2.b32 [%rd1+8], {%r3, %r4};
	ld.param.f64 %d0, [d];
	cvt.rn.f32.f64 %f1, %d0;
	st.global.f32 [%rd1+4], %f1;
	ld.param.u16 %h0, [h];
	cvt.u32.u16 %r5, %h0;
	ld.param.s32 %r6, [i];
	st.global.v2.b32 [%rd1+16], {%r5, %r6};
	ld.global.u32 %r7, [start+4];
	st.global.b32 [%rd1+24], %r7;
	mov.u64 %rd4, counter;
	red.global.add.u64 [%rd4], 3;
	ret;
}`)
	out := alloc(t, d, make([]byte, 128))
	pack := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	launch := func(block int) error {
		return m.Launch("k", one(1), one(block), 0, out, pack, 0.5, uint16(65535), int32(-2))
	}
	if err := launch(4); err != nil {
		t.Fatal(err)
	}
	got := words(t, d, out, 32)
	for i, v := range []float32{1, 2, 3, -4} {
		want := []uint32{f32(v), f32(0.5), 0x0b0a0908, 0x0f0e0d0c, 65535, 0xfffffffe, 0x10}
		if !slices.Equal(got[8*i:8*i+7], want) {
			t.Errorf("thread %d stores %#x, not %#x", i, got[8*i:8*i+7], want)
		}
	}
	addr, n, err := m.Global("counter")
	if err != nil || n != 8 {
		t.Fatalf("global variable: %d bytes, %v", n, err)
	}
	if v := binary.LittleEndian.Uint64(memory(t, d, addr, 8)); v != 12 {
		t.Errorf("counter is %d", v)
	}
	if err := launch(8); !errors.Is(err, ptxsim.ErrShape) {
		t.Errorf("error of a block that .reqntid forbids is %v", err)
	}
	if err := m.Launch("k", one(1), one(4), 16, out, pack, 0.5, uint16(1), int32(1)); !errors.Is(err, ptxsim.ErrShape) {
		t.Errorf("error of dynamic shared memory that the kernel does not declare is %v", err)
	}
	info, err := m.Kernel("k")
	if err != nil || info.MaxThreads != 4 || info.Params != 5 {
		t.Errorf("kernel is %+v, %v", info, err)
	}
	m.Unload()
	if d.Used() != 128 {
		t.Errorf("%d bytes are in use after Unload", d.Used())
	}
}

func TestSpecialRegisters(t *testing.T) {
	d := ptxsim.NewDevice(ptxsim.Options{})
	m := load(t, d, `
.extern .shared .align 16 .b8 dyn[];
.visible .entry k(.param .u64 out)
{
	.reg .b64 %rd<3>;
	.reg .b32 %r<20>;
	ld.param.u64 %rd0, [out];
	mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z;
	mov.u32 %r3, %ntid.x; mov.u32 %r4, %ntid.y; mov.u32 %r5, %ntid.z;
	mov.u32 %r6, %ctaid.x; mov.u32 %r7, %ctaid.y; mov.u32 %r8, %ctaid.z;
	mov.u32 %r9, %nctaid.x; mov.u32 %r10, %nctaid.y; mov.u32 %r11, %nctaid.z;
	mov.u32 %r12, %laneid; mov.u32 %r13, %warpid; mov.u32 %r14, %nwarpid;
	mov.u32 %r15, %dynamic_smem_size; mov.u32 %r17, dyn;
	mad.lo.u32 %r16, %r8, %r10, %r7; mad.lo.u32 %r16, %r16, %r9, %r6;
	mad.lo.u32 %r16, %r16, %r5, %r2; mad.lo.u32 %r16, %r16, %r4, %r1; mad.lo.u32 %r16, %r16, %r3, %r0;
	mul.wide.u32 %rd1, %r16, 64; add.u64 %rd0, %rd0, %rd1;
	st.global.v4.b32 [%rd0], {%r0, %r1, %r2, %r3}; st.global.v4.b32 [%rd0+16], {%r4, %r5, %r6, %r7};
	st.global.v4.b32 [%rd0+32], {%r8, %r9, %r10, %r11}; st.global.v4.b32 [%rd0+48], {%r12, %r13, %r14, %r15};
	ret;
}`)
	grid, block := [3]int{2, 3, 2}, [3]int{5, 4, 2}
	blocks, threads := 12, 40
	out := alloc(t, d, make([]byte, 64*blocks*threads))
	if err := m.Launch("k", grid, block, 48, out); err != nil {
		t.Fatal(err)
	}
	got := words(t, d, out, 16*blocks*threads)
	for b := range blocks {
		for i := range threads {
			want := []uint32{uint32(i % 5), uint32(i / 5 % 4), uint32(i / 20), 5, 4, 2,
				uint32(b % 2), uint32(b / 2 % 3),
				uint32(b / 6), 2, 3, 2, uint32(i % 32), uint32(i / 32), 2, 48}
			if row := got[16*(b*threads+i):][:16]; !slices.Equal(row, want) {
				t.Fatalf("block %d, thread %d: registers are %v, not %v", b, i, row, want)
			}
		}
	}
}

func TestAtomics(t *testing.T) {
	for _, c := range []struct {
		instr string
		start uint32
		want  uint32
	}{
		{"red.global.add.u32 [%rd0], %r3;", 5, 5 + 127*128/2},
		{"atom.global.add.u32 %r4, [%rd0], 1;", 0, 128},
		{"atom.global.max.u32 %r4, [%rd0], %r3;", 3, 127},
		{"atom.global.min.s32 %r4, [%rd0], %r3;", 0xfffffff0, 0xfffffff0},
		{"red.relaxed.gpu.global.or.b32 [%rd0], %r3;", 0x100, 0x17f},
		{"red.global.and.b32 [%rd0], %r3;", 0xff, 0},
		{"red.global.xor.b32 [%rd0], %r3;", 1, 1},
		{"atom.global.inc.u32 %r4, [%rd0], 99;", 0, 28},
		{"atom.global.dec.u32 %r4, [%rd0], 99;", 0, 72},
		{"atom.global.exch.b32 %r4, [%rd0], %r3;", 0, 127},
		{"atom.global.cas.b32 %r4, [%rd0], %r3, 77;", 9, 77},
		{"mov.b32 %f0, 0f3F000000; red.global.add.f32 [%rd0], %f0;", f32(1), f32(65)},
		{"mov.b32 %r4, 0x3c003c00; red.global.add.noftz.f16x2 [%rd0], %r4;", 0, 0x58005800},
		{`.shared .b32 s; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.b32 [s], 0; bar.sync 0; atom.shared.add.u32 %r4, [s], 2;
		  bar.sync 0; ld.shared.b32 %r4, [s]; @%p0 red.global.add.u32 [%rd0], %r4;`, 0, 256},
	} {
		t.Run(c.instr, func(t *testing.T) {
			if got := run(t, kernel(c.instr), 2, 64, []uint32{c.start}); got[0] != c.want {
				t.Errorf("memory is %#x, not %#x", got[0], c.want)
			}
		})
	}
	got := run(t, kernel("atom.global.add.u32 %r4, [%rd0], 1; st.global.b32 [%rd1+4], %r4;"), 2, 64, make([]uint32, 129))
	for i := range 128 {
		if got[i+1] != uint32(i) {
			t.Fatalf("thread %d took number %d: atomics are not in order", i, got[i+1])
		}
	}
}

// Blocks run on any number of goroutines and give the same bits and the same fault.
func TestLaunch_IsDeterministic(t *testing.T) {
	text := shared(`ld.shared.b32 %r10, [%r9]; add.u32 %r10, %r10, %r1;
		st.global.b32 [%rd1], %r10; setp.lt.u32 %p0, %r1, 20; @%p0 bra E; ld.global.b32 %r10, [%rd1+-16384]; E:`)
	var first []byte
	var message string
	for _, workers := range []int{1, 2, 7} {
		d := ptxsim.NewDevice(ptxsim.Options{Workers: workers})
		m := load(t, d, text)
		p := alloc(t, d, make([]byte, 4*64*64))
		err := m.Launch("k", one(64), one(64), 0, p)
		fault(t, err, ptxsim.CheckBounds, "block [20 0 0]")
		var f *ptxsim.Fault
		errors.As(err, &f)
		data := bytes.Clone(memory(t, d, p, 4*64*20))
		if first == nil {
			first, message = data, f.Instr+fmt.Sprint(f.Block, f.Thread, f.Line)
		}
		if !bytes.Equal(data, first) || message != f.Instr+fmt.Sprint(f.Block, f.Thread, f.Line) {
			t.Errorf("%d workers: %v differs", workers, f)
		}
	}
}

func TestLoad_Refuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{kernel("add.u32 %r4, %r5;"), "ptx line 19: add.u32 %r4, %r5: 2 operands where 3 belong"},
		{kernel("frob.u32 %r4, %r5;"), "frob.u32 %r4, %r5: instruction frob is not supported"},
		{kernel("add.u32 %r4, %x5, 1;"), "register %x5 is not declared"},
		{kernel("add.f32 %r4, %f5, %d1;"), "register %d1 has type .f64 where .f32 belongs"},
		{kernel("add.u32 %rd4, %r5, 1;"), "register %rd4 has type .b64 where .u32 belongs"},
		{kernel("add.frob.u32 %r4, %r5, 1;"), "modifier .frob is not supported"},
		{kernel("bra NOWHERE;"), "label NOWHERE is not in the kernel"},
		{kernel("ld.global.b32 %r4, [%rd0-4];"), "ld.global.b32 %r4, [%rd0-: found"},
		{kernel("bar.sync 1, 40;"), "not whole warps"},
		{".global .b32 g;\n" + kernel("mov.u32 %r4, g;"), "address of global variable g"},
		{kernel("L: L: ret;"), "label L is declared twice"},
		{kernel("mov.u32 %r40, 1;"), "register %r40 is not declared"},
		{kernel("mov.u32 %r4, %clock;"), "register %clock is not declared"},
		{kernel("add.u32 %r4, %r5, 0x1ffffffff;"), "does not fit type u32"},
		{kernel("ld.global.b32 %r4, [%r5];"), "is not an address"},
		{kernel("ld.global.v4.b64 {%rd4, %rd5, %rd6, %rd7}, [%rd0];"), "vector of 32 bytes"},
		{kernel("ld.global.v2.b32 {%r4, %r4}, [%rd0];"), "names a register twice"},
		{kernel("ld.param.u64 %rd4, [p+8];"), "parameter p"},
		{kernel("cvt.f16.f32 %h0, %f0;"), "needs .rn"},
		{kernel("cvt.u32.f32 %r4, %f0;"), "needs .rni"},
		{kernel("fma.f32 %f0, %f1, %f2, %f3;"), "fma needs"},
		{kernel("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r4,%r5}, {%r6,%r7}, {%f0,%f1,%f2,%f3};"),
			"vector of 2 elements where 4 belong"},
		{kernel("mma.sync.aligned.m16n8k4.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r4,%r5}, {%r6}, {%f0,%f1,%f2,%f3};"),
			"shape .m16n8k4 is not supported for type .bf16"},
		{kernel("shfl.idx.b32 %r4, %r5, 0, 31;"), "only .sync"},
		{kernel("call foo;"), "instruction call is not supported"},
		{".visible .entry k() { /* ", "comment does not end"},
		{".visible .entry k() { ret;", "kernel k does not end"},
		{".visible .entry k() { ret; } .entry k() { ret; }", "declared twice"},
		{".func f() { ret; }", "functions that a kernel calls are not supported"},
		{".global .b8 x[99999999999];", "dimension 99999999999 is out of range"},
		{".visible .entry k() { .shared .b8 s[50000]; ret; }", "ends beyond 49152 bytes"},
		{".visible .entry k() { .reg .b32 r<4000000000>; mov.b32 r3999999999, 1; @x ret; }", "x is not a predicate register"},
	} {
		_, err := ptxsim.NewDevice(ptxsim.Options{}).Load(header + c.text)
		var source *ptxsim.SourceError
		if !errors.As(err, &source) {
			t.Errorf("%s: error is %v", c.text, err)
		} else if !bytes.Contains([]byte(err.Error()), []byte(c.want)) {
			t.Errorf("error %q does not have %q", err, c.want)
		}
	}
}
