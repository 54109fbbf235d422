package cuda

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// use is what memory is for.
type use uint8

const (
	workspaceUse use = iota
	weightsUse
	kvUse
	setUse // what the set itself needs: workspace of kernels, tables
	uses   // their number
)

// extent is an allocation.
type extent struct {
	at    driver.Address
	bytes int64
	use   use
}

// scope is memory with a lifetime: what it has allocated is freed when the garbage collector finds the scope
// unreachable. Frees go through the queue of the device's goroutine, behind the operations that were called before.
type scope struct {
	*device
	held *holding
}

// holding lists what a scope has allocated. It does not refer to the scope.
type holding struct {
	mu   sync.Mutex
	list []driver.Address
}

// newScope returns a scope.
func (d *device) newScope() *scope {
	d.rec.refuse("an allocation")
	return d.core.newScope()
}

func (c *core) newScope() *scope {
	s := &scope{&device{core: c}, &holding{}}
	runtime.AddCleanup(s, c.release, s.held)
	return s
}

// release frees what an unreachable scope has held.
func (d *core) release(h *holding) {
	d.mu.Lock()
	for _, a := range h.list {
		if i, ok := d.find(a); ok {
			d.used[d.ranges[i].use] -= d.ranges[i].bytes
			d.ranges = slices.Delete(d.ranges, i, i+1)
		}
	}
	d.mu.Unlock()
	d.send(func(w *worker) error {
		for _, a := range h.list {
			if err := w.Free(a); err != nil {
				return err
			}
		}
		return nil
	})
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// find returns the index of the allocation that begins at an address, or where it would be. The caller holds mu.
func (d *core) find(a driver.Address) (int, bool) {
	return slices.BinarySearchFunc(d.ranges, a, func(e extent, a driver.Address) int { return cmp.Compare(e.at, a) })
}

// owns reports whether memory lies in an allocation.
func (d *core) owns(a driver.Address, bytes int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := d.find(a)
	if !ok {
		i--
	}
	return i >= 0 && a+driver.Address(bytes) <= d.ranges[i].at+driver.Address(d.ranges[i].bytes)
}

// collections is how often the garbage collector runs before an allocation is refused, and collectLimit how long
// each may take to free the first of what it finds.
const (
	collections  = 2
	collectLimit = 200 * time.Millisecond
)

// alloc returns zeroed memory. It panics with a *driver.OutOfMemoryError if there is too little, after
// the garbage collector has freed what nobody refers to.
func (s *scope) alloc(bytes int64, of use) driver.Address {
	a := s.allocRaw(bytes, of)
	if bytes > 0 {
		s.send(func(w *worker) error { return w.Fill(a, 0, bytes, w.stream) })
	}
	return a
}

// allocRaw is alloc of memory that is not zeroed.
func (s *scope) allocRaw(bytes int64, of use) driver.Address {
	s.rec.refuse("an allocation")
	if bytes == 0 {
		return 0
	}
	a, err := s.get(bytes, of)
	if err != nil {
		panic(err)
	}
	return a
}

// get is allocRaw with an error in place of a panic.
func (s *scope) get(bytes int64, of use) (driver.Address, error) {
	// A scope that is collected while it waits for others to be would never free what it gets then.
	defer runtime.KeepAlive(s)
	d, h := s.device, s.held
	for collected := 0; ; {
		a, err := d.tryAlloc(bytes, of)
		if err == nil {
			h.mu.Lock()
			h.list = append(h.list, a)
			h.mu.Unlock()
			return a, nil
		}
		short := (*driver.OutOfMemoryError)(nil)
		if !errors.As(err, &short) || !d.collect(&collected) {
			return 0, fmt.Errorf("%s: %w", d.name, err)
		}
	}
}

// collect waits until memory was freed, for which it runs the garbage collector. It returns false if that has been
// tried often enough.
func (d *core) collect(tries *int) bool {
	select {
	case <-d.freed: // perhaps enough
		return true
	default:
	}
	if *tries == collections {
		return false
	}
	*tries++
	runtime.GC()
	select {
	case <-d.freed:
	case <-time.After(collectLimit):
	}
	return true
}

// usedLocked returns the bytes that are allocated. The caller holds mu.
func (d *core) usedLocked() (sum int64) {
	for _, n := range d.used {
		sum += n
	}
	return sum
}

// tryAlloc allocates memory within the limit.
func (d *core) tryAlloc(bytes int64, of use) (a driver.Address, err error) {
	d.mu.Lock()
	if free := d.limit - d.usedLocked(); bytes > free {
		d.mu.Unlock()
		return 0, &driver.OutOfMemoryError{Kind: "device", Wanted: bytes, Free: free, Total: d.limit}
	}
	d.used[of] += bytes
	d.mu.Unlock()
	err = d.ctx.Do(func(driver.Device) (err error) {
		a, err = d.worker.Alloc(bytes)
		return err
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.used[of] -= bytes
		return 0, err
	}
	i, _ := d.find(a)
	d.ranges = slices.Insert(d.ranges, i, extent{a, bytes, of})
	return a, nil
}

// Reserve sets memory aside. What the set has allocated for itself counts in addition, since it stays when the stages
// that it was for, and the reservations of which included it, are gone. The error is a *driver.OutOfMemoryError.
func (d *core) Reserve(bytes int64) error {
	for tries := 0; ; {
		d.mu.Lock()
		own := d.used[setUse]
		free := max(0, d.limit-own-max(d.reserved, d.usedLocked()-own))
		possible := bytes <= d.limit-d.reserved // once what nobody refers to is freed
		if bytes <= free {
			d.reserved += bytes
		}
		d.mu.Unlock()
		switch {
		case bytes <= free:
			return nil
		case !possible || !d.collect(&tries):
			return fmt.Errorf("%s: %w", d.name,
				&driver.OutOfMemoryError{Kind: "device", Wanted: bytes, Free: free, Total: d.limit})
		}
	}
}

// Unreserve gives back memory that was set aside.
func (d *core) Unreserve(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reserved -= bytes
}

// workspace makes sure that the workspace has a size. It panics with a *driver.OutOfMemoryError if there is too little
// memory; the operation has changed nothing then. Operations take the workspace's place when they run, since it moves
// when it grows.
func (d *core) workspace(bytes int64) {
	d.workMu.Lock()
	defer d.workMu.Unlock()
	if bytes <= d.workBytes {
		return
	}
	s := d.newScope()
	a := s.alloc(bytes, setUse)
	d.do(func(w *worker) error {
		w.work = a
		return nil
	})
	d.workBytes, d.workScope = bytes, s // the one before is freed when nothing in the queue uses it
	d.workMade++
}

// Use returns the bytes that are allocated and those that may be.
func (d *core) Use() (used, limit int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usedLocked(), d.limit
}

// list makes a slice of n elements of memory of the device.
func list[E any](a driver.Address, n int) []E {
	if n == 0 {
		return []E{}
	}
	return unsafe.Slice((*E)(*(*unsafe.Pointer)(unsafe.Pointer(&a))), n)
}

// address returns the place of a buffer. It panics if the buffer is not memory of the device.
func address[E any](d *device, op string, x []E) driver.Address {
	if len(x) == 0 {
		return 0
	}
	a := driver.Address(uintptr(unsafe.Pointer(&x[0])))
	if !d.owns(a, int64(len(x))*int64(unsafe.Sizeof(x[0]))) {
		panic(fmt.Sprintf("%s: a buffer of %d elements is not memory of %s", op, len(x), d.name))
	}
	return a
}

// Scope returns memory with a lifetime of its own.
func (s *scope) Scope() kernel.Memory[float32] { return s.newScope() }

// Alloc returns a buffer of n zeros.
func (s *scope) Alloc(n int) kernel.Buffer[float32] {
	return list[float32](s.alloc(4*int64(n), workspaceUse), n)
}

// AllocBF16 returns n zeros of bfloat16.
func (s *scope) AllocBF16(n int) []uint16 { return list[uint16](s.alloc(2*int64(n), workspaceUse), n) }

// FromHost returns a buffer with the values of x. They count as weights.
func (s *scope) FromHost(x []float32) kernel.Buffer[float32] {
	b := kernel.Buffer[float32](list[float32](s.alloc(4*int64(len(x)), weightsUse), len(x)))
	s.Upload(b, x)
	return b
}

// Upload copies host values to a buffer.
func (s *scope) Upload(dst kernel.Buffer[float32], src []float32) {
	must("upload", "src", len(src), len(dst))
	a := address(s.device, "upload", dst)
	s.do(func(w *worker) error { return w.upload(a, bytesOf(src)) })
}

// Download copies a buffer to the host.
func (s *scope) Download(dst []float32, src kernel.Buffer[float32]) {
	must("download", "dst", len(dst), len(src))
	a := address(s.device, "download", src)
	s.do(func(w *worker) error { return w.download(bytesOf(dst), a) })
}

// Host returns a copy of a buffer's elements.
func (s *scope) Host(x kernel.Buffer[float32]) []float32 {
	out := make([]float32, len(x))
	s.Download(out, x)
	return out
}

// Copy copies a buffer to another.
func (s *scope) Copy(dst, src kernel.Buffer[float32]) {
	must("copy", "dst", len(dst), len(src))
	to, from := address(s.device, "copy", dst), address(s.device, "copy", src)
	if n := int64(4 * len(src)); n > 0 && to != from {
		s.send(func(w *worker) error { return w.Copy(to, from, n, w.stream) })
	}
}

// Clear sets a buffer to zeros.
func (s *scope) Clear(x kernel.Buffer[float32]) {
	a := address(s.device, "clear", x)
	if n := int64(4 * len(x)); n > 0 {
		s.send(func(w *worker) error { return w.Fill(a, 0, n, w.stream) })
	}
}

// NewKVPages returns n pages in one allocation.
func (s *scope) NewKVPages(n int, t kernel.KVType, elements, d int) []kernel.KVPage[float32] {
	pages := make([]kernel.KVPage[float32], n)
	bytes, scales := 4*elements, 0
	switch t {
	case kernel.KVF16:
		bytes = 2 * elements
	case kernel.KVQ8:
		bytes, scales = elements, 4*elements/d
	}
	// Every part begins at a multiple of 16 bytes, for wide loads.
	bytes16, scales16 := (bytes+15)&^15, (scales+15)&^15
	size := 2 * (bytes16 + scales16)
	at := s.alloc(int64(n)*int64(size), kvUse)
	for i := range pages {
		p, from := &pages[i], at+driver.Address(i*size)
		next := func(n int) driver.Address {
			a := from
			from += driver.Address(n)
			return a
		}
		if t == kernel.KVFull {
			p.Keys, p.Values = list[float32](next(bytes16), elements), list[float32](next(bytes16), elements)
			continue
		}
		p.KeyCodes, p.ValueCodes = list[byte](next(bytes16), bytes), list[byte](next(bytes16), bytes)
		if t == kernel.KVQ8 {
			p.KeyScales = list[float32](next(scales16), scales/4)
			p.ValueScales = list[float32](next(scales16), scales/4)
		}
	}
	return pages
}

// must panics with the operation's name unless a slice has the wanted length.
func must(op, name string, got, want int) {
	if got != want {
		panic(fmt.Sprintf("%s: %s has %d elements, want %d", op, name, got, want))
	}
}
