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
	"math"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Named is a tensor to be written.
type Named struct {
	Name  string
	DType tensor.DType
	Shape []int // outermost first
	Data  []byte
}

// WriteSafetensors writes tensors to path. The header is sorted by name. The data are sorted by
// decreasing element size and then by name, which aligns every tensor to its element size. The same
// input gives the same bytes. The file is replaced atomically (see WriteFile).
func WriteSafetensors(path string, tensors []Named, metadata map[string]string) error {
	return WriteFile(path, func(w io.Writer) error { return EncodeSafetensors(w, tensors, metadata) })
}

// EncodeSafetensors writes the format to a stream, as WriteSafetensors describes.
func EncodeSafetensors(w io.Writer, tensors []Named, metadata map[string]string) error {
	streamed := make([]Streamed, len(tensors))
	for i, t := range tensors {
		streamed[i] = Streamed{
			Info: Info{t.Name, t.DType, t.Shape, int64(len(t.Data))},
			Write: func(w io.Writer) error {
				_, err := w.Write(t.Data)
				return err
			},
		}
	}
	return StreamSafetensors(w, streamed, metadata)
}

// Streamed is a tensor to be written piece by piece.
type Streamed struct {
	Info
	Write func(w io.Writer) error // writes Info.Bytes bytes
}

// StreamSafetensors writes the format to a stream, as WriteSafetensors describes. It calls Write of one
// tensor after the other, so they need not be in memory together.
func StreamSafetensors(w io.Writer, tensors []Streamed, metadata map[string]string) error {
	infos := make([]Info, len(tensors))
	for i, t := range tensors {
		infos[i] = t.Info
	}
	layout, err := LayoutSafetensors(infos, metadata)
	if err != nil {
		return err
	}
	if _, err := w.Write(layout.Header); err != nil {
		return err
	}
	for _, i := range layout.Order {
		n := &counter{w: w}
		if err := tensors[i].Write(n); err != nil {
			return err
		}
		if n.written != tensors[i].Bytes {
			return fmt.Errorf("write safetensors: tensor %q: want %d bytes, got %d", tensors[i].Name, tensors[i].Bytes,
				n.written)
		}
	}
	return nil
}

// counter counts the bytes that are written.
type counter struct {
	w       io.Writer
	written int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.written += int64(n)
	return n, err
}

// Layout says where the parts of a safetensors file are.
type Layout struct {
	Header  []byte  // the bytes before the tensors, with the length that begins them
	Order   []int   // indexes of the tensors, in the order of their bytes
	Offsets []int64 // where the bytes of each tensor begin in the file
}

// LayoutSafetensors returns the layout of a file, as WriteSafetensors describes it.
func LayoutSafetensors(tensors []Info, metadata map[string]string) (Layout, error) {
	names := make([]int, len(tensors)) // order of the names
	for i := range names {
		names[i] = i
	}
	slices.SortStableFunc(names, func(a, b int) int { return cmp.Compare(tensors[a].Name, tensors[b].Name) })
	sorted := make([]Info, len(tensors))
	for i, at := range names {
		sorted[i] = tensors[at]
	}
	if err := checkAll(sorted, metadata); err != nil {
		return Layout{}, err
	}
	out := Layout{Order: slices.Clone(names), Offsets: make([]int64, len(tensors))}
	slices.SortStableFunc(out.Order, func(a, b int) int {
		return cmp.Compare(tensors[b].DType.BlockBytes(), tensors[a].DType.BlockBytes())
	})
	end := int64(0)
	for _, i := range out.Order {
		out.Offsets[i] = end
		end += tensors[i].Bytes
	}
	starts := make([]int64, len(tensors))
	for i, at := range names {
		starts[i] = out.Offsets[at]
	}
	header, err := encodeHeader(sorted, starts, metadata)
	if err != nil {
		return Layout{}, err
	}
	out.Header = append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	for i := range out.Offsets {
		out.Offsets[i] += int64(len(out.Header))
	}
	return out, nil
}

// encodeHeader returns the JSON header, padded so that the data start at a
// multiple of 8.
func encodeHeader(tensors []Info, starts []int64, metadata map[string]string) ([]byte, error) {
	var header bytes.Buffer
	header.WriteByte('{')
	if len(metadata) > 0 {
		text, err := json.Marshal(metadata) // sorts the keys
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&header, `"__metadata__":%s`, text)
	}
	for i, t := range tensors {
		if header.Len() > 1 {
			header.WriteByte(',')
		}
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, err
		}
		shape, err := json.Marshal(append([]int{}, t.Shape...))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&header, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`,
			name, t.DType, shape, starts[i], starts[i]+t.Bytes)
	}
	header.WriteByte('}')
	for header.Len()%8 != 0 {
		header.WriteByte(' ')
	}
	if header.Len() > maxHeader {
		return nil, fmt.Errorf("write safetensors: want a header of at most %d bytes, got %d", maxHeader, header.Len())
	}
	return header.Bytes(), nil
}

// checkAll rejects tensors that the format cannot hold. The tensors are sorted.
func checkAll(tensors []Info, metadata map[string]string) error {
	for key, value := range metadata {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return fmt.Errorf("write safetensors: metadata %s is not UTF-8", clip(key))
		}
	}
	for i, t := range tensors {
		if i > 0 && tensors[i-1].Name == t.Name {
			return fmt.Errorf("write safetensors: tensor %q occurs twice", t.Name)
		}
		if !utf8.ValidString(t.Name) || t.Name == "__metadata__" {
			return fmt.Errorf("write safetensors: %q is no valid tensor name", t.Name)
		}
		if _, ok := safetensorsTypes[t.DType.String()]; !ok {
			return fmt.Errorf("write safetensors: tensor %q: the format has no type %v", t.Name, t.DType)
		}
		elements := 1
		for _, d := range t.Shape {
			if d < 0 || d > 0 && elements > math.MaxInt/8/d {
				return fmt.Errorf("write safetensors: tensor %q: shape %v is out of range", t.Name, t.Shape)
			}
			elements *= d
		}
		if len(t.Shape) > maxShape {
			return fmt.Errorf("write safetensors: tensor %q: want at most %d dimensions, got %d", t.Name, maxShape,
				len(t.Shape))
		}
		if want := elements * t.DType.BlockBytes(); int64(want) != t.Bytes {
			return fmt.Errorf("write safetensors: tensor %q: %d bytes for shape %v of %v", t.Name, t.Bytes, t.Shape,
				t.DType)
		}
	}
	return nil
}

// WriteFile writes a file atomically: it writes a temporary file in the same folder, syncs it,
// renames it, and syncs the folder.
func WriteFile(path string, write func(w io.Writer) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	if err := fill(f, write); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// fill writes, syncs and closes f.
func fill(f *os.File, write func(w io.Writer) error) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
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
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
