package ptxsim

import (
	"fmt"
	"runtime"
	"sort"
	"sync"
	"unsafe"
)

// Limits of a block. MaxShared is that of sm_80 with the opt-in attribute; a static variable may take MaxStatic.
const (
	MaxThreads = 1024
	MaxShared  = 163 << 10
	MaxStatic  = 48 << 10
	MaxLocal   = 512 << 10 // bytes of local memory of a thread
	MaxConst   = 64 << 10
	warpSize   = 32
	allocAlign = 256
	guard      = 256 // bytes around an allocation that belong to no other
)

// Options of a device. The zero value is a device with the limits of an A100 and one goroutine for each processor.
type Options struct {
	Memory  int    // bytes that Alloc may hand out at a time; 0: 16 GiB
	Workers int    // goroutines that run the blocks of a launch; 0: GOMAXPROCS
	Steps   uint64 // warp instructions of a launch; 0: 1<<28
	Shared  int    // bytes of shared memory of a block; 0: MaxShared

	// Operands makes the last bit of a float32 that mma computes depend on every bit of its row of A, its column of B
	// and its element of C, zeros included. Devices may differ so, since they cut products to the largest exponent.
	// Results that shall have the same bits must then come from the same operands and not only from equal sums.
	Operands bool
}

// Device is a simulated device: global memory with a table of its allocations, and modules. Its methods may be called
// from several goroutines at once; races between launches that run at the same time are not detected.
type Device struct {
	opt   Options
	mu    sync.Mutex
	table table
	used  int
	idle  []*block // blocks of earlier launches, whose memory is used again
}

// allocation is a range of global memory. data[0] is at addr, and keep holds the Go memory.
type allocation struct {
	addr uint64
	data []byte
	keep []byte
}

// table is sorted by address. A launch reads the table that was current when it began; Alloc and Free make new ones.
type table []*allocation

// find returns the allocation that contains addr, or the one before it, or nil.
func (t table) find(addr uint64) *allocation {
	i := sort.Search(len(t), func(i int) bool { return t[i].addr > addr })
	if i == 0 {
		return nil
	}
	return t[i-1]
}

// NewDevice returns a device without allocations.
func NewDevice(opt Options) *Device {
	if opt.Memory == 0 {
		opt.Memory = 16 << 30
	}
	if opt.Workers == 0 {
		opt.Workers = runtime.GOMAXPROCS(0)
	}
	if opt.Steps == 0 {
		opt.Steps = 1 << 28
	}
	if opt.Shared == 0 {
		opt.Shared = MaxShared
	}
	return &Device{opt: opt}
}

// Alloc returns the address of new global memory, which is a multiple of 256. The memory belongs to the Go heap and
// stays where it is until Free, so that unsafe.Slice over the address is valid as long as the device is. Every byte is
// 0xff, a NaN in every type of float, because memory of a real device has no defined contents.
func (d *Device) Alloc(bytes int) (uint64, error) {
	if bytes <= 0 {
		return 0, fmt.Errorf("allocate %d bytes: %w", bytes, ErrMemory)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if bytes > d.opt.Memory-d.used {
		return 0, fmt.Errorf("allocate %d bytes with %d of %d in use: %w", bytes, d.used, d.opt.Memory, ErrMemory)
	}
	keep := make([]byte, bytes+2*guard+allocAlign)
	start := uint64(uintptr(unsafe.Pointer(&keep[0])))
	addr := (start + guard + allocAlign - 1) &^ (allocAlign - 1)
	a := &allocation{addr: addr, keep: keep, data: keep[addr-start:][:bytes:bytes]}
	for i := range a.data {
		a.data[i] = 0xff
	}
	i := sort.Search(len(d.table), func(i int) bool { return d.table[i].addr > addr })
	next := make(table, 0, len(d.table)+1)
	next = append(append(append(next, d.table[:i]...), a), d.table[i:]...)
	d.table = next
	d.used += bytes
	return addr, nil
}

// Free returns an allocation. Its address must not be used again, even if a launch that began earlier still runs.
func (d *Device) Free(addr uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.table.find(addr)
	if a == nil || a.addr != addr {
		return fmt.Errorf("free %#x: %w", addr, ErrAddress)
	}
	next := make(table, 0, len(d.table)-1)
	for _, b := range d.table {
		if b != a {
			next = append(next, b)
		}
	}
	d.table = next
	d.used -= len(a.data)
	return nil
}

// Bytes returns n bytes of global memory at an address inside an allocation, not a copy.
func (d *Device) Bytes(addr uint64, n int) ([]byte, error) {
	a := d.snapshot().find(addr)
	if a == nil || n < 0 || addr-a.addr > uint64(len(a.data)) || uint64(n) > uint64(len(a.data))-(addr-a.addr) {
		return nil, fmt.Errorf("%d bytes at %#x: %w", n, addr, ErrAddress)
	}
	off := addr - a.addr
	return a.data[off : off+uint64(n) : off+uint64(n)], nil
}

// Used returns the bytes that are allocated.
func (d *Device) Used() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

func (d *Device) snapshot() table {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.table
}

// borrow returns a block of an earlier launch, or a new one.
func (d *Device) borrow() *block {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.idle); n > 0 {
		b := d.idle[n-1]
		d.idle = d.idle[:n-1]
		return b
	}
	return &block{}
}

// giveBack keeps a block for a later launch, without the memory of the device that it refers to.
func (d *Device) giveBack(b *block) {
	b.table, b.m, b.k = nil, nil, nil
	for _, w := range b.warps {
		w.last = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.idle) < d.opt.Workers {
		d.idle = append(d.idle, b)
	}
}
