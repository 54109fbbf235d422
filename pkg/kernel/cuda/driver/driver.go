// Package driver is what Lamina needs of the driver of a GPU: devices, memory, streams, events, modules of kernels,
// launches and graphs. Package libcuda implements it over NVIDIA's driver library, and package twin in Go, with an
// interpreter of kernels in place of a device. Package drivertest holds the tests that both pass.
//
// A Device is used from one goroutine that is locked to its OS thread, because the driver binds contexts to threads.
// A Context is that goroutine: everybody else sends it work.
//
// Work on a stream runs later, in the order in which it was put there. Whoever waits for it records an event and
// polls it. The driver never calls back into Go.
package driver

import "fmt"

// Oldest is the oldest version of CUDA that a driver must support: 11.8, which compiles PTX 7.8.
const Oldest = 11080

// Address is a place in a device's memory.
type Address uint64

// Handles of a device's objects. Zero is none of them; as a Stream it is the default stream, which Lamina
// does not use.
type (
	Stream   uintptr
	Event    uintptr
	Module   uintptr
	Function uintptr
	Graph    uintptr
)

// MemoryHandle names an allocation for other processes on the same host.
type MemoryHandle [64]byte

// ShareUnit is what the size of an allocation that is exported must be a multiple of. The driver cuts smaller ones from
// blocks of this size and shares the whole block, with whatever else is in it.
const ShareUnit = 2 << 20

// Driver opens devices.
type Driver interface {
	// Version is the newest version of CUDA that the driver supports, as 1000·major + 10·minor.
	Version() int
	// Count returns the number of devices.
	Count() int
	// Open opens a device for the calling goroutine, which is locked to its OS thread. The error is a
	// *NoDeviceError if there is no device of that number.
	Open(number int) (Device, error)
}

// Properties describe a device.
type Properties struct {
	Name         string
	UUID         [16]byte
	Major, Minor int   // compute capability
	SMs          int   // streaming multiprocessors
	Memory       int64 // bytes
	Shared       int   // most bytes of shared memory of a block, opted in
	Integrated   bool  // shares the host's memory
}

// SM returns the device's architecture as compilers spell it, such as sm_90.
func (p *Properties) SM() string { return fmt.Sprintf("sm_%d%d", p.Major, p.Minor) }

// Usage is what a device reports of itself while it works. A value that is not known is negative.
type Usage struct {
	Utilisation float64 // share of time in which a kernel ran, 0 to 1
	Celsius     float64
	Watts       float64
}

// Unknown is the usage of a device that reports none.
var Unknown = Usage{-1, -1, -1}

// Dim is the size of a grid or of a block.
type Dim struct{ X, Y, Z uint32 }

// Launch is the shape of a launch.
type Launch struct {
	Grid, Block Dim
	Shared      int // bytes of dynamic shared memory of a block
}

// Device is an open device. Its methods are called from the goroutine that opened it.
type Device interface {
	Properties() Properties
	// MemoryInfo returns the bytes that are free and those that there are.
	MemoryInfo() (free, total int64, err error)
	// Usage returns how busy and warm the device is.
	Usage() Usage

	// Alloc returns memory of unspecified content. The error is an *OutOfMemoryError if there is too little.
	Alloc(bytes int64) (Address, error)
	// Free waits for the work that has been put on streams, and gives memory back.
	Free(a Address) error
	// AllocPinned returns host memory that the device reads and writes. It is not Go's.
	AllocPinned(bytes int) ([]byte, error)
	// FreePinned waits for the work that has been put on streams, and gives memory of AllocPinned back.
	FreePinned(b []byte) error

	// Upload copies pinned memory, which must not change until the work is done, to the device.
	Upload(dst Address, src []byte, s Stream) error
	// Download copies memory of the device to pinned memory, which must not be read until the work is done.
	Download(dst []byte, src Address, s Stream) error
	// Copy copies memory of the device. The two places do not overlap.
	Copy(dst, src Address, bytes int64, s Stream) error
	// Fill sets every byte to a value.
	Fill(dst Address, value byte, bytes int64, s Stream) error

	// Export returns a handle by which other processes on this host can open an allocation of Alloc. It must not be
	// freed while one of them has it open. The error is a *ShareError if the driver does not share it.
	Export(a Address) (MemoryHandle, error)
	// Import opens an allocation that another process has exported, and returns its place and size. Copy and Download
	// may read it, and nothing else may use it. The error is a *ShareError if the driver does not open it: the handle
	// is of this process, of another host or container, or of memory that is gone, or the device that the memory is
	// on cannot be reached from this one.
	Import(h MemoryHandle) (Address, int64, error)
	// FreeImport closes what Import has opened. The work that reads it must be done.
	FreeImport(a Address) error

	NewStream() (Stream, error)
	FreeStream(s Stream) error

	NewEvent() (Event, error)
	// Record marks the end of the work that has been put on a stream.
	Record(e Event, s Stream) error
	// Done reports whether the work before the last Record is done. It does not wait. The error is that of
	// the work, if it failed.
	Done(e Event) (bool, error)
	// Await makes what is put on a stream from now on wait for an event.
	Await(s Stream, e Event) error
	FreeEvent(e Event) error

	// Load loads kernels: the text of PTX, or machine code for this device.
	Load(image []byte) (Module, error)
	// Function finds a kernel of a module. Shared is the most bytes of dynamic shared memory that launches use.
	Function(m Module, name string, shared int) (Function, error)
	FreeModule(m Module) error
	// Launch puts a kernel on a stream. Arguments are uint32, int32, uint64, float32 and Address, in the order
	// of the kernel's parameters.
	Launch(f Function, l Launch, s Stream, args ...any) error

	// BeginCapture makes what is put on a stream from now on part of a graph, in place of running it.
	BeginCapture(s Stream) error
	// EndCapture returns the graph, ready to be launched.
	EndCapture(s Stream) (Graph, error)
	LaunchGraph(g Graph, s Stream) error
	FreeGraph(g Graph) error

	// Close waits for all work and gives everything back.
	Close() error
}
