//go:build !unix

package weights

import (
	"io"
	"os"
)

func mapOpen(f *os.File, size int) (*mapping, error) {
	bytes := make([]byte, size)
	if _, err := io.ReadFull(f, bytes); err != nil {
		return nil, err
	}
	return &mapping{bytes: bytes}, nil
}

func forget([]byte) {}

func unmap([]byte) error { return nil }
