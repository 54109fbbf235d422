package model

import (
	"fmt"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Param is a named tensor of parameters or of their gradients.
type Param[F tensor.Float] struct {
	Name   string
	Shape  []int // [N,I] for a matrix: row n holds the weights of output n
	Data   []F
	TiedTo string // the parameter whose weight this one shares, if any
}

// Params is a stage's parameters in the model's order.
type Params[F tensor.Float] struct{ Tensors []Param[F] }

// Get finds a tensor by name.
func (p *Params[F]) Get(name string) (Param[F], bool) {
	for _, t := range p.Tensors {
		if t.Name == name {
			return t, true
		}
	}
	return Param[F]{}, false
}

// Len is the number of elements, gradients of tied tensors counted apart.
func (p *Params[F]) Len() int {
	n := 0
	for _, t := range p.Tensors {
		n += len(t.Data)
	}
	return n
}

// at is a piece of a tensor.
func (p *Params[F]) at(s slot) []F { return p.Tensors[s.index].Data[s.from : s.from+s.len] }

// Params returns the live weights. A lone stage's tied head has the embedding's own
// slice for Data; the last of several stages holds a copy, kept equal by whoever
// steps both.
func (s *Stage[F]) Params() *Params[F] { return &s.params }

// NewGrads returns zeroed gradients for every parameter.
func (s *Stage[F]) NewGrads() *Params[F] {
	g := &Params[F]{}
	for _, t := range s.params.Tensors {
		n := 1
		for _, d := range t.Shape {
			n *= d
		}
		g.Tensors = append(g.Tensors, Param[F]{Name: t.Name, Shape: t.Shape, Data: make([]F, n), TiedTo: t.TiedTo})
	}
	return g
}

// loader fills a stage from files.
type loader[F tensor.Float] struct {
	files  *Files
	dense  bool
	unpair int // head size, where rows of queries and keys leave the interleaved order

	fromOne bool // gains in the file are 1 more than they are to be
}

// raw finds a tensor and checks its shape, outermost first.
func (l *loader[F]) raw(name string, shape ...int) ([]byte, tensor.DType, error) {
	file, expert, stacked := l.files.names.file(name), 0, false
	if l.files.names.stacked {
		if layer, e, part, ok := expertPart(name); ok {
			file, expert, stacked = l.files.names.file(layer+".mlp.experts."+part), e, true
			shape = append([]int{l.files.Config.Experts}, shape...)
		}
	}
	info, ok := l.files.Source.Info(file)
	if !ok {
		_, err := l.files.Source.Data(file) // the source's own words for it
		return nil, 0, err
	}
	if fmt.Sprint(info.Shape) != fmt.Sprint(shape) {
		return nil, 0, &FieldError{file, fmt.Sprintf("shape %v, want %v", info.Shape, shape)}
	}
	if strings.HasSuffix(file, "_blocks") || strings.HasSuffix(file, "_scales") {
		if info.DType != tensor.U8 {
			return nil, 0, &UnsupportedError{"type of " + file, info.DType.String(), "U8 is"}
		}
		data, err := l.files.Source.Data(file)
		return data, info.DType, err
	}
	switch info.DType {
	case tensor.I8, tensor.I16, tensor.I32, tensor.I64, tensor.U8, tensor.Bool:
		return nil, 0, &UnsupportedError{"type of " + file, info.DType.String(), "float and block types are"}
	}
	data, err := l.files.Source.Data(file)
	if err == nil && stacked {
		size := len(data) / shape[0]
		data = data[expert*size : (expert+1)*size]
	}
	return data, info.DType, err
}

func (l *loader[F]) vector(name string, n int) ([]F, error) {
	if layer, e, part, ok := expertPart(name); ok && l.files.names.interleaved {
		return l.fusedBias(layer, e, part, n)
	}
	data, dtype, err := l.raw(name, n)
	if err != nil {
		return nil, err
	}
	out := make([]F, n)
	tensor.Dequantize(out, data, dtype)
	if l.unpair > 0 && rotated(name) {
		out = unpair(out, 1, l.unpair)
	}
	if l.fromOne && isGain(name) {
		for i := range out {
			out[i]--
		}
	}
	return out, nil
}

func (l *loader[F]) matrix(name string, rows, cols int) (kernel.Matrix[F], error) {
	m := kernel.Matrix[F]{Rows: rows, Cols: cols}
	if layer, e, part, ok := expertPart(name); ok && l.files.names.interleaved {
		return l.fusedExpert(layer, e, part, rows, cols)
	}
	transposed := l.files.names.transposed(name)
	shape := []int{rows, cols}
	if transposed {
		shape = []int{cols, rows}
	}
	data, dtype, err := l.raw(name, shape...)
	if err != nil {
		return m, err
	}
	if !l.dense && !transposed && dtype != tensor.F32 && dtype != tensor.F64 {
		m.Raw, m.DType = data, dtype
		return m, nil
	}
	m.Dense = make([]F, rows*cols)
	tensor.Dequantize(m.Dense, data, dtype)
	if transposed {
		m.Dense = transpose(m.Dense, cols, rows)
	}
	if l.unpair > 0 && rotated(name) {
		m.Dense = unpair(m.Dense, cols, l.unpair)
	}
	return m, nil
}

// unpair reorders the rows of each head from interleaved pairs (2i, 2i+1) to halves
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

// random fills a stage with initial weights.
type random[F tensor.Float] struct {
	seed   uint64
	layers int
}

func (r *random[F]) vector(name string, n int) ([]F, error) {
	out := make([]F, n)
	if isGain(name) {
		for i := range out {
			out[i] = 1
		}
	}
	return out, nil
}

// isGain reports whether a vector is a norm's gain, which starts at 1.
func isGain(name string) bool { return len(name) > 7 && name[len(name)-7:] == ".weight" }

func (r *random[F]) matrix(name string, rows, cols int) (kernel.Matrix[F], error) {
	std := 0.02
	if residual(name) {
		std /= math.Sqrt(2 * float64(r.layers))
	}
	m := kernel.Matrix[F]{Rows: rows, Cols: cols, Dense: make([]F, rows*cols)}
	key := mix(r.seed ^ hashName(name))
	for i := range m.Dense {
		m.Dense[i] = F(std * normal(mix(key+uint64(i)*0x9e3779b97f4a7c15)))
	}
	return m, nil
}

// residual reports whether a matrix adds to the residual stream.
func residual(name string) bool {
	for _, end := range []string{"o_proj.weight", "down_proj.weight", "c_proj.weight"} {
		if len(name) > len(end) && name[len(name)-len(end):] == end {
			return true
		}
	}
	return false
}

// normal maps 64 random bits to a nearly normal variable: the centred sum of four
// uniform ones, scaled to variance 1. It uses no function whose last bit could
// differ between machines.
func normal(bits uint64) float64 {
	var sum int64
	for range 4 {
		sum += int64(bits & 0xffff)
		bits >>= 16
	}
	const scale = 1.7320508075688772 / 65536 // sqrt(3) over the unit
	return float64(sum-2*65535) * scale
}

// mix is SplitMix64's finalizer (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashName is FNV-1a over a tensor's name.
func hashName(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return h
}

func (l *loader[F]) packed() { l.files.Source.Relax() }

func (r *random[F]) packed() {}
