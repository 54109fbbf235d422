//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Device is an open device.
type Device struct {
	*Driver
	ordinal    int32
	properties driver.Properties
	managed    uintptr // handle of the management library; 0 if it has none

	graphs map[driver.Graph]uintptr // the graphs of which launchable ones were made

	// Arguments of a launch. They stay here so that the driver, which gets pointers to them, finds them in
	// memory that does not move.
	values   [maxArgs]uint64
	pointers [maxArgs]unsafe.Pointer
}

// maxArgs bounds the arguments of a kernel.
const maxArgs = 64

// Attributes of devices and functions.
const (
	attributeSMs        = 16
	attributeIntegrated = 18
	attributeMajor      = 75
	attributeMinor      = 76
	attributeShared     = 97
	functionShared      = 8
)

// Flags.
const (
	nonBlocking   = 1 // of streams: independent of the default stream
	withoutTiming = 2 // of events
	threadLocal   = 1 // of captures: calls of other threads do not disturb it
)

// Open opens a device and binds its context to the calling thread.
func (d *Driver) Open(number int) (driver.Device, error) {
	if number < 0 || number >= d.count {
		return nil, &driver.NoDeviceError{Number: number, Count: d.count}
	}
	out := &Device{Driver: d, graphs: map[driver.Graph]uintptr{}}
	if err := d.call("cuDeviceGet", uintptr(unsafe.Pointer(&out.ordinal)), uintptr(number)); err != nil {
		return nil, err
	}
	if err := out.describe(); err != nil {
		return nil, err
	}
	var ctx uintptr
	err := keepSignals(func() error {
		if err := d.call("cuDevicePrimaryCtxRetain", uintptr(unsafe.Pointer(&ctx)), uintptr(out.ordinal)); err != nil {
			return err
		}
		return d.call("cuCtxSetCurrent", ctx)
	})
	if err != nil {
		return nil, err
	}
	if d.nvml != nil {
		out.managed = d.nvml.device(out.properties.UUID)
	}
	return out, nil
}

// describe reads the device's properties.
func (d *Device) describe() error {
	p, device := &d.properties, uintptr(d.ordinal)
	name := make([]byte, 256)
	var bytes uint64
	err := errors.Join(
		d.call("cuDeviceGetName", uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)), device),
		d.call("cuDeviceGetUuid", uintptr(unsafe.Pointer(&p.UUID)), device),
		d.call("cuDeviceTotalMem_v2", uintptr(unsafe.Pointer(&bytes)), device),
	)
	if err != nil {
		return err
	}
	p.Name, p.Memory = cut(name), int64(bytes)
	for _, a := range []struct {
		which int
		to    *int
	}{{attributeMajor, &p.Major}, {attributeMinor, &p.Minor}, {attributeSMs, &p.SMs}, {attributeShared, &p.Shared}} {
		var v int32
		if err := d.call("cuDeviceGetAttribute", uintptr(unsafe.Pointer(&v)), uintptr(a.which), device); err != nil {
			return err
		}
		*a.to = int(v)
	}
	var integrated int32
	err = d.call("cuDeviceGetAttribute", uintptr(unsafe.Pointer(&integrated)), attributeIntegrated, device)
	p.Integrated = integrated != 0
	return err
}

// Properties returns the properties.
func (d *Device) Properties() driver.Properties { return d.properties }

// MemoryInfo returns the bytes that are free and those that there are.
func (d *Device) MemoryInfo() (free, total int64, err error) {
	var f, t uint64
	err = d.call("cuMemGetInfo_v2", uintptr(unsafe.Pointer(&f)), uintptr(unsafe.Pointer(&t)))
	return int64(f), int64(t), err
}

// Usage returns what the management library reports.
func (d *Device) Usage() driver.Usage {
	if d.managed == 0 {
		return driver.Unknown
	}
	return d.nvml.usage(d.managed)
}

// code returns the driver's code of an error, or 0.
func code(err error) int {
	if known := (*driver.CallError)(nil); errors.As(err, &known) {
		return known.Code
	}
	return 0
}

