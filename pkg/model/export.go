package model

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ExportHF writes a model that is in memory, as ExportFiles describes. params holds all parameters of the
// model; tied ones are not written.
func ExportHF(dir string, s Spec, params []Param[float32], dtype tensor.DType) error {
	var all []Exported
	for _, p := range params {
		if p.TiedTo == "" {
			all = append(all, Exported{Name: p.Name, Shape: p.Shape, Open: func() (Values, error) {
				return memoryValues{bytes.NewReader(encode(p.Data, tensor.F32))}, nil
			}})
		}
	}
	return ExportFiles(dir, s, all, ExportOptions{DType: dtype})
}

// Exported is a parameter to be exported.
type Exported struct {
	Name  string
	Shape []int
	Open  func() (Values, error)
}

// Values are the elements of a parameter: float32, little-endian.
type Values interface {
	io.ReaderAt
	io.Closer
}

type memoryValues struct{ *bytes.Reader }

func (memoryValues) Close() error { return nil }

// ExportOptions are the settings of ExportFiles.
type ExportOptions struct {
	DType tensor.DType // F32, or BF16 (rounded to nearest even)
	// MaxBytes bounds the weights in a file; 0 means 5 GB. A model that has more is written to several
	// files with an index. A tensor is never split.
	MaxBytes int64
}

const (
	defaultMaxBytes = 5_000_000_000
	exportPiece     = 1 << 18 // elements in memory at once; a transposed tensor takes a few times as many
)

// ExportFiles writes config.json and the weights into dir, in the form that Hugging Face's libraries read.
// It reads and writes the tensors piece by piece, so the model may be larger than the memory.
func ExportFiles(dir string, s Spec, params []Exported, o ExportOptions) error {
	if o.DType != tensor.F32 && o.DType != tensor.BF16 {
		return fmt.Errorf("export model: want type F32 or BF16, got %v", o.DType)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := ConfigJSON(s)
	if err != nil {
		return err
	}
	layout := s.hfLayout()
	var all []weights.Streamed
	for _, p := range params {
		all = append(all, exported(p, layout[p.Name], o.DType)...)
	}
	if err := writeShards(dir, all, cmp.Or(o.MaxBytes, defaultMaxBytes)); err != nil {
		return err
	}
	return weights.WriteFile(filepath.Join(dir, "config.json"), func(w io.Writer) error {
		_, err := w.Write(append(config, '\n'))
		return err
	})
}

// writeShards writes tensors to one file, or to several in the order of names.
func writeShards(dir string, all []weights.Streamed, limit int64) error {
	slices.SortFunc(all, func(a, b weights.Streamed) int { return cmp.Compare(a.Name, b.Name) })
	const single, index = "model.safetensors", "model.safetensors.index.json"
	var shards [][]weights.Streamed
	var total, size int64
	for _, t := range all {
		if len(shards) == 0 || size+t.Bytes > limit && size > 0 {
			shards, size = append(shards, nil), 0
		}
		last := len(shards) - 1
		shards[last], size, total = append(shards[last], t), size+t.Bytes, total+t.Bytes
	}
	names, stale := []string{single}, index
	if len(shards) > 1 {
		names, stale = nil, single
		for i := range shards {
			names = append(names, fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards)))
		}
	}
	weightMap := map[string]string{}
	for i, shard := range shards {
		err := weights.WriteFile(filepath.Join(dir, names[i]), func(w io.Writer) error {
			return weights.StreamSafetensors(w, shard, map[string]string{"format": "pt"})
		})
		if err != nil {
			return err
		}
		for _, t := range shard {
			weightMap[t.Name] = names[i]
		}
	}
	if len(shards) > 1 {
		text, err := json.MarshalIndent(map[string]any{
			"metadata": map[string]any{"total_size": total}, "weight_map": weightMap}, "", "  ")
		if err != nil {
			return err
		}
		if err := weights.WriteFile(filepath.Join(dir, index), func(w io.Writer) error {
			_, err := w.Write(append(text, '\n'))
			return err
		}); err != nil {
			return err
		}
	}
	// Readers must not find two models, if there was one before.
	before, err := filepath.Glob(filepath.Join(dir, "model-?????-of-?????.safetensors"))
	if err != nil {
		return err
	}
	for _, path := range append(before, filepath.Join(dir, stale)) {
		if slices.Contains(names, filepath.Base(path)) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// exported lists the tensors of a parameter in Hugging Face's form.
func exported(p Exported, form hfForm, dtype tensor.DType) []weights.Streamed {
	one := func(name string, shape []int, write func(*exporter) error) weights.Streamed {
		n := 1
		for _, d := range shape {
			n *= d
		}
		info := weights.Info{Name: name, DType: dtype, Shape: shape, Bytes: int64(dtype.RowBytes(n))}
		return weights.Streamed{Info: info, Write: func(w io.Writer) (err error) {
			values, err := p.Open()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, values.Close()) }()
			return write(&exporter{name: p.Name, values: values, w: w, dtype: dtype})
		}}
	}
	elements := 1
	for _, d := range p.Shape {
		elements *= d
	}
	switch {
	case form.conv1D:
		rows, cols := p.Shape[0], p.Shape[1]
		return []weights.Streamed{one(p.Name, []int{cols, rows}, func(e *exporter) error {
			return e.transposed(rows, cols)
		})}
	case form.interleaved != 0:
		shape, _ := interleave(p.Shape, nil, form.interleaved)
		return []weights.Streamed{one(p.Name, shape, func(e *exporter) error {
			return e.interleaved(p.Shape, form.interleaved)
		})}
	case form.parts != nil: // a stack of experts
		var out []weights.Streamed
		n := len(form.parts)
		rows, cols := p.Shape[1]/n, p.Shape[2]
		for x := range p.Shape[0] {
			for i, part := range form.parts {
				from := (x*n + i) * rows * cols
				out = append(out, one(expertName(part, x), []int{rows, cols}, func(e *exporter) error {
					return e.copy(from, rows*cols)
				}))
			}
		}
		return out
	}
	return []weights.Streamed{one(cmp.Or(form.name, p.Name), p.Shape, func(e *exporter) error {
		return e.copy(0, elements)
	})}
}

