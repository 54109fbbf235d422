package model

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// filler provides the tensors of a stage, from files or at random.
type filler[F tensor.Float] interface {
	matrix(m wanted) (kernel.Matrix[F], error)
	vector(v wanted) ([]F, error)
	expert(x *Experts, e int, p expertPart, m wanted) (kernel.Matrix[F], error)
	expertBias(x *Experts, e int, p expertPart, v wanted) ([]F, error)
	packed() // called when the kernel set has packed the matrices of a layer
	// moved is called when the kernel set has packed a matrix of so many bytes. An error ends the building.
	moved(bytes int64) error
}

// wanted describes a tensor to fill: a matrix [rows,cols] or a vector [rows].
type wanted struct {
	Name
	end        string // ".weight", ".bias" or nothing
	rows, cols int
	role       role
	conv1D     bool // see Linear
}

// role tells fillers how a tensor is used.
type role int

const (
	plainTensor role = iota
	gainTensor
	rotatedTensor  // rows of queries or keys
	residualTensor // its product is added to the residual stream
	sinkTensor     // attention sinks
)

// expertPart is one of an expert's matrices.
type expertPart int

const (
	gatePart expertPart = iota
	upPart
	downPart
)

// name returns the part's name in the architecture's files.
func (x *Experts) name(p expertPart) Name { return [...]Name{x.Gate, x.Up, x.Down}[p] }

// stack returns the parameter that holds the part of all experts, the number of parts in
// that parameter and the index of this one.
func (x *Experts) stack(p expertPart) (param string, parts, which int) {
	if p == downPart {
		return x.Stack + ".down_proj", 1, 0
	}
	return x.Stack + ".gate_up_proj", 2, int(p)
}

// expertName puts an expert's index in place of %d.
func expertName(pattern string, e int) string {
	return strings.Replace(pattern, "%d", strconv.Itoa(e), 1)
}

// loader fills a stage from files.
type loader[F tensor.Float] struct {
	files    *Files
	dense    bool
	unpair   int  // head size, if rows of queries and keys must leave the interleaved order; else 0
	minusOne bool // the file stores 1 + gain for every gain
	// untied is the name of a head that the files tie to the embedding and the stage does not.
	untied   string
	progress func(bytes int64) error // as in LoadOptions
}

// raw returns the bytes of a tensor of float or block type, after checking its shape,
// outermost dimension first.
func (l *loader[F]) raw(file string, shape ...int) ([]byte, tensor.DType, error) {
	data, dtype, err := l.bytes(file, shape...)
	switch dtype {
	case tensor.I8, tensor.I16, tensor.I32, tensor.I64, tensor.U8, tensor.Bool:
		return nil, 0, &UnsupportedError{"type of " + file, dtype.String(), "float and block types"}
	}
	return data, dtype, err
}

// bytes is like raw, but takes any type.
func (l *loader[F]) bytes(file string, shape ...int) ([]byte, tensor.DType, error) {
	info, ok := l.files.Source.Info(file)
	if !ok {
		_, err := l.files.Source.Data(file) // names the file and the tensor
		return nil, tensor.F32, err
	}
	if fmt.Sprint(info.Shape) != fmt.Sprint(shape) {
		return nil, tensor.F32, &FieldError{file, fmt.Sprintf("want shape %v, got %v", shape, info.Shape)}
	}
	data, err := l.files.Source.Data(file)
	return data, info.DType, err
}

func (l *loader[F]) vector(v wanted) ([]F, error) {
	data, dtype, err := l.raw(l.files.tensor(v.Name, v.end), v.rows)
	if err != nil {
		return nil, err
	}
	out := make([]F, v.rows)
	tensor.Dequantize(out, data, dtype)
	if l.unpair > 0 && v.role == rotatedTensor {
		out = unpair(out, 1, l.unpair)
	}
	if l.minusOne && v.role == gainTensor {
		for i := range out {
			out[i]--
		}
	}
	return out, nil
}

func (l *loader[F]) matrix(m wanted) (kernel.Matrix[F], error) {
	if l.untied != "" && m.Param == l.untied {
		m.Name = l.files.Spec.Embedding.Tokens
	}
	transposed := m.conv1D && l.files.gguf == nil
	shape := []int{m.rows, m.cols}
	if transposed {
		shape = []int{m.cols, m.rows}
	}
	data, dtype, err := l.raw(l.files.tensor(m.Name, m.end), shape...)
	if err != nil {
		return kernel.Matrix[F]{Rows: m.rows, Cols: m.cols}, err
	}
	if transposed {
		out := l.decoded(m.rows, m.cols, data, dtype)
		out.Dense = transpose(out.Dense, m.cols, m.rows)
		return out, nil
	}
	out := l.hold(m.rows, m.cols, data, dtype)
	if l.unpair > 0 && m.role == rotatedTensor && out.Dense != nil {
		out.Dense = unpair(out.Dense, m.cols, l.unpair)
	}
	return out, nil
}

