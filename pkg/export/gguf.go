package export

import (
	"context"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/quant"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Options are the settings of GGUF.
type Options struct {
	Recipe Recipe
	// Importance has the mean squares of the activations that the columns of a tensor are multiplied by: one for each
	// column, and where experts are stacked one for each column of each expert.
	Importance map[string][]float32
	// Workers is the number of goroutines that quantise; 0 means one for each processor.
	Workers int
	// Progress, if set, is called after each tensor with its name, its type and how many of the tensors are written.
	Progress func(name string, d tensor.DType, done, all int)
}

// Result says what was written.
type Result struct {
	Kinds []Stat // by kind
	Total Stat
}

// source is a model that is to be written to a GGUF file.
type source struct {
	fields  []weights.Field
	tensors []model.Stored
	shape   shape
	check   func(layout weights.GGUFLayout, dir string) error
	relax   func()
}

// ToGGUF writes a Hugging Face model to a GGUF file. v is its vocabulary, or nil for a file without one. The error
// is an *model.UnsupportedError or a *vocab.FormatError for a model or a vocabulary that llama.cpp's metadata
// cannot express.
func ToGGUF(ctx context.Context, path string, f *model.Files, v *vocab.Vocab, o Options) (Result, error) {
	fields, tensors, err := f.GGUFForm()
	if err != nil {
		return Result{}, err
	}
	fields = append(fields, weights.Field{Key: "general.name", Value: f.Name()})
	if v == nil {
		fields = append(fields, weights.Field{Key: "tokenizer.ggml.model", Value: "none"})
	} else {
		described, err := v.GGUF(f.Spec.Vocab)
		if err != nil {
			return Result{}, err
		}
		for _, d := range described {
			fields = append(fields, weights.Field{Key: d.Key, Value: d.Value})
		}
	}
	s := source{fields: fields, tensors: tensors, relax: f.Source.Relax, shape: shape{layers: len(f.Spec.Layers)}}
	s.shape.tied = f.Spec.Head.Tied
	for l := range f.Spec.Layers {
		if x := f.Spec.Layers[l].FFN.Experts; x != nil {
			s.shape.experts = x.Count
		}
	}
	s.check = func(layout weights.GGUFLayout, dir string) error { return f.CheckGGUF(layout, tensors, dir) }
	return s.write(ctx, path, o)
}

// Requantize writes a GGUF model with other types. Metadata and tensors that are no weight matrices are copied. A
// matrix that has its new type already is copied, too.
func Requantize(ctx context.Context, path string, g *weights.GGUF, o Options) (Result, error) {
	s := source{relax: g.Relax}
	for _, key := range g.Meta().Keys() {
		if key == "general.file_type" || key == "general.quantization_version" || key == "general.alignment" ||
			strings.HasPrefix(key, "split.") {
			continue
		}
		encoded, _ := g.Meta().Encoded(key)
		s.fields = append(s.fields, weights.Field{Key: key, Value: encoded})
	}
	arch, _ := g.Meta().String("general.architecture")
	layers, _ := g.Meta().Uint(arch + ".block_count")
	experts, _ := g.Meta().Uint(arch + ".expert_count")
	s.shape = shape{layers: int(min(layers, 1<<16)), experts: int(min(experts, 1<<16)), tied: true}
	names := slices.Clone(g.Names())
	slices.SortFunc(names, order)
	for _, name := range names {
		info, _ := g.Info(name)
		if name == "output.weight" {
			s.shape.tied = false
		}
		s.tensors = append(s.tensors, stored(g, info))
	}
	return s.write(ctx, path, o)
}

// stored describes a tensor of a GGUF file.
func stored(g *weights.GGUF, info weights.Info) model.Stored {
	pieces := 1
	if len(info.Shape) > 2 {
		pieces = info.Shape[0]
	}
	switch info.DType {
	case tensor.I8, tensor.I16, tensor.I32, tensor.I64, tensor.U8, tensor.Bool, tensor.F64:
	default:
		if len(info.Shape) > 1 && !plainMatrix(info.Name) {
			raw := func(i int) ([]byte, error) {
				data, err := g.Data(info.Name)
				if err != nil {
					return nil, err
				}
				size := len(data) / pieces
				return data[i*size : (i+1)*size], nil
			}
			return model.Stored{
				Name:   info.Name,
				Shape:  info.Shape,
				Matrix: true,
				Pieces: pieces,
				DType:  info.DType,
				Raw:    raw,
				Piece: func(i int) ([]float32, error) {
					data, err := raw(i)
					if err != nil {
						return nil, err
					}
					x := make([]float32, info.Elements()/pieces)
					tensor.Dequantize(x, data, info.DType)
					return x, nil
				},
			}
		}
	}
	return model.Stored{Name: info.Name, Shape: info.Shape, Pieces: 1, DType: info.DType,
		Raw: func(int) ([]byte, error) { return g.Data(info.Name) }}
}

// plan returns the type that each tensor gets.
func (s *source) plan(o *Options) ([]tensor.DType, error) {
	out := make([]tensor.DType, len(s.tensors))
	s.shape.weighed = o.Importance != nil
	for i := range s.tensors {
		t := &s.tensors[i]
		_, layer := kindOf(t.Name)
		row := t.Shape[len(t.Shape)-1]
		switch {
		case !t.Matrix && t.Piece == nil:
			out[i] = t.DType // copied
		case !t.Matrix:
			out[i] = tensor.F32
		case t.DType == tensor.MXFP4 && o.Recipe.base != tensor.F32:
			out[i] = t.DType // has four bits already, and others only lose
		default:
			out[i] = o.Recipe.typeOf(t.Name, layer, row, s.shape)
		}
		if want := row; t.Matrix && o.Importance[t.Name] != nil {
			if t.Pieces > 1 {
				want *= t.Pieces
			}
			if got := len(o.Importance[t.Name]); got != want && got != row {
				return nil, fault.Field("imatrix", "tensor %s: %d importances for %d columns", t.Name, got, want)
			}
		}
	}
	return out, nil
}

// write writes the file.
func (s *source) write(ctx context.Context, path string, o Options) (Result, error) {
	types, err := s.plan(&o)
	if err != nil {
		return Result{}, err
	}
	fields := append(slices.Clone(s.fields), weights.Field{Key: "general.file_type", Value: o.Recipe.fileType})
	if o.Recipe.Quantised() {
		fields = append(fields, weights.Field{Key: "general.quantization_version", Value: uint32(2)})
	}
	gather := newReport()
	infos, streamed := make([]weights.Info, len(types)), make([]weights.Streamed, len(types))
	for i, d := range types {
		t := &s.tensors[i]
		n := t.Elements()
		infos[i] = weights.Info{Name: t.Name, DType: d, Shape: t.Shape, Bytes: int64(d.RowBytes(n))}
		streamed[i] = weights.Streamed{Info: infos[i], Write: func(w io.Writer) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			sum, err := s.tensor(ctx, w, t, d, &o)
			if err != nil {
				return fmt.Errorf("write %s: %w", t.Name, err)
			}
			gather.add(t.Name, d, int64(n), infos[i].Bytes, sum)
			s.relax()
			if o.Progress != nil {
				o.Progress(t.Name, d, i+1, len(types))
			}
			return nil
		}}
	}
	if s.check != nil {
		layout, err := weights.LayoutGGUF(fields, infos)
		if err == nil {
			err = s.check(layout, filepath.Dir(path))
		}
		if err != nil {
			return Result{}, err
		}
	}
	err = weights.WriteFile(path, func(w io.Writer) error { return weights.StreamGGUF(w, fields, streamed) })
	if err != nil {
		return Result{}, err
	}
	var r Result
	r.Kinds, r.Total = gather.list()
	return r, nil
}