// exporter writes the elements of a parameter in another order and type.
type exporter struct {
	name   string
	values Values
	w      io.Writer
	dtype  tensor.DType
	raw    []byte
}

// read reads elements from an index on.
func (e *exporter) read(dst []float32, from int) error {
	e.raw = slices.Grow(e.raw[:0], 4*len(dst))[:4*len(dst)]
	if n, err := e.values.ReadAt(e.raw, int64(4*from)); n < len(e.raw) {
		return fmt.Errorf("read %s: %w", e.name, err)
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(e.raw[4*i:]))
	}
	return nil
}

func (e *exporter) write(x []float32) error {
	_, err := e.w.Write(encode(x, e.dtype))
	return err
}

// copy writes n elements from an index on.
func (e *exporter) copy(from, n int) error {
	buf := make([]float32, min(n, exportPiece))
	for done := 0; done < n; done += len(buf) {
		buf = buf[:min(len(buf), n-done)]
		if err := e.read(buf, from+done); err != nil {
			return err
		}
		if err := e.write(buf); err != nil {
			return err
		}
	}
	return nil
}

// transposed writes a matrix [rows,cols] as [cols,rows], as many columns at once as fit into memory.
func (e *exporter) transposed(rows, cols int) error {
	at := max(1, exportPiece/max(1, rows))
	for lo := 0; lo < cols; lo += at {
		n := min(at, cols-lo)
		block := make([]float32, rows*n) // [rows,n]
		for r := range rows {
			if err := e.read(block[r*n:(r+1)*n], r*cols+lo); err != nil {
				return err
			}
		}
		if err := e.write(transpose(block, rows, n)); err != nil {
			return err
		}
	}
	return nil
}

// interleaved writes a stack of experts as interleave says, one expert after the other.
func (e *exporter) interleaved(shape []int, n int) error {
	one := slices.Clone(shape)
	one[0] = 1
	size := 1
	for _, d := range one {
		size *= d
	}
	buf := make([]float32, size)
	for x := range shape[0] {
		if err := e.read(buf, x*size); err != nil {
			return err
		}
		_, turned := interleave(one, buf, n)
		if err := e.write(turned); err != nil {
			return err
		}
	}
	return nil
}

// hfForm describes a parameter that Hugging Face's files hold in another form.
type hfForm struct {
	name   string
	conv1D bool
	parts  []string // names of each expert's tensors, %d in place of its index

	// interleaved is the number of matrices whose outputs alternate in a stack of GPT-OSS's experts; 0
	// for other parameters.
	interleaved int
}

// hfLayout lists the parameters that Hugging Face's files hold in another form.
func (s *Spec) hfLayout() map[string]hfForm {
	out := map[string]hfForm{}
	for i := range s.Layers {
		l := &s.Layers[i]
		for _, m := range l.linears() {
			if m.Conv1D || m.HF != "" {
				name := ""
				if m.HF != "" {
					name = m.HF + ".weight"
				}
				out[m.Param+".weight"] = hfForm{name: name, conv1D: m.Conv1D}
			}
		}
		if x := l.FFN.Experts; x != nil && x.InterleavedHF {
			for part, n := range map[string]int{"gate_up_proj": 2, "down_proj": 1} {
				out[x.Stack+"."+part], out[x.Stack+"."+part+"_bias"] = hfForm{interleaved: n}, hfForm{interleaved: n}
			}
		} else if x != nil {
			var parts []string
			for _, n := range []Name{x.Gate, x.Up, x.Down} {
				name := n.Param
				if n.HF != "" {
					name = n.HF
				}
				parts = append(parts, name+".weight")
			}
			out[x.Stack+".gate_up_proj"], out[x.Stack+".down_proj"] = hfForm{parts: parts[:2]},
				hfForm{parts: slices.Clone(parts[2:])}
		}
	}
	return out
}

// interleave returns a stack of experts [E,n·F,I], or its biases [E,n·F], as GPT-OSS's files hold it:
// inputs first, and the outputs of the n matrices alternating, [E,I,n·F]. Without data it returns the shape.
func interleave(shape []int, data []float32, n int) (turned []int, out []float32) {
	experts, rows, cols := shape[0], shape[1], 1
	turned = []int{experts, rows}
	if len(shape) > 2 {
		cols = shape[2]
		turned = []int{experts, cols, rows}
	}
	if data == nil {
		return turned, nil
	}
	out = make([]float32, len(data))
	for e := range experts {
		from, to := data[e*rows*cols:], out[e*rows*cols:]
		for r := range rows {
			at := r%(rows/n)*n + r/(rows/n)
			for c := range cols {
				to[c*rows+at] = from[r*cols+c]
			}
		}
	}
	return turned, out
}

func encode(x []float32, dtype tensor.DType) []byte {
	out := make([]byte, 0, dtype.RowBytes(len(x)))
	for _, v := range x {
		if dtype == tensor.BF16 {
			out = binary.LittleEndian.AppendUint16(out, tensor.BFloat16bits(v))
		} else {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
	}
	return out
}
