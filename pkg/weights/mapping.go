package weights

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/lamina-mesh/lamina/internal/mmap"
)

// mapping holds a file's bytes.
type mapping struct {
	bytes  []byte
	mapped bool // by the operating system, so that it must be unmapped
	closed bool
}

// mapFile maps a regular file, or reads it on systems without memory mapping.
func mapFile(path string) (*mapping, error) {
	// Check before opening: opening a pipe waits for its other end.
	if stat, err := os.Stat(path); err != nil {
		return nil, err
	} else if !stat.Mode().IsRegular() {
		return nil, &FormatError{File: path, Offset: -1, Field: "file", Msg: "want a regular file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := stat.Size()
	switch {
	case int64(int(size)) != size:
		return nil, &FormatError{File: path, Offset: -1, Field: "file", Unsupported: true,
			Msg: fmt.Sprintf("%d bytes do not fit in the address space", size)}
	case size == 0:
		return &mapping{}, nil
	}
	bytes, mapped, err := mmap.Open(f, int(size))
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &mapping{bytes: bytes, mapped: mapped}, nil
}

// view returns bytes [from, from+n).
func (m *mapping) view(file string, from, n int64) ([]byte, error) {
	if m.closed {
		return nil, fmt.Errorf("read %s: %w", file, fs.ErrClosed)
	}
	return m.bytes[from : from+n : from+n], nil
}

func (m *mapping) close() error {
	if m.closed {
		return nil
	}
	m.closed = true
	bytes := m.bytes
	m.bytes = nil
	if !m.mapped {
		return nil
	}
	return mmap.Close(bytes)
}

func (m *mapping) relax() {
	if m.mapped && !m.closed {
		mmap.Forget(m.bytes)
	}
}

// closeAll closes several mappings.
func closeAll(mappings []*mapping) error {
	var errs []error
	for _, m := range mappings {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}
