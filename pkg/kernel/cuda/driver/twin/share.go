package twin

import (
	"crypto/rand"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Each Driver stands for a process. What their devices have exported is known to all drivers, as it is to a host.
var host = struct {
	mu      sync.Mutex
	exports map[driver.MemoryHandle]*export
}{exports: map[driver.MemoryHandle]*export{}}

// export is an allocation that other drivers can open.
type export struct {
	by     *Driver
	handle driver.MemoryHandle
	memory []byte
	freed  bool // guarded by host.mu
}

// imported is an export that is open.
type imported struct {
	*export
	opened int
}

// Export makes an allocation known to the drivers of the same container.
func (d *Device) Export(a driver.Address) (driver.MemoryHandle, error) {
	n, ok := d.memory[a]
	switch {
	case d.failed != nil:
		return driver.MemoryHandle{}, d.failed
	case !ok:
		return driver.MemoryHandle{}, &driver.ShareError{Err: fail("cuIpcGetMemHandle", "CUDA_ERROR_INVALID_VALUE",
			"no allocation begins at %#x", uint64(a))}
	}
	if e := d.exports[a]; e != nil {
		return e.handle, nil
	}
	memory, err := d.machine.Bytes(uint64(a), n)
	if err != nil {
		return driver.MemoryHandle{}, err
	}
	e := &export{by: d.driver, memory: memory}
	_, _ = rand.Read(e.handle[:]) // it never fails
	d.exports[a] = e
	host.mu.Lock()
	defer host.mu.Unlock()
	host.exports[e.handle] = e
	return e.handle, nil
}

// Import opens an allocation of another driver of the same container. It has the address that it has there.
func (d *Device) Import(h driver.MemoryHandle) (driver.Address, int64, error) {
	if d.failed != nil {
		return 0, 0, d.failed
	}
	host.mu.Lock()
	e := host.exports[h]
	host.mu.Unlock()
	switch {
	case e == nil || e.by.cfg.Container != d.driver.cfg.Container:
		return 0, 0, &driver.ShareError{Err: fail("cuIpcOpenMemHandle", "CUDA_ERROR_INVALID_VALUE", "unknown handle")}
	case e.by == d.driver:
		return 0, 0, &driver.ShareError{Err: fail("cuIpcOpenMemHandle", "CUDA_ERROR_INVALID_CONTEXT",
			"the memory is of this process")}
	}
	a := addressOf(e.memory)
	if d.imports[a] == nil {
		d.imports[a] = &imported{export: e}
	}
	d.imports[a].opened++
	return a, int64(len(e.memory)), nil
}

// FreeImport closes an allocation of another driver.
func (d *Device) FreeImport(a driver.Address) error {
	i := d.imports[a]
	if i == nil {
		return &driver.ShareError{Err: fail("cuIpcCloseMemHandle", "CUDA_ERROR_INVALID_VALUE", "nothing open is at %#x",
			uint64(a))}
	}
	if i.opened--; i.opened == 0 {
		delete(d.imports, a)
	}
	return d.failed
}

// readable returns memory that copies may read: of this device, or of another driver.
func (d *Device) readable(a driver.Address, n int64) ([]byte, error) {
	for from, i := range d.imports {
		if at := int64(a) - int64(from); at >= 0 && n <= int64(len(i.memory))-at {
			host.mu.Lock()
			freed := i.freed
			host.mu.Unlock()
			if freed {
				return nil, fail("cuStreamQuery", "CUDA_ERROR_ILLEGAL_ADDRESS",
					"the process that exported %#x has freed it", uint64(a))
			}
			return i.memory[at:][:n], nil
		}
	}
	return d.machine.Bytes(uint64(a), n)
}

// unexport makes an allocation unknown that is freed now.
func (d *Device) unexport(a driver.Address) {
	e := d.exports[a]
	if e == nil {
		return
	}
	delete(d.exports, a)
	host.mu.Lock()
	defer host.mu.Unlock()
	e.freed = true
	delete(host.exports, e.handle)
}

// Imports returns the number of allocations of other drivers that are open.
func (d *Device) Imports() int { return len(d.imports) }
