package corpus

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
)

// partial ends the name of a file that is not complete.
const partial = ".partial"

// shardWriter writes a shard. The ends of its documents stay in memory until finish.
type shardWriter struct {
	f    *os.File
	path string
	w    *bufio.Writer
	hash hash.Hash
	h    header
	ends []uint64
	word [4]byte
}

func newShardWriter(path string, h header) (*shardWriter, error) {
	f, err := os.Create(path + partial)
	if err != nil {
		return nil, err
	}
	s := &shardWriter{f: f, path: path, hash: sha256.New(), h: h}
	s.w = bufio.NewWriterSize(io.MultiWriter(f, s.hash), 1<<18)
	if _, err := f.Write(make([]byte, headerLen)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// add adds tokens to the current document.
func (s *shardWriter) add(ids ...uint32) error {
	width := s.h.bits / 8
	for _, id := range ids {
		binary.LittleEndian.PutUint32(s.word[:], id)
		if _, err := s.w.Write(s.word[:width]); err != nil {
			return err
		}
	}
	s.h.tokens += uint64(len(ids))
	return nil
}

// endDocument ends the current document, of whose text the size is given.
func (s *shardWriter) endDocument(textBytes int64) error {
	if err := s.add(s.h.end); err != nil {
		return err
	}
	s.h.documents++
	s.h.textBytes += uint64(textBytes)
	s.ends = append(s.ends, s.h.tokens)
	return nil
}

// finish completes the file and gives it its name.
func (s *shardWriter) finish() (ShardInfo, error) {
	err := s.complete()
	if err = errors.Join(err, s.f.Close()); err != nil {
		return ShardInfo{}, err
	}
	if err := os.Rename(s.path+partial, s.path); err != nil {
		return ShardInfo{}, err
	}
	return ShardInfo{File: filepath.Base(s.path), Tokens: int64(s.h.tokens), Documents: int64(s.h.documents),
		TextBytes: int64(s.h.textBytes), SHA256: hex.EncodeToString(s.h.body[:])}, nil
}

func (s *shardWriter) complete() error {
	fill := s.h.documentsAt() - headerLen - int64(s.h.tokens)*int64(s.h.bits/8)
	if _, err := s.w.Write(make([]byte, fill)); err != nil {
		return err
	}
	for _, end := range s.ends {
		if err := binary.Write(s.w, binary.LittleEndian, end); err != nil {
			return err
		}
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	s.hash.Sum(s.h.body[:0])
	if _, err := s.f.WriteAt(s.h.encode(), 0); err != nil {
		return err
	}
	return s.f.Sync()
}

// abandon closes an incomplete file and leaves it for the next build to overwrite.
func (s *shardWriter) abandon() error {
	if s == nil {
		return nil
	}
	return s.f.Close()
}
