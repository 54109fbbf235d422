package cpu

import (
	"runtime"
	"sync"
)

// store allocates memory for packed matrices in chunks that the system may back with huge pages. A
// product streams through all weights of a model; with small pages, address translation costs a third
// of the speed.
type store struct {
	mu   sync.Mutex
	last *chunk
	used int
}

// chunk is a piece of memory that lives as long as the matrices in it.
type chunk struct{ data []byte }

// Sizes of chunks. A matrix larger than a chunk gets a chunk of its own.
const (
	hugePage   = 2 << 20
	chunkBytes = 16 << 20
	cacheLine  = 64
)

// take returns n zeroed bytes that begin at a cache line, and their owner.
func (s *store) take(n int) ([]byte, *chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || s.used+n > len(s.last.data) {
		c := newChunk(max(n, chunkBytes))
		if n > chunkBytes/2 {
			return c.data[:n:n], c
		}
		s.last, s.used = c, 0
	}
	at := s.used
	s.used += (n + cacheLine - 1) &^ (cacheLine - 1)
	return s.last.data[at : at+n : at+n], s.last
}

// newChunk maps memory that is released when the last matrix in it is collected.
func newChunk(n int) *chunk {
	data, free := mapHuge((n + hugePage - 1) &^ (hugePage - 1))
	c := &chunk{data}
	runtime.AddCleanup(c, func(free func()) { free() }, free)
	return c
}
