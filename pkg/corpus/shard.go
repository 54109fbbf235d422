package corpus

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/lamina-mesh/lamina/internal/mmap"
)

// Shard is one file of token data. It is safe for concurrent use until Close.
type Shard struct {
	file   string
	h      *header
	data   []byte
	mapped bool
}

// OpenShard maps a shard and checks its header and the ends of its documents. Verify also checks the digest.
func OpenShard(path string) (*Shard, error) {
	// Check before opening: opening a pipe waits for its other end, and a link may lead out of the folder.
	if stat, err := os.Lstat(path); err != nil {
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
	if int64(int(size)) != size || size < headerLen {
		return nil, &FormatError{File: path, Offset: 0, Field: "file", Msg: fmt.Sprintf("a size of %d bytes", size)}
	}
	data, mapped, err := mmap.Open(f, int(size))
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	s, err := ParseShard(path, data)
	if err != nil {
		if mapped {
			err = errors.Join(err, mmap.Close(data))
		}
		return nil, err
	}
	s.mapped = mapped
	return s, nil
}

// ParseShard reads a shard from memory. The name is for errors.
func ParseShard(name string, data []byte) (*Shard, error) {
	h, err := parseHeader(name, data[:min(len(data), headerLen)], int64(len(data)))
	if err != nil {
		return nil, err
	}
	s := &Shard{file: name, h: h, data: data}
	last := uint64(0)
	for i := range s.Documents() {
		end := binary.LittleEndian.Uint64(data[h.documentsAt()+8*i:])
		if end <= last || end > h.tokens {
			return nil, &FormatError{File: name, Offset: h.documentsAt() + 8*i, Field: "documents",
				Msg: fmt.Sprintf("document %d ends at token %d of %d, the one before at %d", i, end, h.tokens, last)}
		}
		last = end
	}
	if last != h.tokens {
		return nil, &FormatError{File: name, Offset: h.documentsAt(), Field: "documents",
			Msg: fmt.Sprintf("the last document ends at token %d of %d", last, h.tokens)}
	}
	return s, nil
}

// Tokens is the number of tokens.
func (s *Shard) Tokens() int64 { return int64(s.h.tokens) }

// Documents is the number of documents.
func (s *Shard) Documents() int64 { return int64(s.h.documents) }

// TextBytes is the size of the documents' text, in bytes.
func (s *Shard) TextBytes() int64 { return int64(s.h.textBytes) }

// Vocabulary is the SHA-256 of the vocabulary.
func (s *Shard) Vocabulary() [32]byte { return s.h.vocabulary }

// End returns the token after the last one of document i, with 0 for document -1.
func (s *Shard) End(i int64) int64 {
	if i < 0 {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(s.data[s.h.documentsAt()+8*i:]))
}

// Read appends tokens [from, to) to dst. An id outside the vocabulary is an error.
func (s *Shard) Read(dst []int32, from, to int64) ([]int32, error) {
	if from < 0 || from > to || to > s.Tokens() {
		return dst, fmt.Errorf("read %s: tokens %d to %d of %d", s.file, from, to, s.Tokens())
	}
	if s.data == nil {
		return dst, fmt.Errorf("read %s: %w", s.file, fs.ErrClosed)
	}
	le, width := binary.LittleEndian, int64(s.h.bits/8)
	for at := headerLen + from*width; at < headerLen+to*width; at += width {
		var id uint32
		if width == 2 {
			id = uint32(le.Uint16(s.data[at:]))
		} else {
			id = le.Uint32(s.data[at:])
		}
		if id >= s.h.vocab {
			return dst, &FormatError{File: s.file, Offset: at, Field: "tokens",
				Msg: fmt.Sprintf("id %d is outside the vocabulary of %d", id, s.h.vocab)}
		}
		dst = append(dst, int32(id))
	}
	return dst, nil
}

// Verify reads the whole shard and checks its digest, its ids and that documents end with the end id.
func (s *Shard) Verify() error {
	if s.data == nil {
		return fmt.Errorf("verify %s: %w", s.file, fs.ErrClosed)
	}
	if sha256.Sum256(s.data[headerLen:]) != s.h.body {
		return &FormatError{File: s.file, Offset: 80, Field: "digest", Msg: "it does not match the contents"}
	}
	buffer := make([]int32, 0, 1<<16)
	for at := int64(0); at < s.Tokens(); at += 1 << 16 {
		if _, err := s.Read(buffer[:0], at, min(at+1<<16, s.Tokens())); err != nil {
			return err
		}
	}
	for i := range s.Documents() {
		ids, err := s.Read(buffer[:0], s.End(i)-1, s.End(i))
		if err != nil {
			return err
		}
		if ids[0] != int32(s.h.end) {
			return &FormatError{File: s.file, Offset: headerLen + (s.End(i)-1)*int64(s.h.bits/8), Field: "tokens",
				Msg: fmt.Sprintf("document %d ends with id %d, want %d", i, ids[0], s.h.end)}
		}
	}
	return nil
}

// Close ends the mapping.
func (s *Shard) Close() error {
	data := s.data
	s.data = nil
	if !s.mapped || data == nil {
		return nil
	}
	return mmap.Close(data)
}
