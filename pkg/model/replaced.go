package model

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// replaced fills a stage from files, but takes the tensors that an adapter saves from the adapter.
type replaced[F tensor.Float] struct {
	*loader[F]
	adapter *adapter.Adapter
	pairs   func(module string) bool
	headDim int
	own     bool // all tensors of modules_to_save get memory of their own, to be trained
}

// WithSaved returns the spec of a model beside an adapter that saves modules. As in PEFT, an embedding or a head that
// is saved is no longer tied to the other one, which keeps the weight of the base.
func (s Spec) WithSaved(saves func(module string) bool) Spec {
	if saves(s.Embedding.Tokens.Param) || saves(s.Head.Param) {
		s.Head.Tied = false
	}
	return s
}

// replacing returns a filler that prefers the saved tensors of an adapter, and the spec of the stage.
func (l *loader[F]) replacing(a *adapter.Adapter, spec Spec) (filler[F], Spec) {
	if len(a.Saved) == 0 {
		return l, spec
	}
	return l.replacer(a, spec, func(module string) bool {
		_, ok := a.Replaced(module + ".weight")
		return ok
	})
}

// training returns a filler that puts the modules that an adapter saves into memory of their own, with the values of
// the adapter or else those of the files, and the spec of the stage.
func (l *loader[F]) training(a *adapter.Adapter, spec Spec) (filler[F], Spec) {
	if len(a.Save) == 0 {
		return l, spec
	}
	r, spec := l.replacer(a, spec, a.Saves)
	r.own = true
	return r, spec
}

func (l *loader[F]) replacer(a *adapter.Adapter, spec Spec, saves func(module string) bool) (*replaced[F], Spec) {
	if tied := spec.Head.Tied; tied {
		if spec = spec.WithSaved(saves); !spec.Head.Tied {
			l.untied = spec.Head.Param
		}
	}
	return &replaced[F]{loader: l, adapter: a, pairs: spec.Pairs, headDim: spec.Layers[0].Attention.HeadDim}, spec
}

// values returns the values that replace a tensor, in the order that the stage's spec has; nil for none.
func (r *replaced[F]) values(w wanted, shape ...int) ([]F, error) {
	s, ok := r.adapter.Replaced(w.Param + w.end)
	if !ok {
		return nil, nil
	}
	if fmt.Sprint(s.Shape) != fmt.Sprint(shape) {
		return nil, &adapter.FieldError{File: adapter.WeightsFile, Field: s.Name,
			Msg: fmt.Sprintf("want shape %v, got %v", shape, s.Shape)}
	}
	out := convert[F](s.Data)
	if r.pairs(w.Param) {
		cols := len(out) / shape[0]
		out = pair(out, cols, r.headDim)
	}
	return out, nil
}

func (r *replaced[F]) matrix(w wanted) (kernel.Matrix[F], error) {
	shape := []int{w.rows, w.cols}
	if w.conv1D { // PEFT saves it as Hugging Face's files hold it
		shape = []int{w.cols, w.rows}
	}
	values, err := r.values(w, shape...)
	if err != nil {
		return kernel.Matrix[F]{}, err
	}
	if values == nil {
		m, err := r.loader.matrix(w)
		if err == nil && m.Dense == nil && r.owns(w) {
			m = r.decoded(m.Rows, m.Cols, m.Raw, m.DType)
		}
		return m, err
	}
	if w.conv1D {
		values = transpose(values, w.cols, w.rows)
	}
	return kernel.Matrix[F]{Rows: w.rows, Cols: w.cols, Dense: values}, nil
}

// owns reports whether a tensor of the files gets memory of its own.
func (r *replaced[F]) owns(w wanted) bool { return r.own && r.adapter.Saves(w.Param) }

func (r *replaced[F]) vector(w wanted) ([]F, error) {
	values, err := r.values(w, w.rows)
	if err != nil {
		return nil, err
	}
	if w.role == gainTensor && r.files.gguf != nil && !r.dense && (values != nil || r.owns(w)) {
		return nil, &adapter.UnsupportedError{File: adapter.ConfigFile, Field: "modules_to_save", Value: w.Param,
			Supported: "norms over Hugging Face folders"}
	}
	if values != nil {
		return values, nil
	}
	return r.loader.vector(w)
}
