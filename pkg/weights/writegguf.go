package weights

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"unicode/utf8"
)

// Field is an entry of a GGUF file's metadata. Value is of one of these types, which determine the type in the file:
// uint8, int8, uint16, int16, uint32, int32, uint64, int64, float32, float64, bool, string, a slice of one of them, or
// an Encoded.
type Field struct {
	Key   string
	Value any
}

// Encoded is a value as a GGUF file holds it: the number of its type and its bytes. Meta.Encoded returns it.
type Encoded []byte

// ggufAlign is the number of which every offset of data is a multiple. It is the format's default.
const ggufAlign = 32

// Limits of llama.cpp's reader.
const maxTensorName = 63

// GGUFLayout says where the parts of a GGUF file are.
type GGUFLayout struct {
	Header  []byte  // the bytes before the tensors
	Offsets []int64 // where the bytes of each tensor begin in the file
	Size    int64   // of the file
}

// LayoutGGUF returns the layout of a GGUF file of version 3 with the given metadata and tensors, in their order. The
// data of every tensor begin at a multiple of 32.
func LayoutGGUF(fields []Field, tensors []Info) (GGUFLayout, error) {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte(ggufMagic), 3)
	b = le.AppendUint64(le.AppendUint64(b, uint64(len(tensors))), uint64(len(fields)))
	seen := map[string]bool{}
	for _, f := range fields {
		switch {
		case f.Key == "" || len(f.Key) > maxName || !utf8.ValidString(f.Key):
			return GGUFLayout{}, fmt.Errorf("write GGUF: %s is no valid key", clip(f.Key))
		case seen[f.Key]:
			return GGUFLayout{}, fmt.Errorf("write GGUF: key %s occurs twice", clip(f.Key))
		case f.Key == "general.alignment":
			return GGUFLayout{}, fmt.Errorf("write GGUF: %s: only the default alignment is written", f.Key)
		}
		seen[f.Key] = true
		var err error
		if b, err = appendValue(appendText(b, f.Key), f.Value); err != nil {
			return GGUFLayout{}, fmt.Errorf("write GGUF: %s: %w", clip(f.Key), err)
		}
	}
	out := GGUFLayout{Offsets: make([]int64, len(tensors))}
	clear(seen)
	end := int64(0)
	for i, t := range tensors {
		kind, err := checkGGUF(t)
		if err != nil {
			return GGUFLayout{}, err
		}
		if seen[t.Name] {
			return GGUFLayout{}, fmt.Errorf("write GGUF: tensor %q occurs twice", t.Name)
		}
		seen[t.Name] = true
		b = le.AppendUint32(appendText(b, t.Name), uint32(len(t.Shape)))
		for d := range t.Shape {
			b = le.AppendUint64(b, uint64(t.Shape[len(t.Shape)-1-d])) // innermost first
		}
		b = le.AppendUint64(le.AppendUint32(b, kind), uint64(end))
		out.Offsets[i] = end
		end += aligned(t.Bytes)
	}
	out.Header = append(b, make([]byte, aligned(int64(len(b)))-int64(len(b)))...)
	for i := range out.Offsets {
		out.Offsets[i] += int64(len(out.Header))
	}
	out.Size = int64(len(out.Header)) + end
	return out, nil
}

func aligned(n int64) int64 { return (n + ggufAlign - 1) / ggufAlign * ggufAlign }

