package weights

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// safetensorsTypes maps safetensors' type names to element types.
var safetensorsTypes = map[string]tensor.DType{
	"F64": tensor.F64, "F32": tensor.F32, "F16": tensor.F16, "BF16": tensor.BF16,
	"I64": tensor.I64, "I32": tensor.I32, "I16": tensor.I16, "I8": tensor.I8, "U8": tensor.U8, "BOOL": tensor.Bool,
}

// Limits of a header and an index. maxHeader is the limit of the reference reader.
const (
	maxHeader    = 100 << 20
	maxIndex     = 64 << 20
	maxShape     = 8
	entryCost    = 384 // bytes of memory per tensor entry
	metadataCost = 128
	unescapeCost = 512 // bytes of garbage per unescaped string
)

const indexFile = "model.safetensors.index.json"

// Safetensors is an open safetensors file, or all shards of a model folder.
type Safetensors struct {
	path     string
	mappings []*mapping
	names    []string
	tensors  map[string]shardTensor
	metadata map[string]string
}

type shardTensor struct {
	located
	file    string
	mapping *mapping
}

// OpenSafetensors opens one file, or a folder that holds model.safetensors or a
// sharded model with its index.
func OpenSafetensors(path string) (*Safetensors, error) {
	files, index := []string{path}, map[string]string(nil)
	if stat, err := os.Stat(path); err != nil {
		return nil, err
	} else if stat.IsDir() {
		if files, index, err = shardFiles(path); err != nil {
			return nil, err
		}
	}
	s := newSafetensors(path)
	for _, file := range files {
		m, err := mapFile(file)
		if err == nil {
			s.mappings = append(s.mappings, m)
			err = s.parse(file, m)
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := s.checkIndex(index); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.names = slices.Sorted(maps.Keys(s.tensors))
	return s, nil
}

// ParseSafetensors reads a file that is in memory. The result keeps data, which must not change;
// name is its name in errors.
func ParseSafetensors(name string, data []byte) (*Safetensors, error) {
	s := newSafetensors(name)
	if err := s.parse(name, &mapping{bytes: data}); err != nil {
		return nil, err
	}
	s.names = slices.Sorted(maps.Keys(s.tensors))
	return s, nil
}

func newSafetensors(path string) *Safetensors {
	return &Safetensors{path: path, tensors: map[string]shardTensor{}, metadata: map[string]string{}}
}

// shardFiles lists the weight files of a model folder. weightMap maps tensors to
// files; it is nil for a folder without an index.
func shardFiles(dir string) (files []string, weightMap map[string]string, err error) {
	index := filepath.Join(dir, indexFile)
	m, err := mapFile(index)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{filepath.Join(dir, "model.safetensors")}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if weightMap, err = parseIndex(index, m.bytes); err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for _, file := range weightMap {
		seen[filepath.Join(dir, file)] = true
	}
	return slices.Sorted(maps.Keys(seen)), weightMap, nil
}

// parseIndex reads the map of tensor names to plain file names.
func parseIndex(index string, text []byte) (map[string]string, error) {
	bad := func(field, format string, args ...any) error {
		return &FormatError{File: index, Offset: -1, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	if len(text) > maxIndex {
		return nil, bad("index", "want at most %d bytes, got %d", maxIndex, len(text))
	}
	if entries := bytes.Count(text, []byte{':'}); !newBudget(len(text)).charge(uint64(entries), metadataCost) {
		return nil, bad("index", "%d entries would take too much memory", entries)
	}
	var parsed struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &parsed); err != nil {
		return nil, bad("index", "%.200s", err)
	}
	if len(parsed.WeightMap) == 0 {
		return nil, bad("weight_map", "missing or empty")
	}
	for _, name := range slices.Sorted(maps.Keys(parsed.WeightMap)) {
		file := parsed.WeightMap[name]
		if file != filepath.Base(file) || !filepath.IsLocal(file) || file == "." ||
			strings.ContainsAny(file, "/\\\x00") {
			return nil, bad("weight_map."+clip(name), "%.96q is not a plain file name", file)
		}
	}
	return parsed.WeightMap, nil
}

// checkIndex checks that each tensor is in the file that the index names.
func (s *Safetensors) checkIndex(weightMap map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(weightMap)) {
		file := filepath.Join(s.path, weightMap[name])
		if t, ok := s.tensors[name]; !ok || t.file != file {
			return &FormatError{File: filepath.Join(s.path, indexFile), Offset: -1, Field: "weight_map." + clip(name),
				Msg: fmt.Sprintf("%s does not hold it", weightMap[name])}
		}
	}
	return nil
}

// parse adds the tensors of one file.
func (s *Safetensors) parse(file string, m *mapping) error {
	size := int64(len(m.bytes))
	bad := func(format string, args ...any) error {
		return &FormatError{File: file, Offset: 0, Field: "header length", Msg: fmt.Sprintf(format, args...)}
	}
	if size < 8 {
		return bad("want at least 8 bytes, the file has %d", size)
	}
	length := binary.LittleEndian.Uint64(m.bytes)
	if length > uint64(size-8) || length > maxHeader {
		return bad("a header of %d bytes does not fit in a file of %d bytes", length, size)
	}
	p := &headerParser{file: file, b: m.bytes[8 : 8+length], budget: newBudget(len(m.bytes))}
	start := int64(8 + length)
	p.header()
	if p.err != nil {
		return p.err
	}
	maps.Copy(s.metadata, p.metadata)
	// The tensors' data fill the file to its end without gaps.
	slices.SortStableFunc(p.entries, func(a, b headerEntry) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	end := int64(0)
	for _, e := range p.entries {
		info, err := e.info(file, size)
		if err != nil {
			return err
		}
		if e.from != end {
			return e.bad(file, "data_offsets", "the data begin at %d, but the previous tensor's end at %d", e.from, end)
		}
		end = e.to
		if _, twice := s.tensors[e.name]; twice {
			return e.bad(file, "", "the tensor occurs twice")
		}
		s.tensors[e.name] = shardTensor{located{info: info, from: start + e.from}, file, m}
	}
	if end != size-start {
		return &FormatError{File: file, Offset: start, Field: "data",
			Msg: fmt.Sprintf("the header describes %d bytes of data, the file holds %d", end, size-start)}
	}
	return nil
}

// info checks an entry against the format and the file's size.
func (e headerEntry) info(file string, size int64) (Info, error) {
	dtype, ok := safetensorsTypes[e.dtype]
	if !ok {
		return Info{}, &FormatError{File: file, Offset: e.at, Field: clip(e.name) + ".dtype",
			Msg: clip(e.dtype) + " is not supported", Unsupported: true}
	}
	elements, shape := int64(1), make([]int, len(e.shape))
	for i, d := range e.shape {
		if d > math.MaxInt/8 || d > 0 && elements > math.MaxInt/8/d {
			return Info{}, e.bad(file, "shape", "%v is out of range", e.shape)
		}
		elements *= d
		shape[i] = int(d)
	}
	bytes := elements * int64(dtype.BlockBytes())
	if e.to < e.from || e.to > size || e.to-e.from != bytes {
		return Info{}, e.bad(file, "data_offsets", "want a range of %d bytes inside the file, got %d to %d",
			bytes, e.from, e.to)
	}
	return Info{e.name, dtype, shape, bytes}, nil
}

func (e headerEntry) bad(file, field, format string, args ...any) error {
	name := clip(e.name)
	if field != "" {
		name += "." + field
	}
	return &FormatError{File: file, Offset: e.at, Field: name, Msg: fmt.Sprintf(format, args...)}
}

// Names lists the tensors, sorted.
func (s *Safetensors) Names() []string { return s.names }

// Metadata returns the files' free-form metadata.
func (s *Safetensors) Metadata() map[string]string { return s.metadata }

// Info describes a tensor.
func (s *Safetensors) Info(name string) (Info, bool) {
	t, ok := s.tensors[name]
	return t.info, ok
}

// Data returns a view of a tensor's bytes.
func (s *Safetensors) Data(name string) ([]byte, error) {
	t, ok := s.tensors[name]
	if !ok {
		return nil, &NotFoundError{s.path, name}
	}
	return t.mapping.view(t.file, t.from, t.info.Bytes)
}

// Relax lets the operating system drop the pages that were read.
func (s *Safetensors) Relax() {
	for _, m := range s.mappings {
		m.relax()
	}
}

// Close unmaps the files.
func (s *Safetensors) Close() error { return closeAll(s.mappings) }
