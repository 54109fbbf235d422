// Package drivertest tests the contract of drivers: of the twin everywhere, and of NVIDIA's driver on a machine with
// a GPU.
package drivertest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Scale is the module of the tests. Its kernel "scale" multiplies n floats by a number.
const Scale = `.version 7.8
.target sm_80
.address_size 64
.visible .entry scale(
	.param .u64 scale_x,
	.param .f32 scale_by,
	.param .u32 scale_n
)
{
	.reg .pred %p<2>;
	.reg .f32 %f<4>;
	.reg .b32 %r<6>;
	.reg .b64 %rd<5>;
	ld.param.u64 %rd1, [scale_x];
	ld.param.f32 %f1, [scale_by];
	ld.param.u32 %r1, [scale_n];
	mov.u32 %r2, %ctaid.x;
	mov.u32 %r3, %ntid.x;
	mov.u32 %r4, %tid.x;
	mad.lo.u32 %r5, %r2, %r3, %r4;
	setp.ge.u32 %p1, %r5, %r1;
	@%p1 bra done;
	cvta.to.global.u64 %rd2, %rd1;
	mul.wide.u32 %rd3, %r5, 4;
	add.u64 %rd4, %rd2, %rd3;
	ld.global.f32 %f2, [%rd4];
	mul.rn.f32 %f3, %f2, %f1;
	st.global.f32 [%rd4], %f3;
done:
	ret;
}
`

// Run tests a driver that has a device.
func Run(t *testing.T, d driver.Driver) {
	t.Run("Properties", func(t *testing.T) { properties(t, d) })
	t.Run("Memory", func(t *testing.T) { memory(t, d) })
	t.Run("OutOfMemory", func(t *testing.T) { outOfMemory(t, d) })
	t.Run("Kernels", func(t *testing.T) { kernels(t, d) })
	t.Run("Streams", func(t *testing.T) { streams(t, d) })
	t.Run("Sharing", func(t *testing.T) { sharing(t, d) })
	t.Run("Graphs", func(t *testing.T) { graphs(t, d) })
	t.Run("NoDevice", func(t *testing.T) {
		_, err := driver.Start(d, d.Count(), 0)
		if none := (*driver.NoDeviceError)(nil); !errors.As(err, &none) {
			t.Errorf("a device that is not there opens with %v", err)
		}
	})
}

// on runs f on the goroutine of device 0, with a stream and an event.
func on(t *testing.T, d driver.Driver, f func(k *kit) error) {
	t.Helper()
	c, err := driver.Start(d, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(func(device driver.Device) error {
		k := &kit{Device: device, t: t}
		var err error
		if k.stream, err = device.NewStream(); err != nil {
			return err
		}
		if k.event, err = device.NewEvent(); err != nil {
			return err
		}
		if k.pinned, err = device.AllocPinned(4096); err != nil {
			return err
		}
		if err := f(k); err != nil {
			return err
		}
		return errors.Join(device.FreePinned(k.pinned), device.FreeEvent(k.event), device.FreeStream(k.stream))
	})
	if err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// kit is a device with what most tests use.
type kit struct {
	driver.Device
	t      *testing.T
	stream driver.Stream
	event  driver.Event
	pinned []byte
}

// alloc allocates bytes. Calls fail with the address of a failure.
func (k *kit) alloc(n int64) driver.Address {
	k.t.Helper()
	a, err := k.Alloc(n)
	if err != nil {
		k.t.Error(err)
	}
	return a
}

// put uploads floats and waits.
func (k *kit) put(a driver.Address, x []float32) error {
	for i, v := range x {
		binary.LittleEndian.PutUint32(k.pinned[4*i:], math.Float32bits(v))
	}
	return errors.Join(k.Upload(a, k.pinned[:4*len(x)], k.stream),
		driver.Wait(k, k.stream, k.event, driver.DefaultLimit))
}

// get downloads floats.
func (k *kit) get(a driver.Address, n int) ([]float32, error) {
	out := make([]float32, n)
	err := errors.Join(k.Download(k.pinned[:4*n], a, k.stream), driver.Wait(k, k.stream, k.event, driver.DefaultLimit))
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(k.pinned[4*i:]))
	}
	return out, err
}

