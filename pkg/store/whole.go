package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// sumsHead is the number of bytes before the digests in a file of sums: the size of a chunk as a power of two.
const sumsHead = 1

// whole returns a whole file, without a path. The error is fs.ErrNotExist if there is none.
func (s *Store) whole(sum Sum, size int64) (File, error) {
	stat, err := s.root.Stat("files/" + sum.String())
	if err != nil {
		return File{}, err
	}
	if stat.Size() != size {
		return File{}, damage(sum.String(), -1, "want %d bytes, got %d", size, stat.Size())
	}
	f := File{Size: size, SHA256: sum}
	text, err := s.read("sums/"+sum.String(), sumsHead+MaxChunks*int64(len(Sum{})))
	if err != nil || len(text) < sumsHead || text[0] > 62 {
		return File{}, damage(sum.String(), -1, "the digests of its chunks are missing")
	}
	f.ChunkSize = 1 << text[0]
	if !chunkSizeFits(f.ChunkSize, size) || len(text) != sumsHead+f.NumChunks()*len(Sum{}) {
		return File{}, damage(sum.String(), -1, "the digests of its chunks are damaged")
	}
	f.Chunks = SumOf(text[sumsHead:])
	return f, nil
}

// putSums writes the digests of the chunks of a file.
func (s *Store) putSums(f File, sums Sums) error {
	power := byte(0)
	for int64(1)<<power < f.ChunkSize {
		power++
	}
	return s.write("sums/"+f.SHA256.String(), append([]byte{power}, sums.bytes()...))
}

// Reader reads chunks of a whole file.
type Reader struct {
	file File
	sums Sums
	f    *os.File
}

// OpenFile opens a whole file. The error is NotFound if the store does not have it, and a *DamageError if the digests
// of its chunks are not those of the manifest.
func (s *Store) OpenFile(file File) (*Reader, error) {
	text, err := s.read("sums/"+file.SHA256.String(), sumsHead+MaxChunks*int64(len(Sum{})))
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "open %s", file.Path)
	}
	sums, err := file.ParseSums(text[min(len(text), sumsHead):])
	if err != nil {
		return nil, err
	}
	f, err := s.root.Open("files/" + file.SHA256.String())
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "open %s", file.Path)
	}
	return &Reader{file, sums, f}, nil
}

// ReadChunk reads chunk i into buf, which has room for a whole chunk, and checks it. The error is a *DamageError if
// its bytes are not those of its digest.
func (r *Reader) ReadChunk(i int, buf []byte) ([]byte, error) {
	if i < 0 || i >= len(r.sums) {
		return nil, fault.Field("chunk", "read %s: it has %d chunks, and no chunk %d", r.file.Path, len(r.sums), i)
	}
	buf = buf[:r.file.ChunkLen(i)]
	if n, err := r.f.ReadAt(buf, int64(i)*r.file.ChunkSize); n < len(buf) {
		if errors.Is(err, io.EOF) {
			return nil, damage(r.file.Path, i, "the file ends early")
		}
		return nil, fault.Wrap(fault.Unavailable, err, "read %s", r.file.Path)
	}
	if sum := SumOf(buf); sum != r.sums[i] {
		return nil, damage(r.file.Path, i, "want sha256 %s, got %s", r.sums[i], sum)
	}
	return buf, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }

// Check reads a whole file and lists the chunks that are damaged.
func (s *Store) Check(ctx context.Context, file File) (bad []int, err error) {
	r, err := s.OpenFile(file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf := make([]byte, file.ChunkSize)
	for i := range r.sums {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		_, err := r.ReadChunk(i, buf)
		var damaged *DamageError
		switch {
		case errors.As(err, &damaged):
			bad = append(bad, i)
		case err != nil:
			return nil, err
		}
	}
	return bad, nil
}

// mend checks a whole file. If chunks of it are damaged, the file becomes partial again, without them, and the error
// is fs.ErrNotExist. The caller holds the lock of the file.
func (s *Store) mend(ctx context.Context, file File, path string) (File, error) {
	file.Path = path
	bad, err := s.Check(ctx, file)
	if err != nil || len(bad) == 0 {
		return file, err
	}
	r, err := s.OpenFile(file)
	if err != nil {
		return file, err
	}
	defer r.Close()
	broken := map[int]bool{}
	for _, i := range bad {
		broken[i] = true
	}
	log := appendHead(nil, file.Size, file.ChunkSize)
	for i, sum := range r.sums {
		if !broken[i] {
			log = appendRecord(log, i, sum)
		}
	}
	sum := file.SHA256.String()
	dir := "partial/" + digestKey(file.SHA256)
	err = s.locked(ctx, func() error {
		if err := s.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := s.write(dir+"/"+logName, log); err != nil {
			return err
		}
		// The folders of models have links to the same file, so they are repaired with it.
		if err := s.root.Chmod("files/"+sum, 0o644); err != nil {
			return err
		}
		return s.root.Rename("files/"+sum, dir+"/"+dataName)
	})
	if err != nil {
		return file, err
	}
	return file, fmt.Errorf("check %s: %d chunks are damaged: %w", path, len(bad), fs.ErrNotExist)
}
