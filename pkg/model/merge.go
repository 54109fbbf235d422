package model

import (
	"bytes"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Merged returns the parameters of a model with an adapter merged into them, and the spec of the result, for
// ExportFiles. A matrix becomes W + s·B·A, computed in float64 and rounded once to float32. A tied embedding
// or head that has an adapter is no longer tied, so that the merged model computes what base and adapter do.
// Weights are read a layer at a time, so the model may be larger than the memory. f must stay open until the
// parameters are written.
func Merged(f *Files, a *adapter.Adapter) ([]Exported, Spec, error) {
	spec, err := f.Dense()
	if err != nil {
		return nil, spec, err
	}
	if err := spec.CheckAdapter(a); err != nil {
		return nil, spec, err
	}
	apart := func(module string) bool {
		_, adapted := a.Module(module)
		_, saved := a.Replaced(module + ".weight")
		return adapted || saved
	}
	tied := spec.Head.Tied
	if apart(spec.Head.Param) || apart(spec.Embedding.Tokens.Param) {
		spec.Head.Tied = false
	}
	params, err := spec.Parameters()
	if err != nil {
		return nil, spec, err
	}
	m := &merger{files: f, adapter: a, spec: spec, tied: tied && !spec.Head.Tied, layer: -1}
	var out []Exported
	for _, p := range params {
		if p.TiedTo != "" {
			continue
		}
		out = append(out, Exported{Name: p.Name, Shape: p.Shape, Open: func() (Values, error) {
			values, err := m.param(p.Name)
			if err != nil {
				return nil, err
			}
			return memoryValues{bytes.NewReader(encode(values, tensor.F32))}, nil
		}})
	}
	return out, spec, nil
}

// merger reads and merges parameters, layer by layer.
type merger struct {
	files   *Files
	adapter *adapter.Adapter
	spec    Spec
	tied    bool // the files tie the head, the result does not
	layer   int  // of stage; -1 for none
	stage   *Stage[float32]
}

// param returns the merged values of a parameter.
func (m *merger) param(name string) ([]float32, error) {
	layer := 0
	one := make([]Range, len(m.spec.Layers))
	for i := range one {
		one[i] = Range{i, i + 1}
	}
	if at := m.spec.Holders(name, one); len(at) > 0 {
		layer = at[0]
	}
	if m.layer != layer {
		m.stage = nil // let its memory go first
		stage, err := Load(m.files, one[layer], ref.New[float32](), LoadOptions{Dense: true, Adapter: m.saved()})
		if err != nil {
			return nil, err
		}
		m.stage, m.layer = stage, layer
	}
	p, ok := m.stage.Params().Get(name)
	if !ok {
		return nil, fault.New(fault.Internal, "merge %s: layer %d does not hold it", name, layer)
	}
	module, isWeight := strings.CutSuffix(name, ".weight")
	low, adapted := m.adapter.Module(module)
	if !isWeight || !adapted {
		return p.Data, nil
	}
	out := make([]float32, len(p.Data))
	Merge(out, p.Data, low)
	return out, nil
}

// saved returns the part of the adapter that replaces tensors.
func (m *merger) saved() *adapter.Adapter {
	out := &adapter.Adapter{Config: m.adapter.Config, Saved: m.adapter.Saved}
	out.DoRA = false
	return out
}

// Merge overwrites dst with a module's matrix W[Out,In] and its adapter merged; for an embedding W is [In,Out].
func Merge(dst, w []float32, m *adapter.Module) {
	cols := m.In
	if m.Embeds {
		cols = m.Out
	}
	sum := make([]float64, cols)
	for row := range len(w) / cols {
		for i, v := range w[row*cols : (row+1)*cols] {
			sum[i] = float64(v)
		}
		for k := range m.Rank {
			if m.Embeds { // W[v,c] + s·Σ A[k,v]·B[c,k]
				f := m.Scale * float64(m.A[k*m.In+row])
				for c := range sum {
					sum[c] += f * float64(m.B[c*m.Rank+k])
				}
				continue
			}
			f := m.Scale * float64(m.B[row*m.Rank+k])
			for i, v := range m.A[k*m.In : (k+1)*m.In] {
				sum[i] += f * float64(v)
			}
		}
		factor := 1.0
		if m.Magnitude != nil {
			var squares float64
			for _, v := range sum {
				squares += v * v
			}
			factor = float64(m.Magnitude[row]) / math.Sqrt(squares)
		}
		for i, v := range sum {
			dst[row*cols+i] = float32(factor * v)
		}
	}
}
