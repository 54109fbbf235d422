// Package twin is a driver without a GPU. It keeps the rules of a real one: work on a stream runs later than the call
// that put it there, copies need pinned memory, a captured stream runs nothing, and an error of a kernel comes with a
// later call. Kernels run on a Machine, such as a device of ptxsim.
package twin

import (
	"bytes"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Machine has the memory of a device and runs kernels.
type Machine interface {
	// Alloc returns the address of memory. The content is unspecified.
	Alloc(bytes int64) (uint64, error)
	Free(address uint64) error
	// Bytes returns the memory from an address on.
	Bytes(address uint64, n int64) ([]byte, error)
	// Load reads the text of a module.
	Load(text string) (Program, error)
}

// Program is a module that a Machine has loaded.
type Program interface {
	// Has reports whether there is a kernel of a name.
	Has(kernel string) bool
	// Launch runs all blocks of a kernel. Arguments are as in driver.Device.
	Launch(kernel string, l driver.Launch, args []any) error
}

// Config describes the twin.
type Config struct {
	Version    int // of CUDA; 0 means 12.8
	Devices    int
	Memory     int64               // of a device in bytes; 0 means 1 GiB
	Properties driver.Properties   // of every device; what is 0 has a value of its own
	Machine    func() Machine      // makes the machine of a device
	Usage      func() driver.Usage // nil means that it is unknown
	Faults     *Faults             // nil for none
	Container  string              // drivers of different containers share no memory
}

// Driver is the twin.
type Driver struct{ cfg Config }

// New returns a twin.
func New(cfg Config) *Driver {
	if cfg.Version == 0 {
		cfg.Version = 12080
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1 << 30
	}
	p := &cfg.Properties
	p.Memory = cfg.Memory
	if p.Name == "" {
		p.Name = "twin"
	}
	if p.Major == 0 {
		p.Major = 8
	}
	if p.SMs == 0 {
		p.SMs = 2
	}
	if p.Shared == 0 {
		p.Shared = 99 << 10 // of sm_86, the least of those that PTX for sm_80 runs on
	}
	return &Driver{cfg}
}

// Version returns the version of CUDA.
func (d *Driver) Version() int { return d.cfg.Version }

// Count returns the number of devices.
func (d *Driver) Count() int { return d.cfg.Devices }

// Open opens a device with memory of its own.
func (d *Driver) Open(number int) (driver.Device, error) {
	if number < 0 || number >= d.cfg.Devices {
		return nil, &driver.NoDeviceError{Number: number, Count: d.cfg.Devices}
	}
	p := d.cfg.Properties
	p.UUID[0] = byte(number)
	return &Device{
		driver: d, exports: map[driver.Address]*export{}, imports: map[driver.Address]*imported{},
		properties: p, usage: d.cfg.Usage, machine: d.cfg.Machine(), faults: d.cfg.Faults,
		memory: map[driver.Address]int64{}, pinned: map[*byte][]byte{}, streams: map[driver.Stream]*stream{},
		events: map[driver.Event]*event{}, modules: map[driver.Module]Program{},
		functions: map[driver.Function]function{}, graphs: map[driver.Graph][]work{},
	}, nil
}

// Device is a device of the twin.
type Device struct {
	driver     *Driver
	exports    map[driver.Address]*export   // of this device
	imports    map[driver.Address]*imported // of others
	properties driver.Properties
	usage      func() driver.Usage
	machine    Machine
	faults     *Faults
	progress   atomic.Uint64 // pieces of work that have begun

	used      int64
	memory    map[driver.Address]int64 // sizes of allocations
	pinned    map[*byte][]byte
	streams   map[driver.Stream]*stream
	events    map[driver.Event]*event
	modules   map[driver.Module]Program
	functions map[driver.Function]function
	graphs    map[driver.Graph][]work
	last      uintptr // handle
	failed    error   // of work; the device is of no use after it
}

// function is a kernel of a module.
type function struct {
	module  driver.Module
	program Program
	name    string
	shared  int
}

// handle returns a new handle.
func (d *Device) handle() uintptr {
	d.last++
	return d.last
}

// fail is an error of a call, as the driver spells it.
func fail(call, name, format string, args ...any) error {
	codes := map[string]int{"CUDA_ERROR_INVALID_VALUE": 1, "CUDA_ERROR_INVALID_HANDLE": 400,
		"CUDA_ERROR_NOT_FOUND": 500, "CUDA_ERROR_INVALID_PTX": 218, "CUDA_ERROR_LAUNCH_FAILED": 719,
		"CUDA_ERROR_ILLEGAL_ADDRESS": 700, "CUDA_ERROR_ECC_UNCORRECTABLE": 214, "CUDA_ERROR_INVALID_CONTEXT": 201,
		"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": 900}
	return &driver.CallError{Call: call, Code: codes[name], Name: name, Text: fmt.Sprintf(format, args...)}
}

// Properties returns the properties.
func (d *Device) Properties() driver.Properties { return d.properties }

// MemoryInfo returns the bytes that are free and those that there are.
func (d *Device) MemoryInfo() (free, total int64, err error) {
	return d.properties.Memory - d.used, d.properties.Memory, d.failed
}

// Usage returns what Config.Usage says.
func (d *Device) Usage() driver.Usage {
	if d.usage == nil {
		return driver.Unknown
	}
	return d.usage()
}

// Alloc returns memory that is full of NaNs.
func (d *Device) Alloc(n int64) (driver.Address, error) {
	switch {
	case d.failed != nil:
		return 0, d.failed
	case n <= 0:
		return 0, fail("cuMemAlloc", "CUDA_ERROR_INVALID_VALUE", "%d bytes", n)
	case d.capturing():
		return 0, fail("cuMemAlloc", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "a stream is being captured")
	case n > d.properties.Memory-d.used:
		return 0, &driver.OutOfMemoryError{Kind: "device", Wanted: n, Free: d.properties.Memory - d.used,
			Total: d.properties.Memory}
	}
	a, err := d.machine.Alloc(n)
	if err != nil {
		return 0, err
	}
	content, err := d.machine.Bytes(a, n)
	if err != nil {
		return 0, err
	}
	for i := range content { // whoever reads what nobody has written finds out
		content[i] = 0xff
	}
	d.memory[driver.Address(a)] = n
	d.used += n
	return driver.Address(a), nil
}

// Free finishes all work and gives memory back.
func (d *Device) Free(a driver.Address) error {
	n, ok := d.memory[a]
	if !ok {
		return fail("cuMemFree", "CUDA_ERROR_INVALID_VALUE", "no allocation begins at %#x", uint64(a))
	}
	if err := d.finish("cuMemFree"); err != nil {
		return err
	}
	d.unexport(a)
	delete(d.memory, a)
	d.used -= n
	return d.machine.Free(uint64(a))
}

// AllocPinned returns host memory.
func (d *Device) AllocPinned(n int) ([]byte, error) {
	if n <= 0 {
		return nil, fail("cuMemHostAlloc", "CUDA_ERROR_INVALID_VALUE", "%d bytes", n)
	}
	words := make([]uint64, (n+7)/8)
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), n)
	d.pinned[&b[0]] = b
	return b, d.failed
}

