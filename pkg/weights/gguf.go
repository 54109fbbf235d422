package weights

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// ggufTypes maps GGUF's type numbers to element types.
var ggufTypes = map[uint32]tensor.DType{
	0: tensor.F32, 1: tensor.F16, 2: tensor.Q4_0, 3: tensor.Q4_1, 6: tensor.Q5_0, 7: tensor.Q5_1, 8: tensor.Q8_0,
	10: tensor.Q2_K, 11: tensor.Q3_K, 12: tensor.Q4_K, 13: tensor.Q5_K, 14: tensor.Q6_K, 20: tensor.IQ4_NL,
	23: tensor.IQ4_XS, 24: tensor.I8, 25: tensor.I16, 26: tensor.I32, 27: tensor.I64, 28: tensor.F64,
	30: tensor.BF16, 34: tensor.TQ1_0, 35: tensor.TQ2_0, 39: tensor.MXFP4,
}

// Limits of a header. A real file stays far below them.
const (
	maxDims  = 4
	maxDepth = 4       // arrays in arrays
	maxKeys  = 1 << 16 // metadata entries
)

// GGUF is an open GGUF file.
type GGUF struct {
	file    string
	mapping *mapping
	meta    Meta
	names   []string
	tensors map[string]located
}

// located is a tensor and where its bytes are.
type located struct {
	info Info
	from int64
}

// OpenGGUF maps a file and reads its header.
func OpenGGUF(path string) (*GGUF, error) {
	m, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	g := &GGUF{file: path, mapping: m, tensors: map[string]located{}}
	if err := g.parse(); err != nil {
		m.close()
		return nil, err
	}
	return g, nil
}

// ParseGGUF reads a file that is in memory; the result keeps data and must not be
// closed.
func ParseGGUF(name string, data []byte) (*GGUF, error) {
	g := &GGUF{file: name, mapping: &mapping{}, tensors: map[string]located{}}
	g.mapping.bytes = data
	if err := g.parse(); err != nil {
		return nil, err
	}
	return g, nil
}

// Meta returns the metadata.
func (g *GGUF) Meta() Meta { return g.meta }

// Names lists the tensors, sorted.
func (g *GGUF) Names() []string { return g.names }

// Info describes a tensor.
func (g *GGUF) Info(name string) (Info, bool) {
	t, ok := g.tensors[name]
	return t.info, ok
}

// Data is a view of a tensor's bytes.
func (g *GGUF) Data(name string) ([]byte, error) {
	t, ok := g.tensors[name]
	if !ok {
		return nil, &NotFoundError{g.file, name}
	}
	return g.mapping.bytes[t.from : t.from+t.info.Bytes : t.from+t.info.Bytes], nil
}

// Close unmaps the file.
func (g *GGUF) Close() error { return g.mapping.close() }

// reader walks a header; the first error stays and stops it.
type reader struct {
	file string
	b    []byte
	at   int64
	err  error
}

