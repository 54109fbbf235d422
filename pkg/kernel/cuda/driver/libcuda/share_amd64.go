//go:build cuda && linux

package libcuda

import (
	"encoding/binary"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// openHandle calls cuIpcOpenMemHandle(&a, h, flags). The handle is a struct of 64 bytes by value, which goes to the
// stack, behind the six registers: the flags are in the second one.
func (d *Device) openHandle(a *driver.Address, h *driver.MemoryHandle) error {
	word := func(i int) uintptr { return uintptr(binary.LittleEndian.Uint64(h[8*i:])) }
	return d.call("cuIpcOpenMemHandle_v2", uintptr(unsafe.Pointer(a)), lazyPeer, 0, 0, 0, 0,
		word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
}