// Alloc allocates memory of the device.
func (d *Device) Alloc(n int64) (a driver.Address, err error) {
	err = d.call("cuMemAlloc_v2", uintptr(unsafe.Pointer(&a)), uintptr(n))
	if code(err) == outOfMemory {
		free, total, e := d.MemoryInfo()
		err = errors.Join(&driver.OutOfMemoryError{Kind: "device", Wanted: n, Free: free, Total: total}, e)
	}
	return a, err
}

// Free frees memory of the device.
func (d *Device) Free(a driver.Address) error { return d.call("cuMemFree_v2", uintptr(a)) }

// AllocPinned allocates host memory that is locked in place.
func (d *Device) AllocPinned(n int) ([]byte, error) {
	var p uintptr
	err := d.call("cuMemHostAlloc", uintptr(unsafe.Pointer(&p)), uintptr(n), 0)
	if code(err) == outOfMemory {
		return nil, &driver.OutOfMemoryError{Kind: "pinned host", Wanted: int64(n)}
	}
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(pointer(p)), n), nil
}

// FreePinned frees host memory.
func (d *Device) FreePinned(b []byte) error { return d.call("cuMemFreeHost", address(b)) }

// address is that of memory which is not Go's.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Upload copies pinned memory to the device.
func (d *Device) Upload(dst driver.Address, src []byte, s driver.Stream) error {
	return d.call("cuMemcpyHtoDAsync_v2", uintptr(dst), address(src), uintptr(len(src)), uintptr(s))
}

// Download copies memory of the device to pinned memory.
func (d *Device) Download(dst []byte, src driver.Address, s driver.Stream) error {
	return d.call("cuMemcpyDtoHAsync_v2", address(dst), uintptr(src), uintptr(len(dst)), uintptr(s))
}

// Copy copies memory of the device.
func (d *Device) Copy(dst, src driver.Address, n int64, s driver.Stream) error {
	return d.call("cuMemcpyDtoDAsync_v2", uintptr(dst), uintptr(src), uintptr(n), uintptr(s))
}

// Fill sets bytes.
func (d *Device) Fill(dst driver.Address, value byte, n int64, s driver.Stream) error {
	return d.call("cuMemsetD8Async", uintptr(dst), uintptr(value), uintptr(n), uintptr(s))
}

// NewStream makes a stream.
func (d *Device) NewStream() (s driver.Stream, err error) {
	err = d.call("cuStreamCreate", uintptr(unsafe.Pointer(&s)), nonBlocking)
	return s, err
}

// FreeStream destroys a stream when its work is done.
func (d *Device) FreeStream(s driver.Stream) error { return d.call("cuStreamDestroy_v2", uintptr(s)) }

// NewEvent makes an event.
func (d *Device) NewEvent() (e driver.Event, err error) {
	err = d.call("cuEventCreate", uintptr(unsafe.Pointer(&e)), withoutTiming)
	return e, err
}

// Record marks the end of a stream's work.
func (d *Device) Record(e driver.Event, s driver.Stream) error {
	return d.call("cuEventRecord", uintptr(e), uintptr(s))
}

// Done reports whether the work before the last Record is done.
func (d *Device) Done(e driver.Event) (bool, error) {
	err := d.call("cuEventQuery", uintptr(e))
	if code(err) == notReady {
		return false, nil
	}
	return err == nil, err
}

// Await makes a stream wait for an event.
func (d *Device) Await(s driver.Stream, e driver.Event) error {
	return d.call("cuStreamWaitEvent", uintptr(s), uintptr(e), 0)
}

// FreeEvent destroys an event.
func (d *Device) FreeEvent(e driver.Event) error { return d.call("cuEventDestroy_v2", uintptr(e)) }

// Options of the compiler of PTX.
const (
	jitErrorLog     = 5
	jitErrorLogSize = 6
)

