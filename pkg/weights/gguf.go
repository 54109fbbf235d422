package weights

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// ggufTypes maps GGUF's type numbers to element types.
var ggufTypes = map[uint32]tensor.DType{
	0: tensor.F32, 1: tensor.F16, 2: tensor.Q4_0, 3: tensor.Q4_1, 6: tensor.Q5_0, 7: tensor.Q5_1, 8: tensor.Q8_0,
	10: tensor.Q2_K, 11: tensor.Q3_K, 12: tensor.Q4_K, 13: tensor.Q5_K, 14: tensor.Q6_K, 20: tensor.IQ4_NL,
	23: tensor.IQ4_XS, 24: tensor.I8, 25: tensor.I16, 26: tensor.I32, 27: tensor.I64, 28: tensor.F64,
	30: tensor.BF16, 34: tensor.TQ1_0, 35: tensor.TQ2_0, 39: tensor.MXFP4,
	16: tensor.IQ2_XXS, 17: tensor.IQ2_XS, 18: tensor.IQ3_XXS, 19: tensor.IQ1_S, 21: tensor.IQ3_S, 22: tensor.IQ2_S,
	29: tensor.IQ1_M, 40: tensor.NVFP4, 41: tensor.Q1_0,
}

// unreadTypes names the other type numbers of llama.cpp: formats that it has removed, formats of
// activations, which no file contains, and formats that this package does not read yet.
var unreadTypes = map[uint32]string{
	4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
	36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 42: "Q2_0",
}

// Limits of a header. The format itself limits keys to the same length.
const (
	maxDims  = 4
	maxDepth = 4 // arrays in arrays
	maxName  = 1<<16 - 1
)

// Memory per entry of the metadata and tensor tables, including the spare room of a
// map that has just grown.
const (
	keyCost    = 256
	tensorCost = 320
)

// ggufMagic is the first four bytes of every GGUF file.
const ggufMagic = "GGUF"

// GGUF is an open GGUF model: one file, or all parts of a split one.
type GGUF struct {
	file    string // the file, or the first part
	header  bool   // opened for its header only
	parts   []ggufPart
	meta    Meta // of the first part
	names   []string
	tensors map[string]located
}

// ggufPart is one file of a model.
type ggufPart struct {
	file    string
	mapping *mapping
	header  bool // tensors may lie outside the file
	meta    Meta
	names   []string // sorted
	tensors map[string]located
}

// located is a tensor, the part that holds it, and the offset of its bytes in that part.
type located struct {
	info Info
	from int64
	part int
}

