//go:build !unix

package weights

import "os"

// mapping is a file read into memory, where mapping is not to be had.
type mapping struct{ bytes []byte }

func mapFile(path string) (*mapping, error) {
	bytes, err := os.ReadFile(path)
	return &mapping{bytes}, err
}

func (m *mapping) close() error {
	m.bytes = nil
	return nil
}
