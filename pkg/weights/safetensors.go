package weights

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// maxHeader bounds a safetensors header, as the format's own reader does.
const maxHeader = 100 << 20

const indexFile = "model.safetensors.index.json"

// Safetensors is an open safetensors file, or a folder of them.
type Safetensors struct {
	path     string
	mappings []*mapping
	names    []string
	tensors  map[string]shardTensor
	metadata map[string]string
}

type shardTensor struct {
	located
	mapping *mapping
}

// OpenSafetensors opens one file, or a folder that holds model.safetensors or a
// sharded model with its index.
func OpenSafetensors(path string) (*Safetensors, error) {
	files := []string{path}
	if stat, err := os.Stat(path); err != nil {
		return nil, err
	} else if stat.IsDir() {
		if files, err = shardFiles(path); err != nil {
			return nil, err
		}
	}
	s := &Safetensors{path: path, tensors: map[string]shardTensor{}, metadata: map[string]string{}}
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
	s.names = slices.Sorted(maps.Keys(s.tensors))
	return s, nil
}

// ParseSafetensors reads a file that is in memory; the result keeps data and must
// not be closed.
func ParseSafetensors(name string, data []byte) (*Safetensors, error) {
	s := &Safetensors{path: name, tensors: map[string]shardTensor{}, metadata: map[string]string{}}
	m := &mapping{}
	m.bytes = data
	if err := s.parse(name, m); err != nil {
		return nil, err
	}
	s.names = slices.Sorted(maps.Keys(s.tensors))
	return s, nil
}

// shardFiles lists the weight files of a model folder.
func shardFiles(dir string) ([]string, error) {
	index := filepath.Join(dir, indexFile)
	text, err := os.ReadFile(index)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{filepath.Join(dir, "model.safetensors")}, nil
	}
	if err != nil {
		return nil, err
	}
	var parsed struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &parsed); err != nil {
		return nil, &FormatError{index, -1, "index", err.Error()}
	}
	if len(parsed.WeightMap) == 0 {
		return nil, &FormatError{index, -1, "weight_map", "is missing or empty"}
	}
	seen := map[string]bool{}
	for name, file := range parsed.WeightMap {
		if file != filepath.Base(file) || !filepath.IsLocal(file) || strings.ContainsAny(file, `/\`) {
			return nil, &FormatError{index, -1, "weight_map." + name, fmt.Sprintf("%q is not a plain file name", file)}
		}
		seen[filepath.Join(dir, file)] = true
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// entry is a tensor as the header describes it.
type entry struct {
	DType   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

func (s *Safetensors) parse(file string, m *mapping) error {
	bad := func(offset int64, field, format string, args ...any) error {
		return &FormatError{file, offset, field, fmt.Sprintf(format, args...)}
	}
	if len(m.bytes) < 8 {
		return bad(0, "header length", "the file has %d bytes, fewer than 8", len(m.bytes))
	}
	length := binary.LittleEndian.Uint64(m.bytes)
	if length > uint64(len(m.bytes)-8) || length > maxHeader {
		return bad(0, "header length", "%d bytes cannot be in a file of %d", length, len(m.bytes))
	}
	header, data := m.bytes[8:8+length], int64(8+length)
	entries, err := s.header(file, header)
	if err != nil {
		return err
	}
	for name, e := range entries {
		dtype, ok := safetensorsTypes[e.DType]
		if !ok {
			return bad(8, name+".dtype", "%q is not supported", e.DType)
		}
		elements, shape := int64(1), make([]int, len(e.Shape))
		for i, d := range e.Shape {
			if d < 0 || len(e.Shape) > 8 || d > 0 && elements > int64(len(m.bytes))/d {
				return bad(8, name+".shape", "%v does not fit the file", e.Shape)
			}
			elements *= d
			shape[i] = int(d)
		}
		size := elements * int64(dtype.BlockBytes())
		from, to := e.Offsets[0], e.Offsets[1]
		if from < 0 || to < from || to > int64(len(m.bytes))-data || to-from != size {
			return bad(8, name+".data_offsets", "%v do not hold %d bytes inside the file", e.Offsets, size)
		}
		if _, twice := s.tensors[name]; twice {
			return bad(8, name, "occurs twice")
		}
		s.tensors[name] = shardTensor{located{Info{name, dtype, shape, size}, data + from}, m}
	}
	return nil
}

// header decodes the JSON header, refusing keys that occur twice.
func (s *Safetensors) header(file string, text []byte) (map[string]entry, error) {
	bad := func(d *json.Decoder, field string, err error) error {
		return &FormatError{file, 8 + d.InputOffset(), field, err.Error()}
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, bad(d, "header", errors.Join(errors.New("is not a JSON object"), err))
	}
	entries := map[string]entry{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, bad(d, "header", err)
		}
		name, _ := token.(string)
		if name == "__metadata__" {
			if err := d.Decode(&s.metadata); err != nil {
				return nil, bad(d, name, err)
			}
			continue
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return nil, bad(d, name, err)
		}
		if _, twice := entries[name]; twice {
			return nil, bad(d, name, errors.New("occurs twice"))
		}
		entries[name] = e
	}
	if _, err := d.Token(); err != nil {
		return nil, bad(d, "header", err)
	}
	return entries, nil
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

// Data is a view of a tensor's bytes.
func (s *Safetensors) Data(name string) ([]byte, error) {
	t, ok := s.tensors[name]
	if !ok {
		return nil, &NotFoundError{s.path, name}
	}
	return t.mapping.bytes[t.from : t.from+t.info.Bytes : t.from+t.info.Bytes], nil
}

// Close unmaps the files.
func (s *Safetensors) Close() error {
	var errs []error
	for _, m := range s.mappings {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}