// hold returns a matrix in the form that the file has. It decodes float32 and float64 matrices, and
// for training all matrices.
func (l *loader[F]) hold(rows, cols int, data []byte, dtype tensor.DType) kernel.Matrix[F] {
	if !l.dense && dtype != tensor.F32 && dtype != tensor.F64 {
		return kernel.Matrix[F]{Rows: rows, Cols: cols, Raw: data, DType: dtype}
	}
	return l.decoded(rows, cols, data, dtype)
}

func (l *loader[F]) decoded(rows, cols int, data []byte, dtype tensor.DType) kernel.Matrix[F] {
	m := kernel.Matrix[F]{Rows: rows, Cols: cols, Dense: make([]F, rows*cols)}
	tensor.Dequantize(m.Dense, data, dtype)
	return m
}

// expert finds an expert's matrix in one of four forms: one tensor per matrix; in GGUF files, one
// tensor for the same matrix of all experts; one tensor for gate and up of all experts, as
// transformers stacks them; or the form of GPT-OSS (gptossfiles.go).
func (l *loader[F]) expert(x *Experts, e int, p expertPart, m wanted) (kernel.Matrix[F], error) {
	if l.files.gguf == nil && x.InterleavedHF {
		return l.interleavedExpert(x, e, p, m)
	}
	name := x.name(p)
	if l.files.gguf != nil {
		data, dtype, err := l.raw(l.files.tensor(name, ".weight"), x.Count, m.rows, m.cols)
		if err != nil {
			return kernel.Matrix[F]{Rows: m.rows, Cols: m.cols}, err
		}
		size := len(data) / x.Count
		return l.hold(m.rows, m.cols, data[e*size:(e+1)*size], dtype), nil
	}
	param, parts, which := x.stack(p)
	stack := l.files.tensor(Name{Param: param}, "")
	if _, ok := l.files.Source.Info(stack); !ok {
		m.Name = name.expert(e)
		return l.matrix(m)
	}
	data, dtype, err := l.raw(stack, x.Count, parts*m.rows, m.cols)
	if err != nil {
		return kernel.Matrix[F]{Rows: m.rows, Cols: m.cols}, err
	}
	size := m.rows * dtype.RowBytes(m.cols)
	at := (e*parts + which) * size
	return l.hold(m.rows, m.cols, data[at:at+size], dtype), nil
}

func (l *loader[F]) expertBias(x *Experts, e int, p expertPart, v wanted) ([]F, error) {
	if l.files.gguf == nil && x.InterleavedHF {
		return l.interleavedBias(x, e, p, v)
	}
	name := x.name(p)
	if l.files.gguf == nil {
		v.Name = name.expert(e)
		return l.vector(v)
	}
	data, dtype, err := l.raw(l.files.tensor(name, ".bias"), x.Count, v.rows)
	if err != nil {
		return nil, err
	}
	size := len(data) / x.Count
	out := make([]F, v.rows)
	tensor.Dequantize(out, data[e*size:(e+1)*size], dtype)
	return out, nil
}

func (l *loader[F]) packed() { l.files.Source.Relax() }

func (l *loader[F]) moved(bytes int64) error {
	if l.progress == nil {
		return nil
	}
	return l.progress(bytes)
}

// unpair reorders the rows of each head so that the rotated pairs (2i, 2i+1) become pairs
// (i, i+D/2). Rows have cols elements.
func unpair[F tensor.Float](w []F, cols, headDim int) []F {
	out := make([]F, len(w))
	for r := range len(w) / cols {
		head, d := r/headDim*headDim, r%headDim
		to := head + d/2 + d%2*(headDim/2)
		copy(out[to*cols:(to+1)*cols], w[r*cols:(r+1)*cols])
	}
	return out
}

// transpose turns x[r,c] into [c,r].
func transpose[F tensor.Float](x []F, r, c int) []F {
	out := make([]F, len(x))
	for i := range r {
		for j := range c {
			out[j*r+i] = x[i*c+j]
		}
	}
	return out
}