// tensor writes one tensor piece by piece.
func (s *source) tensor(ctx context.Context, w io.Writer, t *model.Stored, d tensor.DType, o *Options) (sum sums,
	err error) {
	importance := o.Importance[t.Name]
	row := t.Shape[len(t.Shape)-1]
	for i := range t.Pieces {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		if t.Raw != nil && t.DType == d {
			raw, err := t.Raw(i)
			if err != nil {
				return sum, err
			}
			if _, err := w.Write(raw); err != nil {
				return sum, err
			}
			continue
		}
		x, err := t.Piece(i)
		if err != nil {
			return sum, err
		}
		of := importance
		if len(importance) > row {
			of = importance[i*row : (i+1)*row]
		}
		out, piece, err := quantize(x, row, d, of, o.Workers)
		if err != nil {
			return sum, err
		}
		sum.add(piece)
		if _, err := w.Write(out); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// chunkLen is about how many elements a worker quantises at once.
const chunkLen = 1 << 15

// quantize encodes rows of row elements and compares them with the source. The sums are added in the order of rows, so
// they do not depend on the number of workers.
func quantize(x []float32, row int, d tensor.DType, importance []float32, workers int) ([]byte, sums, error) {
	if workers < 1 {
		workers = runtime.GOMAXPROCS(0)
	}
	out := make([]byte, d.RowBytes(len(x)))
	per := max(1, chunkLen/row)
	rows := len(x) / row
	chunks := (rows + per - 1) / per
	found := make([]sums, chunks)
	bad := make([]int, chunks)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(workers, chunks) {
		wg.Go(func() {
			back := make([]float32, row)
			for c := range next {
				bad[c] = -1
				for r := c * per; r < min((c+1)*per, rows); r++ {
					from, to := x[r*row:(r+1)*row], out[d.RowBytes(r*row):d.RowBytes((r+1)*row)]
					if at := notFinite(from); at >= 0 {
						bad[c] = r*row + at
						break
					}
					quant.Quantize(to, from, d, importance)
					tensor.Dequantize(back, to, d)
					found[c].compare(from, back)
				}
			}
		})
	}
	for c := range chunks {
		next <- c
	}
	close(next)
	wg.Wait()
	var sum sums
	for c := range chunks {
		if at := bad[c]; at >= 0 {
			return nil, sum, fault.New(fault.DataLoss, "element %d is %g: want finite weights", at, x[at])
		}
		sum.add(found[c])
	}
	return out, sum, nil
}

// notFinite returns the index of the first element that is infinite or not a number, or -1.
func notFinite(x []float32) int {
	for i, v := range x {
		if v-v != 0 || math.IsNaN(float64(v)) {
			return i
		}
	}
	return -1
}
