//go:build unix

package weights

import (
	"os"

	"golang.org/x/sys/unix"
)

func mapOpen(f *os.File, size int) (*mapping, error) {
	bytes, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &mapping{bytes: bytes, mapped: true}, nil
}

// forget drops the pages of a mapping. Failure is harmless: the pages stay in memory.
func forget(bytes []byte) { _ = unix.Madvise(bytes, unix.MADV_DONTNEED) }

func unmap(bytes []byte) error { return unix.Munmap(bytes) }
