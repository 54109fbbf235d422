package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// The parts of a partial file.
const (
	dataName = "data"
	logName  = "log"
)

// The log of a partial file is a head (magic, size of the file, size of a chunk) and a record (index, digest) for each
// chunk, in the order in which they came.
const (
	logMagic  = "LMNPART1"
	logHead   = len(logMagic) + 16
	logRecord = 4 + len(Sum{})
	maxOrigin = 64
)

// Want describes a file that is to be fetched.
type Want struct {
	Path string // in errors
	Size int64
	// SHA256 is the file's digest, or nil if it is not known. Origin then tells it from others: an address with what
	// says that its content has not changed.
	SHA256 *Sum
	Origin string
	// ChunkSize is the size of chunks; 0 for that of ChunkSize. Sums are their digests, or nil if they are not known.
	ChunkSize int64
	Sums      Sums
	// Check reads a file that is there already, and has the chunks fetched again that are damaged.
	Check bool
}

// Partial is a file that is being fetched. Only one is open for a file, in all processes, unless it is suspended. Its
// methods may be called concurrently, except Finish, Suspend, Resume and Close.
type Partial struct {
	s    *Store
	want Want
	key  string
	lock *held    // nil while it is suspended
	use  *held    // keeps what is there from being removed
	data *os.File // nil if the file was whole at the start

	mu   sync.Mutex
	log  *os.File
	have []bool
	sums Sums
	left int // chunks that are missing

	file File // of a whole file
}

// Begin opens a file for fetching. It waits while another one fetches the same file. Close ends it.
func (s *Store) Begin(ctx context.Context, w Want) (*Partial, error) {
	if w.ChunkSize == 0 {
		w.ChunkSize = ChunkSize(w.Size)
	}
	if w.Size < 0 || w.Size > MaxFile || !chunkSizeFits(w.ChunkSize, w.Size) {
		return nil, fault.Field(
			"size",
			"store %s: want at most %d bytes, got %d in chunks of %d",
			w.Path,
			int64(MaxFile),
			w.Size,
			w.ChunkSize,
		)
	}
	if w.Sums != nil && len(w.Sums) != chunksOf(w.Size, w.ChunkSize) {
		return nil, damage(w.Path, -1, "want the digests of %d chunks, got %d", chunksOf(w.Size, w.ChunkSize),
			len(w.Sums))
	}
	if w.SHA256 == nil && w.Origin == "" {
		return nil, fault.Field("origin", "store %s: name its digest or its origin", w.Path)
	}
	for {
		key, known := s.keyOf(w)
		lock, err := s.lockFile(ctx, "locks/"+key, false)
		if err != nil {
			return nil, err
		}
		// Whoever held the lock may have found out the digest.
		if now, _ := s.keyOf(w); now != key {
			if err := lock.release(); err != nil {
				return nil, err
			}
			continue
		}
		p := &Partial{s: s, want: w, key: key, lock: lock}
		p.want.SHA256 = known
		if p.use, err = s.lockFile(ctx, "uses/"+key, true); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		if err := p.open(ctx); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		return p, nil
	}
}

// Key returns what the store calls a file, as far as it knows now. Whoever opens several files does so in the order of
// their keys, so that no two wait for each other.
func (s *Store) Key(w Want) string {
	key, _ := s.keyOf(w)
	return key
}

// keyOf returns the key of a file, and its digest if it is known.
func (s *Store) keyOf(w Want) (string, *Sum) {
	if w.SHA256 == nil {
		text, err := s.read("origins/"+originKey(w), maxOrigin)
		if err != nil {
			return originKey(w), nil
		}
		sum, err := ParseSum(string(text))
		if err != nil {
			return originKey(w), nil
		}
		w.SHA256 = &sum
	}
	return digestKey(*w.SHA256), w.SHA256
}

func digestKey(sum Sum) string { return "sha256-" + sum.String() }

func originKey(w Want) string {
	return "origin-" + SumOf([]byte(fmt.Sprintf("%d %s", w.Size, w.Origin))).String()
}

