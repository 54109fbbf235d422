//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// lazyPeer is the flag of cuIpcOpenMemHandle that lets this device read the one that the memory is on.
const lazyPeer = 1

// Export returns a handle of an allocation.
func (d *Device) Export(a driver.Address) (h driver.MemoryHandle, err error) {
	err = d.call("cuIpcGetMemHandle", uintptr(unsafe.Pointer(&h)), uintptr(a))
	return h, unshared(err)
}

// Import opens an allocation of another process.
func (d *Device) Import(h driver.MemoryHandle) (driver.Address, int64, error) {
	var a, base driver.Address
	var size uint64
	if err := d.openHandle(&a, &h); err != nil {
		return 0, 0, unshared(err)
	}
	err := d.call("cuMemGetAddressRange_v2", uintptr(unsafe.Pointer(&base)), uintptr(unsafe.Pointer(&size)), uintptr(a))
	if err == nil && base != a {
		err = fmt.Errorf("the memory at %#x begins at %#x", uint64(a), uint64(base))
	}
	if err != nil {
		return 0, 0, errors.Join(unshared(err), d.FreeImport(a))
	}
	return a, int64(size), nil
}

// FreeImport closes an allocation of another process.
func (d *Device) FreeImport(a driver.Address) error {
	return unshared(d.call("cuIpcCloseMemHandle", uintptr(a)))
}

// unshared is the error of a call that shares memory.
func unshared(err error) error {
	if err == nil {
		return nil
	}
	return &driver.ShareError{Err: err}
}
