package kernel

import "github.com/lamina-mesh/lamina/pkg/tensor"

// Buffer is memory of the device that a kernel set computes on. On a processor it is an ordinary
// slice. A set for another device makes a Buffer of device addresses: it may be sliced and measured
// with len, and passed to the set's operations, but the host must not read or write its elements.
// Code that has to run on every set moves elements with Upload, Download and Host alone.
//
// The garbage collector does not see a device's memory, so a buffer does not keep itself alive there. It lives as long
// as the Memory that handed it out is reachable: whoever keeps a buffer keeps its Memory too. What lives shorter than
// a kernel set comes from a Scope of it.
//
// Lists that steer an operation (ids, positions, spans, row numbers) are short and stay on the host.
type Buffer[F tensor.Float] []F

// Memory hands out and moves buffers of one device.
type Memory[F tensor.Float] interface {
	// Scope returns the same memory with a lifetime of its own: its buffers live as long as the Scope is reachable,
	// and what was put into the set's operations before it became unreachable is still computed.
	Scope() Memory[F]
	// Alloc returns a buffer of n zeros.
	Alloc(n int) Buffer[F]
	// AllocBF16 returns n zeros of bfloat16, for RoundBF16.
	AllocBF16(n int) []uint16
	// FromHost returns a buffer of the given values. Where the host's memory is the device's it is x
	// itself, so the caller must leave x to the buffer.
	FromHost(x []F) Buffer[F]
	// Upload copies host values to a buffer of the same length.
	Upload(dst Buffer[F], src []F)
	// Download copies a buffer to host memory of the same length.
	Download(dst []F, src Buffer[F])
	// Host returns a buffer's elements for reading on the host: the buffer itself where the host
	// can read it, else a copy. It stands until the buffer is next written.
	Host(x Buffer[F]) []F
	// Copy copies a buffer to another of the same length.
	Copy(dst, src Buffer[F])
	// Clear sets a buffer to zeros.
	Clear(x Buffer[F])
	// NewKVPages returns n pages, each with room for a number of elements of keys and as many of
	// values in vectors of d, stored as t, which is not KVAuto.
	NewKVPages(n int, t KVType, elements, d int) []KVPage[F]
}
