package model

import (
	"bytes"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Exported lists the parameters of an open model for ExportFiles, with the description of the model in Hugging Face's
// form: queries and keys of GGUF files are put in its order, and Gemma's gains in its form. A parameter is decoded to
// float32 when it is opened.
func (f *Files) Exported() (Spec, []Exported, error) {
	spec, err := f.Dense()
	if err != nil {
		return Spec{}, nil, err
	}
	l := &loader[float32]{files: f, dense: true, minusOne: spec.Norm.OnePlus && !f.Spec.Norm.OnePlus}
	if from := f.Spec.Rope(); from != nil && from.Interleaved {
		l.unpair = spec.Layers[0].Attention.HeadDim
	}
	list := &exportedList{from: l}
	if _, err := build[float32](spec, Range{Hi: len(spec.Layers)}, nowhere{}, list); err != nil {
		return Spec{}, nil, err
	}
	return spec, list.all, nil
}

// exportedList is a filler that lists parameters.
type exportedList struct {
	blank
	from *loader[float32]
	all  []Exported
}

func (l *exportedList) add(name string, shape []int, read func() ([]float32, error)) {
	l.all = append(l.all, Exported{Name: name, Shape: shape, Open: func() (Values, error) {
		x, err := read()
		if err != nil {
			return nil, err
		}
		return memoryValues{bytes.NewReader(encode(x, tensor.F32))}, nil
	}})
}

func (l *exportedList) matrix(w wanted) (kernel.Matrix[float32], error) {
	l.add(w.Param+w.end, []int{w.rows, w.cols}, func() ([]float32, error) {
		m, err := l.from.matrix(w)
		return m.Dense, err
	})
	return l.blank.matrix(w)
}

func (l *exportedList) vector(v wanted) ([]float32, error) {
	l.add(v.Param+v.end, []int{v.rows}, func() ([]float32, error) { return l.from.vector(v) })
	return nil, nil
}

// expert lists the stack of a part of all experts when its first matrix is asked for. The matrices of gate and up are
// next to each other in theirs.
func (l *exportedList) expert(x *Experts, e int, p expertPart, w wanted) (kernel.Matrix[float32], error) {
	if e == 0 && p != upPart {
		param, parts, which := x.stack(p)
		l.add(param, []int{x.Count, parts * w.rows, w.cols}, func() ([]float32, error) {
			out := make([]float32, 0, x.Count*parts*w.rows*w.cols)
			for e := range x.Count {
				for i := range parts {
					m, err := l.from.expert(x, e, expertPart(int(p)-which+i), w)
					if err != nil {
						return nil, err
					}
					out = appended(out, m.Dense)
				}
			}
			return out, nil
		})
	}
	return l.blank.matrix(w)
}

func (l *exportedList) expertBias(x *Experts, e int, p expertPart, v wanted) ([]float32, error) {
	if e == 0 && p != upPart {
		param, parts, which := x.stack(p)
		l.add(param+"_bias", []int{x.Count, parts * v.rows}, func() ([]float32, error) {
			var out []float32
			for e := range x.Count {
				for i := range parts {
					b, err := l.from.expertBias(x, e, expertPart(int(p)-which+i), v)
					if err != nil {
						return nil, err
					}
					out = append(out, b...)
				}
			}
			return out, nil
		})
	}
	return nil, nil
}

// appended appends the elements of a matrix that was decoded on the host.
func appended(dst, src []float32) []float32 { return append(dst, src...) }