// OpenGGUF maps a GGUF file and reads its header. The path may also name any part of
// a split file, or a folder with one model, whole or split: all parts are opened,
// and a tensor is read from the part that holds it. The error is a *PartError for a
// missing part and an *AmbiguousError for a folder with several models.
func OpenGGUF(path string) (*GGUF, error) {
	if stat, err := os.Stat(path); err == nil && stat.IsDir() {
		at, err := Locate(path)
		if err != nil {
			return nil, err
		}
		path = at.Path
	}
	g := &GGUF{file: path}
	if err := g.open(path); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// OpenGGUFHeader maps the beginning of a GGUF file and reads its header. The file may end anywhere behind the
// header: Info describes all tensors, and Data is a *FormatError for those that the file lacks.
func OpenGGUFHeader(path string) (*GGUF, error) {
	g := &GGUF{file: path, header: true}
	if err := g.open(path); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// ParseGGUF reads a GGUF file, or one part of a split one, that is in memory. The result keeps
// data, which must not change; name is its name in errors.
func ParseGGUF(name string, data []byte) (*GGUF, error) {
	p := ggufPart{file: name, mapping: &mapping{bytes: data}}
	if err := p.parse(); err != nil {
		return nil, err
	}
	g := &GGUF{file: name, parts: []ggufPart{p}}
	return g, g.join()
}

// Parts returns the number of files, which is 1 unless the model is split.
func (g *GGUF) Parts() int { return len(g.parts) }

// Meta returns the metadata. A split model's metadata is that of its first part.
func (g *GGUF) Meta() Meta { return g.meta }

// Names lists the tensors, sorted.
func (g *GGUF) Names() []string { return g.names }

// Info describes a tensor.
func (g *GGUF) Info(name string) (Info, bool) {
	t, ok := g.tensors[name]
	return t.info, ok
}

// Data returns a view of a tensor's bytes.
func (g *GGUF) Data(name string) ([]byte, error) {
	t, ok := g.tensors[name]
	if !ok {
		return nil, &NotFoundError{g.file, name}
	}
	p := &g.parts[t.part]
	if size := int64(len(p.mapping.bytes)); g.header && (t.from > size || t.info.Bytes > size-t.from) {
		return nil, &FormatError{File: p.file, Offset: t.from, Field: clip(name),
			Msg: fmt.Sprintf("the file ends at byte %d", size)}
	}
	return p.mapping.view(p.file, t.from, t.info.Bytes)
}

// Relax lets the operating system drop the pages that were read.
func (g *GGUF) Relax() {
	for _, p := range g.parts {
		p.mapping.relax()
	}
}

// Close unmaps the files.
func (g *GGUF) Close() error {
	var errs []error
	for _, p := range g.parts {
		errs = append(errs, p.mapping.close())
	}
	return errors.Join(errs...)
}

// reader reads a header. It keeps the first error and reads nothing after it.
type reader struct {
	file   string
	b      []byte
	at     int64
	budget *budget
	err    error
}

func (r *reader) fail(field, format string, args ...any) { r.failAt(r.at, field, format, args...) }

func (r *reader) failAt(offset int64, field, format string, args ...any) {
	if r.err == nil {
		r.err = &FormatError{File: r.file, Offset: offset, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
}

func (r *reader) unsupported(field, format string, args ...any) {
	if r.err == nil {
		r.err = &FormatError{File: r.file, Offset: r.at, Field: field, Msg: fmt.Sprintf(format, args...),
			Unsupported: true}
	}
}

// left returns the number of bytes that were not read yet.
func (r *reader) left() uint64 { return uint64(len(r.b)) - uint64(r.at) }

// charge takes n*each bytes from the memory budget. It returns false if fewer are left.
func (r *reader) charge(field string, n, each uint64) bool {
	if r.err == nil && !r.budget.charge(n, each) {
		r.fail(field, "%d entries would take too much memory for a file of %d bytes", n, len(r.b))
	}
	return r.err == nil
}

// take returns the next n bytes, or nil after an error.
func (r *reader) take(field string, n uint64) []byte {
	if r.err == nil && n > r.left() {
		r.fail(field, "want %d bytes, %d are left", n, r.left())
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

// str reads a string, which may be any bytes.
func (r *reader) str(field string) string {
	b := r.take(field, r.u64(field))
	if !r.charge(field, 1, uint64(len(b))) {
		return ""
	}
	return string(b)
}

// name reads a key or a tensor's name: UTF-8, not empty.
func (r *reader) name(field string) string {
	at := r.at
	n := r.u64(field)
	if n == 0 || n > maxName {
		r.failAt(at, field, "want a length from 1 to %d, got %d", maxName, n)
	}
	b := r.take(field, n)
	if r.err == nil && !utf8.Valid(b) {
		r.failAt(at, field, "%s is not UTF-8", clip(string(b)))
	}
	if !r.charge(field, 1, n) {
		return ""
	}
	return string(b)
}

func (p *ggufPart) parse() error {
	r := &reader{file: p.file, b: p.mapping.bytes, budget: newBudget(len(p.mapping.bytes))}
	if magic := r.take("magic", 4); r.err == nil && string(magic) != ggufMagic {
		r.failAt(0, "magic", "%q is not GGUF", magic)
	}
	switch v := r.u32("version"); {
	case r.err != nil:
	case v == 2<<24 || v == 3<<24:
		r.unsupported("version", "the file is big-endian")
	case v != 2 && v != 3:
		r.unsupported("version", "%d is not supported (2 and 3 are)", v)
	}
	tensors, keys := r.u64("tensor count"), r.u64("metadata count")
	// A tensor's entry takes at least 24 bytes, and that of a key at least 13.
	if r.err == nil && (tensors > r.left()/24 || keys > r.left()/13) {
		r.fail("counts", "%d tensors and %d keys do not fit in %d bytes", tensors, keys, r.left())
	}
	if !r.charge("metadata count", keys, keyCost) || !r.charge("tensor count", tensors, tensorCost) {
		return r.err
	}
	p.meta = Meta{values: make(map[string]any, keys), encoded: make(map[string]Encoded, keys)}
	for range keys {
		at := r.at
		key := r.name("metadata key")
		if _, twice := p.meta.values[key]; twice {
			r.failAt(at, clip(key), "the key occurs twice")
		}
		shown, from := clip(key), r.at
		value := r.value(shown, r.u32(shown), 0)
		if r.err != nil {
			return r.err
		}
		p.meta.values[key], p.meta.encoded[key] = value, Encoded(r.b[from:r.at:r.at])
	}
	return p.parseTensors(r, tensors)
}

// alignment returns the number of which every data offset is a multiple.
func (p *ggufPart) alignment(r *reader) uint64 {
	const key = "general.alignment"
	if !p.meta.Has(key) {
		return 32
	}
	align, ok := p.meta.Uint(key)
	if !ok || align == 0 || align&(align-1) != 0 || align > 1<<20 {
		value, _ := p.meta.Value(key)
		r.fail(key, "want a power of two up to 2^20, got %.40q", fmt.Sprint(value))
		return 32
	}
	return align
}

func (p *ggufPart) parseTensors(r *reader, count uint64) error {
	align := p.alignment(r)
	p.tensors = make(map[string]located, count)
	p.names = make([]string, 0, count)
	entries := make([]int64, 0, count) // offsets of the table entries in the file
	for range count {
		at := r.at
		info, offset := r.tensorInfo()
		if r.err == nil && offset%align != 0 {
			r.failAt(at, clip(info.Name), "data offset %d is not a multiple of %d", offset, align)
		}
		if r.err == nil && offset > math.MaxInt64/2 {
			r.failAt(at, clip(info.Name), "data offset %d is outside the file", offset)
		}
		if _, twice := p.tensors[info.Name]; twice {
			r.failAt(at, clip(info.Name), "the tensor occurs twice")
		}
		if r.err != nil {
			return r.err
		}
		p.tensors[info.Name] = located{info: info, from: int64(offset)}
		p.names = append(p.names, info.Name)
		entries = append(entries, at)
	}
	start := (r.at + int64(align) - 1) / int64(align) * int64(align)
	size := int64(len(r.b))
	for i, name := range p.names {
		t := p.tensors[name]
		from := start + t.from
		switch {
		case t.info.Bytes == 0:
			from = 0
		case !p.header && (from > size || t.info.Bytes > size-from):
			r.failAt(entries[i], clip(name), "%d bytes at byte %d lie outside the file of %d bytes", t.info.Bytes, from,
				size)
			return r.err
		}
		p.tensors[name] = located{info: t.info, from: from}
	}
	p.checkOverlap(r)
	slices.Sort(p.names)
	return r.err
}

// checkOverlap rejects tensors that share bytes. It sorts names by data offset.
func (p *ggufPart) checkOverlap(r *reader) {
	slices.SortFunc(p.names, func(a, b string) int { return cmp.Compare(p.tensors[a].from, p.tensors[b].from) })
	end, last := int64(0), ""
	for _, name := range p.names {
		t := p.tensors[name]
		if t.info.Bytes == 0 {
			continue
		}
		if t.from < end {
			r.failAt(t.from, clip(name), "the data overlap those of %s", clip(last))
			return
		}
		end, last = t.from+t.info.Bytes, name
	}
}

// tensorInfo reads one entry of the tensor table and its data offset.
func (r *reader) tensorInfo() (Info, uint64) {
	info := Info{Name: r.name("tensor name")}
	shown := clip(info.Name)
	dims := r.u32(shown)
	if r.err == nil && dims > maxDims {
		r.fail(shown, "want at most %d dimensions, got %d", maxDims, dims)
	}
	if r.err != nil {
		return info, 0
	}
	elements := uint64(1)
	info.Shape = make([]int, dims)
	for i := range info.Shape {
		d := r.u64(shown)
		if r.err == nil && (d > math.MaxInt/8 || d > 0 && elements > math.MaxInt/8/d) {
			r.fail(shown, "dimension %d makes the tensor too large", d)
		}
		if r.err != nil {
			return info, 0
		}
		elements *= d
		info.Shape[i] = int(d)
	}
	kind := r.u32(shown)
	offset := r.u64(shown)
	if r.err != nil {
		return info, 0
	}
	dtype, ok := ggufTypes[kind]
	if name, known := unreadTypes[kind]; known {
		r.unsupported(shown, "tensor type %s (%d) is not supported", name, kind)
		return info, 0
	}
	if !ok {
		r.unsupported(shown, "tensor type %d is not supported", kind)
		return info, 0
	}
	row := 1
	if dims > 0 {
		row = info.Shape[0]
	}
	if row%dtype.BlockLen() != 0 {
		r.fail(shown, "rows of %d elements are not whole blocks of %v", row, dtype)
		return info, 0
	}
	info.DType = dtype
	info.Bytes = int64(elements / uint64(dtype.BlockLen()) * uint64(dtype.BlockBytes()))
	slices.Reverse(info.Shape)
	return info, offset
}