// checkGGUF rejects a tensor that the format cannot hold and returns the number of its type.
func checkGGUF(t Info) (uint32, error) {
	if t.Name == "" || len(t.Name) > maxTensorName || !utf8.ValidString(t.Name) {
		return 0, fmt.Errorf("write GGUF: %s is no valid tensor name: want 1 to %d bytes", clip(t.Name), maxTensorName)
	}
	if len(t.Shape) < 1 || len(t.Shape) > maxDims {
		return 0, fmt.Errorf("write GGUF: tensor %q: want 1 to %d dimensions, got %d", t.Name, maxDims, len(t.Shape))
	}
	elements := 1
	for _, d := range t.Shape {
		if d < 1 || elements > math.MaxInt/8/d {
			return 0, fmt.Errorf("write GGUF: tensor %q: shape %v is out of range", t.Name, t.Shape)
		}
		elements *= d
	}
	for kind, dtype := range ggufTypes {
		if dtype != t.DType {
			continue
		}
		if row := t.Shape[len(t.Shape)-1]; row%dtype.BlockLen() != 0 || int64(dtype.RowBytes(elements)) != t.Bytes {
			return 0, fmt.Errorf(
				"write GGUF: tensor %q: %d bytes for shape %v of %v",
				t.Name,
				t.Bytes,
				t.Shape,
				t.DType,
			)
		}
		return kind, nil
	}
	return 0, fmt.Errorf("write GGUF: tensor %q: the format has no type %v", t.Name, t.DType)
}

// StreamGGUF writes a GGUF file to a stream, as LayoutGGUF describes it. It calls Write of one tensor after the other,
// so they need not be in memory together.
func StreamGGUF(w io.Writer, fields []Field, tensors []Streamed) error {
	infos := make([]Info, len(tensors))
	for i, t := range tensors {
		infos[i] = t.Info
	}
	layout, err := LayoutGGUF(fields, infos)
	if err != nil {
		return err
	}
	if _, err := w.Write(layout.Header); err != nil {
		return err
	}
	var padding [ggufAlign]byte
	for _, t := range tensors {
		n := &counter{w: w}
		if err := t.Write(n); err != nil {
			return err
		}
		if n.written != t.Bytes {
			return fmt.Errorf("write GGUF: tensor %q: want %d bytes, got %d", t.Name, t.Bytes, n.written)
		}
		if _, err := w.Write(padding[:aligned(t.Bytes)-t.Bytes]); err != nil {
			return err
		}
	}
	return nil
}

// appendText appends a string as GGUF spells it.
func appendText(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// appendValue appends the number of a value's type and the value.
func appendValue(b []byte, value any) ([]byte, error) {
	le := binary.LittleEndian
	switch v := value.(type) {
	case Encoded:
		return append(b, v...), nil
	case string:
		return appendText(le.AppendUint32(b, kindString), v), nil
	case []string:
		b = le.AppendUint64(le.AppendUint32(le.AppendUint32(b, kindArray), kindString), uint64(len(v)))
		for _, s := range v {
			b = appendText(b, s)
		}
		return b, nil
	}
	for _, scalar := range numberTypes() {
		if out, ok, err := scalar(b, value); ok {
			return out, err
		}
	}
	return nil, fmt.Errorf("the format has no type for %T", value)
}

// numberTypes returns a function for each type of numbers. It appends a number of the type or a list of them, and
// returns false for other values.
func numberTypes() []func(b []byte, value any) ([]byte, bool, error) {
	return []func([]byte, any) ([]byte, bool, error){
		appendOneOrList[bool](kindBool),
		appendOneOrList[uint8](kindU8), appendOneOrList[int8](kindI8),
		appendOneOrList[uint16](kindU16), appendOneOrList[int16](kindI16),
		appendOneOrList[uint32](kindU32), appendOneOrList[int32](kindI32),
		appendOneOrList[uint64](kindU64), appendOneOrList[int64](kindI64),
		appendOneOrList[float32](kindF32), appendOneOrList[float64](kindF64),
	}
}

func appendOneOrList[T any](kind uint32) func([]byte, any) ([]byte, bool, error) {
	le := binary.LittleEndian
	return func(b []byte, value any) (out []byte, ok bool, err error) {
		switch v := value.(type) {
		case T:
			out, err = binary.Append(le.AppendUint32(b, kind), le, v)
		case []T:
			b = le.AppendUint64(le.AppendUint32(le.AppendUint32(b, kindArray), kind), uint64(len(v)))
			out, err = binary.Append(b, le, v)
		default:
			return nil, false, nil
		}
		return out, true, err
	}
}
