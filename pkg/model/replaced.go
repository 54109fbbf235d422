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
}

// replacing returns a filler that prefers the saved tensors of an adapter, and the spec of the stage. As in PEFT,
// an embedding or a head that is saved is no longer tied to the other one, which keeps the weight of the base.
func (l *loader[F]) replacing(a *adapter.Adapter, spec Spec) (filler[F], Spec) {
	if len(a.Saved) == 0 {
		return l, spec
	}
	_, tokens := a.Replaced(spec.Embedding.Tokens.Param + ".weight")
	_, head := a.Replaced(spec.Head.Param + ".weight")
	if spec.Head.Tied && (tokens || head) {
		spec.Head.Tied, l.untied = false, spec.Head.Param
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
	values, err := r.values(w, w.rows, w.cols)
	if err != nil || values == nil {
		if err == nil {
			return r.loader.matrix(w)
		}
		return kernel.Matrix[F]{}, err
	}
	return kernel.Matrix[F]{Rows: w.rows, Cols: w.cols, Dense: values}, nil
}

func (r *replaced[F]) vector(w wanted) ([]F, error) {
	values, err := r.values(w, w.rows)
	if err != nil || values != nil {
		if values != nil && w.role == gainTensor && r.files.gguf != nil && !r.dense {
			return nil, &adapter.UnsupportedError{File: adapter.ConfigFile, Field: "modules_to_save", Value: w.Param,
				Supported: "norms over Hugging Face folders"}
		}
		return values, err
	}
	return r.loader.vector(w)
}