// open finds the whole file, or opens the partial one and checks what it has.
func (p *Partial) open(ctx context.Context) error {
	if p.want.SHA256 != nil {
		whole, err := p.s.whole(*p.want.SHA256, p.want.Size)
		if err == nil && p.want.Check {
			whole, err = p.s.mend(ctx, whole, p.want.Path)
		}
		if err == nil {
			p.file = whole
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && fault.CodeOf(err) != fault.DataLoss {
			return err
		}
	}
	dir := "partial/" + p.key
	err := p.s.root.MkdirAll(dir, 0o755)
	if err == nil {
		p.data, err = p.s.root.OpenFile(dir+"/"+dataName, os.O_RDWR|os.O_CREATE, 0o644)
	}
	if err == nil {
		p.log, err = p.s.root.OpenFile(dir+"/"+logName, os.O_RDWR|os.O_CREATE, 0o644)
	}
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, err, "store %s", p.want.Path)
	}
	p.left = chunksOf(p.want.Size, p.want.ChunkSize)
	p.have, p.sums = make([]bool, p.left), make(Sums, p.left)
	if err := p.data.Truncate(p.want.Size); err != nil {
		return fault.Wrap(fault.FailedPrecondition, err, "store %s", p.want.Path)
	}
	return p.replay(ctx)
}

// shape returns the file without its digests.
func (p *Partial) shape() File {
	return File{Path: p.want.Path, Size: p.want.Size, ChunkSize: p.want.ChunkSize}
}

// replay reads the log and keeps the chunks whose data have their digests.
func (p *Partial) replay(ctx context.Context) error {
	head := appendHead(nil, p.want.Size, p.want.ChunkSize)
	text, err := io.ReadAll(io.LimitReader(p.log, int64(logHead+4*MaxChunks*logRecord)))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "continue %s", p.want.Path)
	}
	if len(text) < logHead || string(text[:logHead]) != string(head) {
		return p.reset()
	}
	if err := p.take(ctx, text[logHead:]); err != nil {
		return err
	}
	end := int64(logHead + (len(text)-logHead)/logRecord*logRecord)
	err = p.log.Truncate(end)
	if err == nil {
		_, err = p.log.Seek(end, io.SeekStart)
	}
	return err
}

// take reads records of the log.
func (p *Partial) take(ctx context.Context, records []byte) error {
	records = records[:len(records)/logRecord*logRecord] // the last one may be cut off
	buf := make([]byte, min(p.want.ChunkSize, max(1, p.want.Size)))
	for ; len(records) > 0; records = records[logRecord:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		i, sum := binary.LittleEndian.Uint32(records), Sum(records[4:])
		if int64(i) >= int64(len(p.have)) || p.have[i] || p.want.Sums != nil && p.want.Sums[i] != sum {
			continue
		}
		b := buf[:p.shape().ChunkLen(int(i))]
		if _, err := p.data.ReadAt(b, int64(i)*p.want.ChunkSize); err != nil || SumOf(b) != sum {
			continue // it is fetched again
		}
		p.have[i], p.sums[i] = true, sum
		p.left--
	}
	return nil
}

func appendHead(b []byte, size, chunk int64) []byte {
	b = append(b, logMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	return binary.LittleEndian.AppendUint64(b, uint64(chunk))
}

func appendRecord(b []byte, i int, sum Sum) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(i)), sum[:]...)
}

// reset forgets all chunks.
func (p *Partial) reset() error {
	clear(p.have)
	p.left = len(p.have)
	err := p.log.Truncate(0)
	if err == nil {
		_, err = p.log.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = p.log.Write(appendHead(nil, p.want.Size, p.want.ChunkSize))
	}
	return err
}

// loggedBytes returns the bytes of a partial file, given the size of its log.
func (s *Store) loggedBytes(key string, size int64) int64 {
	text, err := s.read(filepath.Join("partial", key, logName), size)
	if err != nil || len(text) < logHead || string(text[:len(logMagic)]) != logMagic {
		return 0
	}
	whole, chunk := binary.LittleEndian.Uint64(text[8:]), binary.LittleEndian.Uint64(text[16:])
	if whole > MaxFile || chunk > MaxChunk {
		return 0
	}
	return min(int64(whole), int64(len(text)-logHead)/int64(logRecord)*int64(chunk))
}

// Whole reports whether no chunk is missing.
func (p *Partial) Whole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left == 0
}

// Span is a run of chunks, [Lo, Hi).
type Span struct{ Lo, Hi int }