func (r *reader) fail(field, format string, args ...any) {
	if r.err == nil {
		r.err = &FormatError{File: r.file, Offset: r.at, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
}

// take returns the next n bytes, or nil after an error.
func (r *reader) take(field string, n uint64) []byte {
	if r.err == nil && n > uint64(int64(len(r.b))-r.at) {
		r.fail(field, "%d bytes wanted, %d left", n, int64(len(r.b))-r.at)
	}
	if r.err != nil {
		return nil
	}
	out := r.b[r.at : r.at+int64(n)]
	r.at += int64(n)
	return out
}

func (r *reader) u32(field string) uint32 {
	if b := r.take(field, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64(field string) uint64 {
	if b := r.take(field, 8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) str(field string) string { return string(r.take(field, r.u64(field+" length"))) }

func (g *GGUF) parse() error {
	r := &reader{file: g.file, b: g.mapping.bytes}
	if magic := r.take("magic", 4); r.err == nil && string(magic) != "GGUF" {
		r.at = 0
		r.fail("magic", "%q is not GGUF", magic)
	}
	if v := r.u32("version"); r.err == nil && v != 2 && v != 3 {
		r.fail("version", "%d is not supported (2 and 3 are)", v)
	}
	tensors, keys := r.u64("tensor count"), r.u64("metadata count")
	// A tensor's entry takes at least 24 bytes, a key's at least 13.
	if left := uint64(len(r.b)) - uint64(r.at); r.err == nil && (tensors > left/24 || keys > left/13 || keys > maxKeys) {
		r.fail("counts", "%d tensors and %d keys cannot be in %d bytes", tensors, keys, left)
	}
	if r.err != nil {
		return r.err
	}
	g.meta = Meta{values: make(map[string]any, keys)}
	for range keys {
		key := r.str("metadata key")
		if _, twice := g.meta.values[key]; twice {
			r.fail(key, "occurs twice")
		}
		value := r.value(key, r.u32(key+" type"), 0)
		if r.err != nil {
			return r.err
		}
		g.meta.values[key] = value
	}
	return g.parseTensors(r, tensors)
}

func (g *GGUF) parseTensors(r *reader, count uint64) error {
	align := uint64(32)
	if a, ok := g.meta.Uint("general.alignment"); ok {
		align = a
	}
	if align == 0 || align&(align-1) != 0 || align > 1<<20 {
		r.fail("general.alignment", "%d is not a power of two up to a mebibyte", align)
	}
	offsets := make([]uint64, 0, count)
	for range count {
		info, offset := r.tensorInfo()
		if r.err == nil && offset%align != 0 {
			r.fail(info.Name, "offset %d is not a multiple of %d", offset, align)
		}
		if _, twice := g.tensors[info.Name]; r.err == nil && twice {
			r.fail(info.Name, "occurs twice")
		}
		if r.err != nil {
			return r.err
		}
		g.tensors[info.Name] = located{info: info}
		g.names = append(g.names, info.Name)
		offsets = append(offsets, offset)
	}
	start := (uint64(r.at) + align - 1) / align * align
	size := uint64(len(r.b))
	for i, name := range g.names {
		t := g.tensors[name]
		if bytes := uint64(t.info.Bytes); bytes > 0 && (start > size || offsets[i] > size-start || bytes > size-start-offsets[i]) {
			r.fail(name, "its %d bytes at offset %d of the data lie outside the file of %d bytes", bytes, offsets[i], size)
			return r.err
		}
		t.from = int64(min(start+offsets[i], size))
		g.tensors[name] = t
	}
	slices.Sort(g.names)
	return r.err
}

// tensorInfo reads one entry of the tensor table and its data offset.
func (r *reader) tensorInfo() (Info, uint64) {
	info := Info{Name: r.str("tensor name")}
	dims := r.u32(info.Name + " dimensions")
	if r.err == nil && dims > maxDims {
		r.fail(info.Name, "%d dimensions, more than %d", dims, maxDims)
	}
	elements := uint64(1)
	for range min(dims, maxDims) {
		d := r.u64(info.Name + " dimension")
		if r.err == nil && (d > math.MaxInt32*16 || d > 0 && elements > math.MaxInt64/8/d) {
			r.fail(info.Name, "dimension %d is too large", d)
		}
		elements *= d
		info.Shape = append(info.Shape, int(d))
	}
	kind := r.u32(info.Name + " type")
	offset := r.u64(info.Name + " offset")
	if r.err != nil {
		return info, 0
	}
	dtype, ok := ggufTypes[kind]
	if !ok {
		r.fail(info.Name, "type %d is not supported", kind)
		return info, 0
	}
	info.DType = dtype
	if len(info.Shape) > 0 && info.Shape[0]%dtype.BlockLen() != 0 {
		r.fail(info.Name, "rows of %d elements are not whole blocks of %v", info.Shape[0], dtype)
		return info, 0
	}
	info.Bytes = int64(elements / uint64(dtype.BlockLen()) * uint64(dtype.BlockBytes()))
	slices.Reverse(info.Shape)
	return info, offset
}
