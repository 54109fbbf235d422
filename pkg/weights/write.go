package weights

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Named is a tensor to be written.
type Named struct {
	Name  string
	DType tensor.DType
	Shape []int // outermost first
	Data  []byte
}

// WriteSafetensors writes tensors to path: sorted by name, data aligned to 8
// bytes, the same bytes for the same input. The file appears whole or not at all:
// it is written beside its place, synced and renamed, and the folder synced.
func WriteSafetensors(path string, tensors []Named, metadata map[string]string) error {
	return WriteFile(path, func(w io.Writer) error { return EncodeSafetensors(w, tensors, metadata) })
}

// EncodeSafetensors writes the format to a stream.
func EncodeSafetensors(w io.Writer, tensors []Named, metadata map[string]string) error {
	tensors = slices.SortedFunc(slices.Values(tensors), func(a, b Named) int { return cmp.Compare(a.Name, b.Name) })
	var header bytes.Buffer
	header.WriteByte('{')
	if len(metadata) > 0 {
		text, err := json.Marshal(metadata) // sorts the keys
		if err != nil {
			return err
		}
		fmt.Fprintf(&header, `"__metadata__":%s`, text)
	}
	var offset int64
	for i, t := range tensors {
		if err := checkNamed(t); err != nil {
			return err
		}
		if i > 0 && tensors[i-1].Name == t.Name {
			return fmt.Errorf("write safetensors: tensor %q occurs twice", t.Name)
		}
		if header.Len() > 1 {
			header.WriteByte(',')
		}
		name, err := json.Marshal(t.Name)
		if err != nil {
			return err
		}
		shape, err := json.Marshal(append([]int{}, t.Shape...))
		if err != nil {
			return err
		}
		end := offset + int64(len(t.Data))
		fmt.Fprintf(&header, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, name, t.DType, shape, offset, end)
		offset = end
	}
	header.WriteByte('}')
	for header.Len()%8 != 0 {
		header.WriteByte(' ')
	}
	if err := binary.Write(w, binary.LittleEndian, uint64(header.Len())); err != nil {
		return err
	}
	if _, err := w.Write(header.Bytes()); err != nil {
		return err
	}
	for _, t := range tensors {
		if _, err := w.Write(t.Data); err != nil {
			return err
		}
	}
	return nil
}

func checkNamed(t Named) error {
	if _, ok := safetensorsTypes[t.DType.String()]; !ok {
		return fmt.Errorf("write safetensors: tensor %q: the format has no type %v", t.Name, t.DType)
	}
	if want := (Info{Shape: t.Shape}).Elements() * t.DType.BlockBytes(); want != len(t.Data) {
		return fmt.Errorf("write safetensors: tensor %q: %d bytes for shape %v of %v", t.Name, len(t.Data), t.Shape, t.DType)
	}
	return nil
}

// WriteFile writes a file whole or not at all: a temporary file beside it, fsync,
// rename, fsync of the folder.
func WriteFile(path string, write func(w io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	if err := write(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