// numbers returns 0 to n-1.
func numbers(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(i)
	}
	return out
}

func properties(t *testing.T, d driver.Driver) {
	if d.Version() < driver.Oldest || d.Count() < 1 {
		t.Fatalf("CUDA %d with %d devices", d.Version(), d.Count())
	}
	on(t, d, func(k *kit) error {
		p := k.Properties()
		if p.Name == "" || p.Major < 8 || p.SMs < 1 || p.Memory < 1<<20 || p.Shared < 48<<10 {
			t.Errorf("the device is %+v", p)
		}
		free, total, err := k.MemoryInfo()
		if free < 1 || free > total || total > p.Memory {
			t.Errorf("%d of %d bytes are free, of a device of %d", free, total, p.Memory)
		}
		return err
	})
}

func memory(t *testing.T, d driver.Driver) {
	on(t, d, func(k *kit) error {
		a, b := k.alloc(400), k.alloc(400)
		if err := k.put(a, numbers(100)); err != nil {
			return err
		}
		err := errors.Join(k.Fill(b, 0, 400, k.stream), k.Copy(b+40, a+8, 200, k.stream))
		got, e := k.get(b, 100)
		if err := errors.Join(err, e); err != nil {
			return err
		}
		for i, v := range got {
			want := float32(0)
			if i >= 10 && i < 60 {
				want = float32(i - 8)
			}
			if v != want {
				t.Errorf("element %d of a filled and copied buffer is %v, want %v", i, v, want)
			}
		}
		return errors.Join(k.Free(a), k.Free(b))
	})
}

func outOfMemory(t *testing.T, d driver.Driver) {
	on(t, d, func(k *kit) error {
		_, total, err := k.MemoryInfo()
		if err != nil {
			return err
		}
		_, err = k.Alloc(2 * total)
		short := (*driver.OutOfMemoryError)(nil)
		if !errors.As(err, &short) || short.Wanted != 2*total || short.Total != total {
			t.Errorf("twice the memory of the device: %v", err)
		}
		return k.Free(k.alloc(256)) // the device is as it was
	})
}

// sharing exports memory. Only another process can open it: this one is refused, and its device works on.
func sharing(t *testing.T, d driver.Driver) {
	on(t, d, func(k *kit) error {
		a := k.alloc(driver.ShareUnit)
		if err := k.put(a, numbers(100)); err != nil {
			return err
		}
		own, err := k.Export(a)
		if err != nil {
			return err
		}
		for what, h := range map[string]driver.MemoryHandle{"this process": own, "nobody": {1, 2, 3}} {
			_, _, err := k.Import(h)
			if shared := (*driver.ShareError)(nil); !errors.As(err, &shared) || driver.Sticky(err) {
				t.Errorf("memory of %s opens with %v", what, err)
			}
		}
		got, err := k.get(a, 100)
		if !bytes.Equal(raw(got), raw(numbers(100))) {
			t.Error("memory that was exported has changed")
		}
		return errors.Join(err, k.Free(a))
	})
}

// load returns the kernel of the module.
func (k *kit) load() (driver.Module, driver.Function) {
	k.t.Helper()
	m, err := k.Load([]byte(Scale + "\x00"))
	if err != nil {
		k.t.Error(err)
	}
	f, err := k.Function(m, "scale", 0)
	if err != nil {
		k.t.Error(err)
	}
	return m, f
}

// shape is that of 300 threads, a few of which have nothing to do.
var shape = driver.Launch{Grid: driver.Dim{X: 10, Y: 1, Z: 1}, Block: driver.Dim{X: 32, Y: 1, Z: 1}}

