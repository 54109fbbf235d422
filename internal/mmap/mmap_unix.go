//go:build unix

package mmap

import (
	"os"

	"golang.org/x/sys/unix"
)

// Open maps the first size bytes of f, at least one. On systems without memory mapping it reads them, and
// mapped is false.
func Open(f *os.File, size int) (bytes []byte, mapped bool, err error) {
	bytes, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	return bytes, err == nil, err
}

// Forget drops the pages of a mapping. Failure is harmless: the pages stay in memory.
func Forget(bytes []byte) { _ = unix.Madvise(bytes, unix.MADV_DONTNEED) }

// Close ends a mapping.
func Close(bytes []byte) error { return unix.Munmap(bytes) }