// addressOf is the address of memory.
func addressOf(b []byte) driver.Address {
	return driver.Address(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// FreePinned finishes all work and gives host memory back.
func (d *Device) FreePinned(b []byte) error {
	if len(b) == 0 || len(d.pinned[&b[0]]) != len(b) {
		return fail("cuMemFreeHost", "CUDA_ERROR_INVALID_VALUE", "this is no pinned memory")
	}
	if err := d.finish("cuMemFreeHost"); err != nil {
		return err
	}
	delete(d.pinned, &b[0])
	return nil
}

// checkPinned returns an error unless b lies in pinned memory.
func (d *Device) checkPinned(call string, b []byte) error {
	from := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for p, all := range d.pinned {
		if at := from - uintptr(unsafe.Pointer(p)); at <= uintptr(len(all)) && at+uintptr(len(b)) <= uintptr(len(all)) {
			return nil
		}
	}
	return fail(call, "CUDA_ERROR_INVALID_VALUE", "%d bytes are not in pinned memory", len(b))
}

// Upload puts a copy to the device on a stream.
func (d *Device) Upload(dst driver.Address, src []byte, s driver.Stream) error {
	if err := d.checkPinned("cuMemcpyHtoDAsync", src); err != nil {
		return err
	}
	return d.put("cuMemcpyHtoDAsync", s, d.onBytes(dst, int64(len(src)), func(b []byte) { copy(b, src) }))
}

// Download puts a copy from the device on a stream.
func (d *Device) Download(dst []byte, src driver.Address, s driver.Stream) error {
	if err := d.checkPinned("cuMemcpyDtoHAsync", dst); err != nil {
		return err
	}
	return d.put("cuMemcpyDtoHAsync", s, func() error {
		b, err := d.readable(src, int64(len(dst)))
		copy(dst, b)
		return err
	})
}

// Copy puts a copy within the device on a stream.
func (d *Device) Copy(dst, src driver.Address, n int64, s driver.Stream) error {
	if dst < src+driver.Address(n) && src < dst+driver.Address(n) && n > 0 {
		return fail("cuMemcpyDtoDAsync", "CUDA_ERROR_INVALID_VALUE", "the two places overlap")
	}
	return d.put("cuMemcpyDtoDAsync", s, func() error {
		from, err := d.readable(src, n)
		if err != nil {
			return err
		}
		return d.onBytes(dst, n, func(b []byte) { copy(b, from) })()
	})
}

// Fill puts the setting of bytes on a stream.
func (d *Device) Fill(dst driver.Address, value byte, n int64, s driver.Stream) error {
	return d.put("cuMemsetD8Async", s, d.onBytes(dst, n, func(b []byte) {
		for i := range b {
			b[i] = value
		}
	}))
}

// onBytes returns the work of a function on memory of the device.
func (d *Device) onBytes(a driver.Address, n int64, f func([]byte)) func() error {
	return func() error {
		b, err := d.machine.Bytes(uint64(a), n)
		if err == nil {
			f(b)
		}
		return err
	}
}

// Load loads the text of a module, which may end with a zero byte.
func (d *Device) Load(image []byte) (driver.Module, error) {
	if bytes.HasPrefix(image, []byte("\x7fELF")) {
		return 0, fail("cuModuleLoadData", "CUDA_ERROR_INVALID_PTX", "the twin runs the text of PTX, no machine code")
	}
	p, err := d.machine.Load(string(bytes.TrimRight(image, "\x00")))
	if err != nil {
		return 0, fail("cuModuleLoadData", "CUDA_ERROR_INVALID_PTX", "%v", err)
	}
	m := driver.Module(d.handle())
	d.modules[m] = p
	return m, nil
}

// Function finds a kernel.
func (d *Device) Function(m driver.Module, name string, shared int) (driver.Function, error) {
	p, ok := d.modules[m]
	switch {
	case !ok:
		return 0, fail("cuModuleGetFunction", "CUDA_ERROR_INVALID_HANDLE", "no such module")
	case !p.Has(name):
		return 0, fail("cuModuleGetFunction", "CUDA_ERROR_NOT_FOUND", "no kernel %s", name)
	case shared > d.properties.Shared:
		return 0, fail("cuFuncSetAttribute", "CUDA_ERROR_INVALID_VALUE", "%d bytes of shared memory, there are %d",
			shared, d.properties.Shared)
	}
	f := driver.Function(d.handle())
	d.functions[f] = function{m, p, name, shared}
	return f, nil
}

// FreeModule forgets a module and its kernels.
func (d *Device) FreeModule(m driver.Module) error {
	if _, ok := d.modules[m]; !ok {
		return fail("cuModuleUnload", "CUDA_ERROR_INVALID_HANDLE", "no such module")
	}
	delete(d.modules, m)
	for f, k := range d.functions {
		if k.module == m {
			delete(d.functions, f)
		}
	}
	return nil
}

// Limits of launches.
const (
	maxThreads = 1024
	maxGridYZ  = 65535
	freeShared = 48 << 10 // bytes that need no opting in
)

// Launch puts a kernel on a stream.
func (d *Device) Launch(f driver.Function, l driver.Launch, s driver.Stream, args ...any) error {
	k, ok := d.functions[f]
	g, b := l.Grid, l.Block
	threads := uint64(b.X) * uint64(b.Y) * uint64(b.Z)
	switch {
	case !ok:
		return fail("cuLaunchKernel", "CUDA_ERROR_INVALID_HANDLE", "no such kernel")
	case threads == 0 || threads > maxThreads || g.X == 0 || g.Y == 0 || g.Z == 0 || g.Y > maxGridYZ || g.Z > maxGridYZ:
		return fail("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE", "%s: a grid of %v and blocks of %v", k.name, g, b)
	case l.Shared > max(k.shared, freeShared):
		return fail("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE", "%s: %d bytes of shared memory, opted in for %d",
			k.name, l.Shared, k.shared)
	}
	for i, a := range args {
		switch a.(type) {
		case uint32, int32, uint64, float32, driver.Address:
		default:
			return fail("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE", "%s: argument %d is %T", k.name, i, a)
		}
	}
	args = slices.Clone(args)
	return d.put("cuLaunchKernel", s, func() error {
		if name := d.faults.next(); name != "" {
			return fail("cuLaunchKernel", name, "%s: as the test wants", k.name)
		}
		if err := k.program.Launch(k.name, l, args); err != nil {
			return fail("cuLaunchKernel", "CUDA_ERROR_LAUNCH_FAILED", "%s: %v", k.name, err)
		}
		return nil
	})
}

// Close finishes all work and gives everything back.
func (d *Device) Close() error {
	err := d.finish("cuCtxDestroy")
	clear(d.imports)
	for a := range d.memory {
		d.unexport(a)
		if e := d.machine.Free(uint64(a)); err == nil {
			err = e
		}
	}
	clear(d.memory)
	return err
}

// Progress counts the work that has begun.
func (d *Device) Progress() uint64 { return d.progress.Load() }

// Left returns the numbers of allocations of the device and of pinned memory.
func (d *Device) Left() (memory, pinned int) { return len(d.memory), len(d.pinned) }

// Graphs returns the number of graphs.
func (d *Device) Graphs() int { return len(d.graphs) }
