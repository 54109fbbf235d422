package cpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapHuge maps n zeroed bytes, aligned to a huge page, and requests huge pages for them.
func mapHuge(n int) (data []byte, free func()) {
	b, err := unix.Mmap(-1, 0, n+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil { // out of address space: let the runtime say so
		return make([]byte, n), func() {}
	}
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (hugePage - 1)
	data = b[skip : skip+n : skip+n]
	_ = unix.Madvise(data, unix.MADV_HUGEPAGE) // a hint: small pages work, too
	return data, func() { _ = unix.Munmap(b) }
}
