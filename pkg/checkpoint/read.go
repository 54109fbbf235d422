package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"path"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// pieceBytes is how many bytes of a tensor are in memory at once.
const pieceBytes = 1 << 20

// Checkpoint is a checkpoint whose manifest is read.
type Checkpoint struct {
	Manifest
	Digest [sha256.Size]byte // of checkpoint.json

	store *Store
	dir   string
	index map[[2]string][2]int // of file and tensor, by kind and name
}

func (s *Store) checkpoint(m *Manifest, text []byte) *Checkpoint {
	c := &Checkpoint{Manifest: *m, Digest: sha256.Sum256(text), store: s, dir: s.path(m.Step),
		index: map[[2]string][2]int{}}
	for i, f := range m.Files {
		for j, t := range f.Tensors {
			c.index[[2]string{f.Kind, t.Name}] = [2]int{i, j}
		}
	}
	return c
}

// Path returns the checkpoint's folder in the file system of its store.
func (c *Checkpoint) Path() string { return c.dir }

// Bytes returns the size of all files.
func (c *Checkpoint) Bytes() int64 {
	var n int64
	for _, f := range c.Files {
		n += f.Bytes
	}
	return n
}

// open opens a file and checks its size.
func (c *Checkpoint) open(f *File) (ReadFile, error) {
	r, err := c.store.fs.Open(path.Join(c.Path(), f.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damage(f.Name, "", 0, "the file is missing")
	}
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "open %s", f.Name)
	}
	size, err := r.Size()
	if err == nil && size != f.Bytes {
		err = damage(f.Name, "", min(size, f.Bytes), "the file has %d bytes, want %d", size, f.Bytes)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (c *Checkpoint) checkSizes() error {
	for i := range c.Files {
		r, err := c.open(&c.Files[i])
		if err != nil {
			return err
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Find returns a tensor and its file.
func (c *Checkpoint) Find(kind, name string) (*File, *Tensor, bool) {
	at, ok := c.index[[2]string{kind, name}]
	if !ok {
		return nil, nil, false
	}
	return &c.Files[at[0]], &c.Files[at[0]].Tensors[at[1]], true
}

// Read reads a tensor from the beginning to the end and calls piece with up to 1 MiB at a time. When all is
// read it verifies the digest: if Read returns an error, the pieces are not to be used.
func (c *Checkpoint) Read(kind, name string, piece func([]byte) error) error {
	r, err := c.OpenTensor(kind, name)
	if err != nil {
		return err
	}
	return errors.Join(r.verified(piece), r.Close())
}

// Reader reads parts of a tensor, which it does not verify.
type Reader struct {
	*io.SectionReader
	Tensor *Tensor
	file   *File
	open   ReadFile
}

// OpenTensor opens a tensor for reading.
func (c *Checkpoint) OpenTensor(kind, name string) (*Reader, error) {
	f, t, ok := c.Find(kind, name)
	if !ok {
		return nil, fault.New(fault.NotFound, "read checkpoint %d: it has no %s %q", c.Step, kind, name)
	}
	r, err := c.open(f)
	if err != nil {
		return nil, err
	}
	return &Reader{io.NewSectionReader(r, t.Offset, t.Bytes()), t, f, r}, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.open.Close() }

func (r *Reader) verified(piece func([]byte) error) error {
	sum := sha256.New()
	err := pieces(r.SectionReader, r.Tensor.Bytes(), func(p []byte) error {
		sum.Write(p)
		return piece(p)
	})
	if err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "read %s of %s", r.Tensor.Name, r.file.Name)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != r.Tensor.SHA256 {
		return damage(r.file.Name, r.file.Kind+" "+r.Tensor.Name, r.Tensor.Offset,
			"the digest of its %d bytes is %s, want %s", r.Tensor.Bytes(), got, r.Tensor.SHA256)
	}
	return nil
}

// pieces reads n bytes in pieces.
func pieces(r io.ReaderAt, n int64, piece func([]byte) error) error {
	buf := make([]byte, min(n, pieceBytes))
	for at := int64(0); at < n; {
		p := buf[:min(int64(len(buf)), n-at)]
		if got, err := r.ReadAt(p, at); got < len(p) {
			return err
		}
		if err := piece(p); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}

// Verify reads all files and returns every DamageError that it finds, and at most one other error.
func (c *Checkpoint) Verify() ([]*DamageError, error) {
	var out []*DamageError
	for i := range c.Files {
		err := c.verify(&c.Files[i], func(d *DamageError) { out = append(out, d) })
		var d *DamageError
		if errors.As(err, &d) {
			out = append(out, d)
		} else if err != nil {
			return out, err
		}
	}
	return out, nil
}

// verify compares a file with its digests, and its header with the manifest.
func (c *Checkpoint) verify(f *File, found func(*DamageError)) (err error) {
	r, err := c.open(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	whole, damaged := sha256.New(), false
	wrong := func(tensor string, offset int64, format string, args ...any) {
		damaged = true
		found(damage(f.Name, tensor, offset, format, args...))
	}
	read := func(from, to int64, also hash.Hash) error {
		return pieces(io.NewSectionReader(r, from, to-from), to-from, func(p []byte) error {
			whole.Write(p)
			also.Write(p)
			return nil
		})
	}
	end := f.Bytes
	if len(f.Tensors) > 0 {
		end = f.Tensors[0].Offset
	}
	header, err := f.header(c.Step)
	if err != nil {
		return err
	}
	have := make([]byte, end)
	if _, err := r.ReadAt(have, 0); err != nil && !errors.Is(err, io.EOF) {
		return fault.Wrap(fault.CodeOf(err), err, "read %s", f.Name)
	}
	whole.Write(have)
	if at := firstDifference(have, header); at >= 0 {
		wrong("", at, "the header differs from what the manifest says")
	}
	for i := range f.Tensors {
		t := &f.Tensors[i]
		sum := sha256.New()
		if err := read(t.Offset, t.Offset+t.Bytes(), sum); err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "read %s", f.Name)
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != t.SHA256 {
			wrong(f.Kind+" "+t.Name, t.Offset, "the digest of its %d bytes is %s, want %s", t.Bytes(), got, t.SHA256)
		}
	}
	if got := hex.EncodeToString(whole.Sum(nil)); got != f.SHA256 && !damaged {
		wrong("", 0, "the digest of the file is %s, want %s", got, f.SHA256)
	}
	return nil
}

// header returns the header that a file has. It is a function of the manifest.
func (f *File) header(step uint64) ([]byte, error) {
	infos := make([]weights.Info, len(f.Tensors))
	for i, t := range f.Tensors {
		infos[i] = weights.Info{Name: t.Name, DType: tensor.F32, Shape: t.Shape, Bytes: t.Bytes()}
	}
	layout, err := weights.LayoutSafetensors(infos, metadata(step, f.Kind))
	return layout.Header, err
}

func metadata(step uint64, kind string) map[string]string {
	return map[string]string{"format": "pt", "kind": kind, "step": strconv.FormatUint(step, 10)}
}

// firstDifference returns the first index at which two slices differ, or -1.
func firstDifference(a, b []byte) int64 {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return int64(i)
		}
	}
	if len(a) < len(b) {
		return int64(len(a))
	}
	return -1
}
