package store

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of chunks. The size is a power of two.
const (
	MinChunk  = 4 << 10
	MaxChunk  = 16 << 20
	MaxChunks = 1 << 18 // of a file
)

const (
	firstChunk = 1 << 20 // the size of the chunks of most files
	fewChunks  = 1 << 16 // the number of chunks above which they are larger
)

// ChunkSize returns the size of the chunks of a file of a size: 1 MiB, and more for a file of more than 64 GiB.
func ChunkSize(size int64) int64 {
	n := int64(firstChunk)
	for n < MaxChunk && size > n*fewChunks {
		n *= 2
	}
	return n
}

func chunkSizeFits(chunk, size int64) bool {
	return chunk >= MinChunk && chunk <= MaxChunk && chunk&(chunk-1) == 0 && chunksOf(size, chunk) <= MaxChunks
}

func chunksOf(size, chunk int64) int { return int((size + chunk - 1) / chunk) }

// NumChunks returns the number of chunks of the file.
func (f File) NumChunks() int { return chunksOf(f.Size, f.ChunkSize) }

// ChunkLen returns the number of bytes of chunk i.
func (f File) ChunkLen(i int) int64 { return min(f.ChunkSize, f.Size-int64(i)*f.ChunkSize) }

// Sums are the digests of the chunks of a file.
type Sums []Sum

// Root returns the digest of the digests.
func (s Sums) Root() Sum {
	h := sha256.New()
	for i := range s {
		h.Write(s[i][:])
	}
	return Sum(h.Sum(nil))
}

// bytes returns the digests one after the other.
func (s Sums) bytes() []byte {
	out := make([]byte, 0, len(s)*len(Sum{}))
	for i := range s {
		out = append(out, s[i][:]...)
	}
	return out
}

// ParseSums parses the digests of a file's chunks and checks that they are those of the manifest.
func (f File) ParseSums(data []byte) (Sums, error) {
	if n := f.NumChunks(); len(data) != n*len(Sum{}) {
		return nil, damage(f.Path, -1, "want the digests of %d chunks, got %d bytes", n, len(data))
	}
	out := make(Sums, f.NumChunks())
	for i := range out {
		out[i] = Sum(data[i*len(Sum{}):])
	}
	if out.Root() != f.Chunks {
		return nil, damage(f.Path, -1, "the digests of its chunks are not those of the manifest")
	}
	return out, nil
}

// DamageError reports bytes that are not those of their digest.
type DamageError struct {
	File  string
	Chunk int // -1 if it is not known which one
	Msg   string
}

// Error names the file and the chunk.
func (e *DamageError) Error() string {
	if e.Chunk < 0 {
		return fmt.Sprintf("check %s: %s", e.File, e.Msg)
	}
	return fmt.Sprintf("check %s: chunk %d: %s", e.File, e.Chunk, e.Msg)
}

// FaultCode returns DataLoss.
func (e *DamageError) FaultCode() fault.Code { return fault.DataLoss }

func damage(file string, chunk int, format string, args ...any) error {
	return &DamageError{File: file, Chunk: chunk, Msg: fmt.Sprintf(format, args...)}
}

// Describe reads size bytes and returns their digest and those of their chunks.
func Describe(ctx context.Context, r io.Reader, size, chunk int64) (File, Sums, error) {
	f := File{Size: size, ChunkSize: chunk}
	whole, sums := sha256.New(), make(Sums, f.NumChunks())
	buf := make([]byte, min(chunk, max(size, 1)))
	for i := range sums {
		if err := ctx.Err(); err != nil {
			return f, nil, err
		}
		b := buf[:f.ChunkLen(i)]
		if _, err := io.ReadFull(r, b); err != nil {
			return f, nil, err
		}
		whole.Write(b)
		sums[i] = SumOf(b)
	}
	f.SHA256, f.Chunks = Sum(whole.Sum(nil)), sums.Root()
	return f, sums, nil
}