// Load loads a module. For PTX that does not compile, the error has what the compiler says.
func (d *Device) Load(image []byte) (m driver.Module, err error) {
	if !bytes.HasPrefix(image, []byte("\x7fELF")) && !bytes.HasSuffix(image, []byte{0}) {
		image = append(bytes.Clone(image), 0)
	}
	log := make([]byte, 4096)
	options := [2]int32{jitErrorLog, jitErrorLogSize}
	values := struct { // an array of two values, each of which is a pointer or a number
		log  unsafe.Pointer
		size uintptr
	}{unsafe.Pointer(&log[0]), uintptr(len(log))}
	err = d.call("cuModuleLoadDataEx", uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&image[0])),
		uintptr(len(options)), uintptr(unsafe.Pointer(&options)), uintptr(unsafe.Pointer(&values)))
	if text := cut(log); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return m, err
}

// Function finds a kernel.
func (d *Device) Function(m driver.Module, name string, shared int) (f driver.Function, err error) {
	text := append([]byte(name), 0)
	err = d.call("cuModuleGetFunction", uintptr(unsafe.Pointer(&f)), uintptr(m), uintptr(unsafe.Pointer(&text[0])))
	if err == nil && shared > 0 {
		err = d.call("cuFuncSetAttribute", uintptr(f), functionShared, uintptr(shared))
	}
	return f, err
}

// FreeModule unloads a module.
func (d *Device) FreeModule(m driver.Module) error { return d.call("cuModuleUnload", uintptr(m)) }

// Launch puts a kernel on a stream.
func (d *Device) Launch(f driver.Function, l driver.Launch, s driver.Stream, args ...any) error {
	if len(args) > maxArgs {
		return fmt.Errorf("launch a kernel: %d arguments, at most %d", len(args), maxArgs)
	}
	for i, a := range args {
		// Kernels read the low bytes of each value: both architectures are little-endian.
		switch v := a.(type) {
		case uint32:
			d.values[i] = uint64(v)
		case int32:
			d.values[i] = uint64(uint32(v))
		case uint64:
			d.values[i] = v
		case driver.Address:
			d.values[i] = uint64(v)
		case float32:
			d.values[i] = uint64(math.Float32bits(v))
		default:
			return fmt.Errorf("launch a kernel: argument %d is %T", i, a)
		}
		d.pointers[i] = unsafe.Pointer(&d.values[i])
	}
	return d.call("cuLaunchKernel", uintptr(f), uintptr(l.Grid.X), uintptr(l.Grid.Y), uintptr(l.Grid.Z),
		uintptr(l.Block.X), uintptr(l.Block.Y), uintptr(l.Block.Z), uintptr(l.Shared), uintptr(s),
		uintptr(unsafe.Pointer(&d.pointers)), 0)
}

// BeginCapture begins a graph.
func (d *Device) BeginCapture(s driver.Stream) error {
	return d.call("cuStreamBeginCapture_v2", uintptr(s), threadLocal)
}

// EndCapture returns the graph.
func (d *Device) EndCapture(s driver.Stream) (g driver.Graph, err error) {
	var graph uintptr
	if err := d.call("cuStreamEndCapture", uintptr(s), uintptr(unsafe.Pointer(&graph))); err != nil {
		return 0, err
	}
	err = d.call("cuGraphInstantiateWithFlags", uintptr(unsafe.Pointer(&g)), graph, 0)
	if err != nil {
		return 0, errors.Join(err, d.call("cuGraphDestroy", graph))
	}
	d.graphs[g] = graph
	return g, nil
}

// LaunchGraph puts a graph on a stream.
func (d *Device) LaunchGraph(g driver.Graph, s driver.Stream) error {
	return d.call("cuGraphLaunch", uintptr(g), uintptr(s))
}

// FreeGraph destroys a graph.
func (d *Device) FreeGraph(g driver.Graph) error {
	graph := d.graphs[g]
	delete(d.graphs, g)
	return errors.Join(d.call("cuGraphExecDestroy", uintptr(g)), d.call("cuGraphDestroy", graph))
}

// Close waits for all work and releases the context, which gives everything back.
func (d *Device) Close() error {
	return errors.Join(d.call("cuCtxSynchronize"), d.call("cuCtxSetCurrent", 0),
		d.call("cuDevicePrimaryCtxRelease_v2", uintptr(d.ordinal)))
}