// Missing lists the chunks that are missing, in runs of at most a number of chunks.
func (p *Partial) Missing(most int) []Span {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Span
	for i, have := range p.have {
		switch n := len(out); {
		case have:
		case n > 0 && out[n-1].Hi == i && i-out[n-1].Lo < most:
			out[n-1].Hi++
		default:
			out = append(out, Span{i, i + 1})
		}
	}
	return out
}

// Have returns the bytes of the chunks that are there.
func (p *Partial) Have() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return p.want.Size
	}
	total := int64(0)
	for i, have := range p.have {
		if have {
			total += p.shape().ChunkLen(i)
		}
	}
	return total
}

// ChunkSize returns the size of a chunk, and ChunkLen that of chunk i, which may be the last.
func (p *Partial) ChunkSize() int64 { return p.want.ChunkSize }

// ChunkLen returns the number of bytes of chunk i.
func (p *Partial) ChunkLen(i int) int64 { return p.shape().ChunkLen(i) }

// WriteChunk stores a chunk, and reports whether it was missing. One that does not have its digest is a *DamageError,
// and is not stored.
func (p *Partial) WriteChunk(i int, data []byte) (fresh bool, err error) {
	if i < 0 || i >= len(p.have) || int64(len(data)) != p.shape().ChunkLen(i) {
		return false, damage(p.want.Path, i, "got %d bytes", len(data))
	}
	sum := SumOf(data)
	if p.want.Sums != nil && p.want.Sums[i] != sum {
		return false, damage(p.want.Path, i, "want sha256 %s, got %s", p.want.Sums[i], sum)
	}
	if _, err := p.data.WriteAt(data, int64(i)*p.want.ChunkSize); err != nil {
		return false, fault.Wrap(fault.Exhausted, err, "store %s", p.want.Path)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.log.Write(appendRecord(nil, i, sum)); err != nil {
		return false, fault.Wrap(fault.Exhausted, err, "store %s", p.want.Path)
	}
	fresh = !p.have[i]
	if fresh {
		p.have[i] = true
		p.left--
	}
	p.sums[i] = sum
	return fresh, nil
}

// Finish checks the whole file. If it is not that of its digest, all chunks are forgotten, unless each of them has a
// digest of its own. The error is then a *DamageError.
func (p *Partial) Finish(ctx context.Context) (File, error) {
	if p.data == nil {
		return p.file, nil
	}
	if p.left > 0 {
		return File{}, fault.New(fault.FailedPrecondition, "finish %s: %d chunks are missing", p.want.Path, p.left)
	}
	f, sums, err := Describe(ctx, io.NewSectionReader(p.data, 0, p.want.Size), p.want.Size, p.want.ChunkSize)
	if err != nil {
		return File{}, err
	}
	f.Path = p.want.Path
	for i, sum := range sums {
		if sum != p.sums[i] {
			p.have[i] = false
			p.left++
			return File{}, damage(p.want.Path, i, "it has changed on its way to the disk")
		}
	}
	if p.want.SHA256 != nil && f.SHA256 != *p.want.SHA256 {
		err := damage(p.want.Path, -1, "want sha256 %s, got %s", p.want.SHA256, f.SHA256)
		return File{}, errors.Join(err, p.reset())
	}
	p.file = f
	return f, errors.Join(p.data.Sync(), p.log.Sync())
}

// Close ends the fetch. What was stored of the file stays.
func (p *Partial) Close() error {
	var errs []error
	if p.data != nil {
		errs = append(errs, p.data.Close())
	}
	if p.log != nil {
		errs = append(errs, p.log.Close())
	}
	if p.lock != nil {
		_ = p.s.root.Remove("locks/" + p.key) // whoever waits for it makes a new one
		errs = append(errs, p.lock.release())
	}
	if p.use != nil {
		errs = append(errs, p.use.release(), p.forget())
	}
	return errors.Join(errs...)
}

// forget removes the lock of the uses of a file that is not partial any more, unless another one holds it.
func (p *Partial) forget() error {
	if _, err := p.s.root.Stat("partial/" + p.key); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	h, err := p.s.tryLock("uses/"+p.key, false)
	if h == nil || err != nil {
		return err
	}
	return errors.Join(p.s.root.Remove("uses/"+p.key), h.release())
}
