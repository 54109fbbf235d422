//go:build cuda && linux

package libcuda

import (
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// openHandle calls cuIpcOpenMemHandle(&a, h, flags). The handle is a struct of 64 bytes by value, of which a register
// has the address.
func (d *Device) openHandle(a *driver.Address, h *driver.MemoryHandle) error {
	return d.call("cuIpcOpenMemHandle_v2", uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(h)), lazyPeer)
}
