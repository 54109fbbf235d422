package checkpoint

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Encoder writes the bytes of a file of a checkpoint to a stream. The caller writes the bytes of the
// tensors in the order of Tensors, in pieces of any size, and calls Close.
type Encoder struct {
	w       io.Writer
	file    File
	whole   hash.Hash
	one     hash.Hash // of the current tensor
	current int       // index of the current tensor
	left    int64     // bytes that the current tensor lacks
}

// NewEncoder writes the header of a file. Tensors need names and shapes.
func NewEncoder(w io.Writer, step uint64, name, kind string, tensors []Tensor) (*Encoder, error) {
	if !plain(name) || kind == "" || len(tensors) == 0 {
		return nil, fault.Field("name", "%q of %d %q tensors cannot be a file of a checkpoint", name, len(tensors), kind)
	}
	infos := make([]weights.Info, len(tensors))
	for i, t := range tensors {
		infos[i] = weights.Info{Name: t.Name, DType: tensor.F32, Shape: t.Shape, Bytes: t.Bytes()}
	}
	layout, err := weights.LayoutSafetensors(infos, metadata(step, kind))
	if err != nil {
		return nil, err
	}
	e := &Encoder{w: w, file: File{Name: name, Kind: kind}, whole: sha256.New(), one: sha256.New()}
	for _, i := range layout.Order {
		e.file.Tensors = append(e.file.Tensors, Tensor{Name: tensors[i].Name, Shape: tensors[i].Shape,
			Offset: layout.Offsets[i]})
	}
	e.left = e.file.Tensors[0].Bytes()
	if err := e.emit(layout.Header); err != nil {
		return nil, err
	}
	e.finish()
	return e, nil
}

// Tensors lists the tensors in the order of their bytes.
func (e *Encoder) Tensors() []Tensor { return e.file.Tensors }

func (e *Encoder) emit(p []byte) error {
	if _, err := e.w.Write(p); err != nil {
		return fault.Wrap(codeOf(err), err, "write %s", e.file.Name)
	}
	e.whole.Write(p)
	e.file.Bytes += int64(len(p))
	return nil
}

// finish closes the digests of tensors that are complete.
func (e *Encoder) finish() {
	for e.left == 0 && e.current < len(e.file.Tensors) {
		e.file.Tensors[e.current].SHA256 = hex.EncodeToString(e.one.Sum(nil))
		e.one.Reset()
		if e.current++; e.current < len(e.file.Tensors) {
			e.left = e.file.Tensors[e.current].Bytes()
		}
	}
}

// Write writes the next bytes of the tensors.
func (e *Encoder) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if e.current == len(e.file.Tensors) {
			return 0, fmt.Errorf("write %s: %d bytes more than its tensors have", e.file.Name, len(p))
		}
		n := int(min(int64(len(p)), e.left))
		if err := e.emit(p[:n]); err != nil {
			return 0, err
		}
		e.one.Write(p[:n])
		e.left -= int64(n)
		p = p[n:]
		e.finish()
	}
	return total, nil
}

// Close returns the description of the file.
func (e *Encoder) Close() (File, error) {
	if e.current < len(e.file.Tensors) {
		t := e.file.Tensors[e.current]
		return File{}, fmt.Errorf("write %s: %s lacks %d bytes", e.file.Name, t.Name, e.left)
	}
	e.file.SHA256 = hex.EncodeToString(e.whole.Sum(nil))
	return e.file, nil
}

// Pending is a file of a checkpoint that is being written under a temporary name. Either Commit or
// Abort has to be called.
type Pending struct {
	store    *Store
	dir      string
	name     string
	f        WriteFile
	buffered *bufio.Writer
	sum      hash.Hash
	bytes    int64
}

// Create creates a file in the folder of a checkpoint, which Begin has made.
func (s *Store) Create(step uint64, name string) (*Pending, error) {
	if !plain(name) {
		return nil, fault.Field("name", "%q cannot be a file of a checkpoint", name)
	}
	return s.create(s.work(step), name)
}

func (s *Store) create(dir, name string) (*Pending, error) {
	p := &Pending{store: s, dir: dir, name: name, sum: sha256.New()}
	f, err := s.fs.Create(p.temporary())
	if err != nil {
		return nil, fault.Wrap(codeOf(err), err, "create %s", name)
	}
	p.f, p.buffered = f, bufio.NewWriterSize(f, 64<<10)
	return p, nil
}

func (p *Pending) temporary() string { return path.Join(p.dir, "."+p.name+".tmp") }

// Write implements io.Writer.
func (p *Pending) Write(b []byte) (int, error) {
	n, err := p.buffered.Write(b)
	p.sum.Write(b[:n])
	p.bytes += int64(n)
	if err != nil {
		return n, fault.Wrap(codeOf(err), err, "write %s", p.name)
	}
	return n, nil
}

// Commit syncs the file and gives it its name. It returns the size and the SHA-256. If it fails, it
// removes the file.
func (p *Pending) Commit() (bytes int64, sha256 string, err error) {
	err = p.buffered.Flush()
	if err == nil {
		err = p.f.Sync()
	}
	if err = errors.Join(err, p.f.Close()); err == nil {
		err = p.store.fs.Rename(p.temporary(), path.Join(p.dir, p.name))
	}
	if err != nil {
		return 0, "", fault.Wrap(codeOf(err), errors.Join(err, p.store.fs.Remove(p.temporary())), "write %s", p.name)
	}
	return p.bytes, hex.EncodeToString(p.sum.Sum(nil)), nil
}

// Abort removes the file.
func (p *Pending) Abort() error {
	return errors.Join(p.f.Close(), p.store.fs.Remove(p.temporary()))
}
