package cuda_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// rig runs kernels in the simulator.
type rig struct {
	testing.TB
	device  *ptxsim.Device
	modules map[string]*ptxsim.Module
}

func newRig(t testing.TB) *rig {
	return &rig{t, ptxsim.NewDevice(ptxsim.Options{Operands: true}), map[string]*ptxsim.Module{}}
}

// launch runs a kernel of the table and fails the test at a fault.
func (r *rig) launch(name string, grid [3]int, shared int, args ...any) {
	r.Helper()
	for _, k := range cuda.Kernels() {
		if k.Name != name {
			continue
		}
		m := r.modules[k.Module]
		if m == nil {
			text, err := cuda.Text(k.Module)
			if err != nil {
				r.Fatal(err)
			}
			if m, err = r.device.Load(text); err != nil {
				r.Fatal(err)
			}
			r.modules[k.Module] = m
		}
		if err := m.Launch(name, grid, [3]int{k.Threads, 1, 1}, shared, args...); err != nil {
			r.Fatal(err)
		}
		return
	}
	r.Fatalf("no kernel %s", name)
}

// over returns the grid of a kernel with one thread for each of n elements.
func over(n int) [3]int { return [3]int{(n + 255) / 256, 1, 1} }

// alloc returns the address of n bytes.
func (r *rig) alloc(n int) uint64 {
	r.Helper()
	at, err := r.device.Alloc(max(n, 16))
	if err != nil {
		r.Fatal(err)
	}
	return at
}

// bytes returns n bytes of the device.
func (r *rig) bytes(at uint64, n int) []byte {
	r.Helper()
	b, err := r.device.Bytes(at, n)
	if err != nil {
		r.Fatal(err)
	}
	return b
}

// raw copies bytes to the device, in memory whose size is a multiple of 16.
func (r *rig) raw(b []byte) uint64 {
	r.Helper()
	at := r.alloc((len(b) + 15) &^ 15)
	copy(r.bytes(at, len(b)), b)
	return at
}

// floats copies floats to the device.
func (r *rig) floats(x []float32) uint64 {
	r.Helper()
	at := r.alloc(4 * len(x))
	b := r.bytes(at, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return at
}

// ints copies integers to the device.
func (r *rig) ints(x []int32) uint64 {
	r.Helper()
	return r.raw(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x)))
}

// read copies n floats from the device.
func (r *rig) read(at uint64, n int) []float32 {
	r.Helper()
	b, out := r.bytes(at, 4*n), make([]float32, n)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// normal returns n normally distributed numbers that depend on the seed.
func normal(seed uint64, n int) []float32 {
	r := rand.New(rand.NewPCG(seed, 7))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// near fails unless got is within a share of the largest element of want.
func near(t testing.TB, name string, got, want []float32, tolerance float64) {
	t.Helper()
	var worst, size float64
	at := 0
	for i := range want {
		size = max(size, math.Abs(float64(want[i])))
		if d := math.Abs(float64(got[i]) - float64(want[i])); d > worst || d != d {
			worst, at = d, i
		}
		if worst != worst {
			break
		}
	}
	if !(worst <= tolerance*size) {
		t.Errorf("%s: element %d is %v, want %v: off by %.2g of the largest", name, at, got[at], want[at], worst/size)
	}
}

// equal fails unless got and want have the same bits.
func equal(t testing.TB, name string, got, want []float32) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Errorf("%s: element %d is %v, want %v", name, i, got[i], want[i])
			return
		}
	}
}
