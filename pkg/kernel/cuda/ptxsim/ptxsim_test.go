package ptxsim_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// header is the beginning of every module of the tests.
const header = ".version 7.8\n.target sm_90\n.address_size 64\n"

// load loads a module. If PTXAS names the assembler of CUDA, it must accept the module too, so that the tests do not
// depend on PTX that only the simulator takes.
func load(t testing.TB, d *ptxsim.Device, text string) *ptxsim.Module {
	t.Helper()
	m, err := d.Load(header + text)
	if err != nil {
		t.Fatalf("load: %v\n%s", err, numbered(header+text))
	}
	if ptxas := os.Getenv("PTXAS"); ptxas != "" {
		file := filepath.Join(t.TempDir(), "test.ptx")
		if err := os.WriteFile(file, []byte(header+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(ptxas, "-arch=sm_90", "-o", os.DevNull, file).CombinedOutput(); err != nil {
			t.Fatalf("ptxas: %v\n%s\n%s", err, out, numbered(header+text))
		}
	}
	return m
}

func numbered(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		fmt.Fprintf(&b, "%4d %s\n", i+1, line)
	}
	return b.String()
}

// alloc copies data to new global memory.
func alloc(t testing.TB, d *ptxsim.Device, data []byte) uint64 {
	t.Helper()
	addr, err := d.Alloc(len(data))
	if err != nil {
		t.Fatal(err)
	}
	copy(memory(t, d, addr, len(data)), data)
	return addr
}

func memory(t testing.TB, d *ptxsim.Device, addr uint64, n int) []byte {
	t.Helper()
	b, err := d.Bytes(addr, n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func words(t testing.TB, d *ptxsim.Device, addr uint64, n int) []uint32 {
	t.Helper()
	b := memory(t, d, addr, 4*n)
	out := make([]uint32, n)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return out
}

// kernel returns a kernel named k with the parameter p, a pointer, whose body may use the registers that it declares.
// %rd0 is the pointer, %rd1 is it plus four bytes for each thread of the launch, and %r0 is the thread of the block.
func kernel(body string) string {
	return `.visible .entry k(.param .u64 p)
{
.reg .pred %p<8>;
.reg .b16 %h<8>;
.reg .b32 %r<40>;
.reg .f32 %f<40>;
.reg .b64 %rd<20>;
.reg .f64 %d<8>;
ld.param.u64 %rd0, [p];
mov.u32 %r0, %tid.x;
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %ntid.x;
mad.lo.s32 %r3, %r1, %r2, %r0;
mul.wide.u32 %rd1, %r3, 4;
add.u64 %rd1, %rd0, %rd1;
` + body + "\nret;\n}\n"
}

// fault checks that an error is a fault of a kind whose text has all of the words.
func fault(t *testing.T, err error, check ptxsim.Check, words ...string) {
	t.Helper()
	var f *ptxsim.Fault
	if !errors.As(err, &f) {
		t.Fatalf("error is %v, not a fault", err)
	}
	if f.Check != check {
		t.Fatalf("check is %q, not %q: %v", f.Check, check, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not have %q", err, w)
		}
	}
}

func one(n int) [3]int { return [3]int{n, 1, 1} }

func TestModule_AddsVectors(t *testing.T) {
	d := ptxsim.NewDevice(ptxsim.Options{})
	m := load(t, d, `
.visible .entry add(.param .u64 x, .param .u64 y, .param .u32 n, .param .f32 scale)
{
	.reg .pred %p;
	.reg .b32 %r<5>;
	.reg .f32 %f<4>;
	.reg .b64 %rd<6>;
	ld.param.u32 %r4, [n];
	mov.u32 %r0, %ctaid.x;
	mov.u32 %r1, %ntid.x;
	mov.u32 %r2, %tid.x;
	mad.lo.s32 %r3, %r0, %r1, %r2;
	setp.ge.u32 %p, %r3, %r4;
	@%p bra DONE;
	ld.param.u64 %rd0, [x];
	ld.param.u64 %rd1, [y];
	cvta.to.global.u64 %rd0, %rd0;
	mul.wide.u32 %rd2, %r3, 4;
	add.s64 %rd3, %rd0, %rd2;
	add.s64 %rd4, %rd1, %rd2;
	ld.global.nc.f32 %f0, [%rd3];
	ld.global.f32 %f1, [%rd4];
	ld.param.f32 %f2, [scale];
	fma.rn.f32 %f3, %f0, %f2, %f1;
	st.global.f32 [%rd4], %f3;
DONE:
	ret;
}`)
	const n = 1000
	x, y := make([]byte, 4*n), make([]byte, 4*n)
	for i := range n {
		binary.LittleEndian.PutUint32(x[4*i:], f32(float32(i)))
		binary.LittleEndian.PutUint32(y[4*i:], f32(0.5))
	}
	xa, ya := alloc(t, d, x), alloc(t, d, y)
	if err := m.Launch("add", one(8), one(128), 0, xa, ya, uint32(n), float32(2)); err != nil {
		t.Fatal(err)
	}
	for i, v := range words(t, d, ya, n) {
		if want := f32(2*float32(i) + 0.5); v != want {
			t.Fatalf("y[%d] is %#x, not %#x", i, v, want)
		}
	}
	for name, err := range map[string]error{
		"count": m.Launch("add", one(8), one(128), 0, xa, ya, uint32(n)),
		"type":  m.Launch("add", one(8), one(128), 0, xa, ya, float32(n), float32(2)),
		"size":  m.Launch("add", one(8), one(128), 0, xa, uint32(1), uint32(n), float32(2)),
	} {
		if !errors.Is(err, ptxsim.ErrArguments) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if err := m.Launch("sub", one(8), one(128), 0); !errors.Is(err, ptxsim.ErrNoKernel) {
		t.Errorf("error of a missing kernel is %v", err)
	}
	if err := m.Launch("add", one(8), one(2048), 0, xa, ya, uint32(n), float32(2)); !errors.Is(err, ptxsim.ErrShape) {
		t.Errorf("error of a large block is %v", err)
	}
	fault(t, m.Launch("add", one(8), one(128), 0, xa, ya, uint32(n+1), float32(2)), ptxsim.CheckBounds,
		"kernel add, line 24, block [7 0 0], thread [104 0 0]", "allocation of 4000 bytes", "ld.global.nc.f32 %f0, [%rd3]")
}