func kernels(t *testing.T, d driver.Driver) {
	on(t, d, func(k *kit) error {
		m, f := k.load()
		if _, err := k.Function(m, "no_such_kernel", 0); err == nil {
			t.Error("a kernel that is not there is found")
		}
		if _, err := k.Load([]byte(".version 8.0\nnonsense\x00")); err == nil {
			t.Error("a module of nonsense loads")
		}
		if err := k.Launch(f, driver.Launch{Grid: shape.Grid, Block: driver.Dim{X: 4096, Y: 1, Z: 1}}, k.stream,
			driver.Address(0), float32(1), uint32(0)); err == nil {
			t.Error("a block of 4,096 threads is launched")
		}
		a := k.alloc(1200)
		if err := k.put(a, numbers(300)); err != nil {
			return err
		}
		if err := k.Launch(f, shape, k.stream, a, float32(2), uint32(299)); err != nil {
			return err
		}
		got, err := k.get(a, 300)
		for i, v := range got {
			if want := float32(2 * i); i < 299 && v != want || i == 299 && v != 299 {
				t.Errorf("element %d is %v", i, v)
			}
		}
		return errors.Join(err, k.Free(a), k.FreeModule(m))
	})
}

// streams puts work on a stream that waits for an event of another one.
func streams(t *testing.T, d driver.Driver) {
	on(t, d, func(k *kit) error {
		m, f := k.load()
		other, err := k.NewStream()
		if err != nil {
			return err
		}
		scaled, err := k.NewEvent()
		if err != nil {
			return err
		}
		a, b := k.alloc(1200), k.alloc(1200)
		if err := k.put(a, numbers(300)); err != nil {
			return err
		}
		for range 20 {
			err = errors.Join(err, k.Launch(f, shape, other, a, float32(0.5), uint32(300)),
				k.Launch(f, shape, other, a, float32(2), uint32(300)))
		}
		err = errors.Join(err, k.Launch(f, shape, other, a, float32(4), uint32(300)),
			k.Record(scaled, other), k.Await(k.stream, scaled), k.Copy(b, a, 1200, k.stream))
		got, e := k.get(b, 300)
		if err := errors.Join(err, e); err != nil {
			return err
		}
		if done, err := k.Done(scaled); !done || err != nil {
			t.Errorf("an event that a stream has waited for is not done: %v", err)
		}
		if !bytes.Equal(raw(got), raw(scaledBy(4))) {
			t.Error("a stream that waits for an event runs before it")
		}
		return errors.Join(k.Free(a), k.Free(b), k.FreeEvent(scaled), k.FreeStream(other), k.FreeModule(m))
	})
}

func scaledBy(by float32) []float32 {
	out := numbers(300)
	for i := range out {
		out[i] *= by
	}
	return out
}

func raw(x []float32) []byte {
	var out []byte
	for _, v := range x {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}

func graphs(t *testing.T, d driver.Driver) {
	on(t, d, func(k *kit) error {
		m, f := k.load()
		a, b := k.alloc(1200), k.alloc(1200)
		if err := k.put(a, numbers(300)); err != nil {
			return err
		}
		if err := k.BeginCapture(k.stream); err != nil {
			return err
		}
		err := errors.Join(k.Launch(f, shape, k.stream, a, float32(3), uint32(300)), k.Copy(b, a, 1200, k.stream))
		g, e := k.EndCapture(k.stream)
		if err := errors.Join(err, e); err != nil {
			return err
		}
		for _, by := range []float32{1, 3, 9} { // a capture has run nothing
			got, err := k.get(a, 300)
			if err != nil {
				return err
			}
			if !bytes.Equal(raw(got), raw(scaledBy(by))) {
				t.Errorf("the graph has run other than often enough to multiply by %v", by)
			}
			if err := k.LaunchGraph(g, k.stream); err != nil {
				return err
			}
		}
		got, err := k.get(b, 300)
		if !bytes.Equal(raw(got), raw(scaledBy(27))) {
			t.Error("the copy of a graph has not run behind its kernel")
		}
		return errors.Join(err, k.FreeGraph(g), k.Free(a), k.Free(b), k.FreeModule(m))
	})
}
