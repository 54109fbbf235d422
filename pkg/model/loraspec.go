package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Linears lists the modules of a model that an adapter may be for, with the sizes of their matrices [Out,In].
// The matrices of experts and their routers are not among them.
func (s *Spec) Linears() ([]LinearInfo, error) {
	params, err := s.Parameters()
	if err != nil {
		return nil, err
	}
	shapes := map[string][]int{}
	for _, p := range params {
		shapes[p.Name] = p.Shape
	}
	var out []LinearInfo
	add := func(module string, t LinearInfo) {
		if shape := shapes[module+".weight"]; len(shape) == 2 {
			t.Module, t.Out, t.In = module, shape[0], shape[1]
			if t.Embeds { // its input is a token
				t.In, t.Out = shape[0], shape[1]
			}
			out = append(out, t)
		}
	}
	add(s.Embedding.Tokens.Param, LinearInfo{Target: adapter.Target{Embeds: true}, Layer: -1})
	for i := range s.Layers {
		l := &s.Layers[i]
		for _, m := range l.linears() {
			if x := l.FFN.Experts; x == nil || m != &x.Router {
				add(m.Param, LinearInfo{Layer: i})
			}
		}
	}
	add(s.Head.Param, LinearInfo{Target: adapter.Target{Head: true}, Layer: len(s.Layers)})
	return out, nil
}

// LinearInfo is a module with a matrix.
type LinearInfo struct {
	adapter.Target
	In, Out int
	Layer   int // -1 of the embedding, the number of layers of the head
}

// CheckAdapter checks that the modules of an adapter and their sizes are those of the model.
func (s *Spec) CheckAdapter(a *adapter.Adapter) error {
	linears, err := s.Linears()
	if err != nil {
		return err
	}
	for i := range a.Modules {
		m := &a.Modules[i]
		at := slices.IndexFunc(linears, func(l LinearInfo) bool { return l.Module == m.Name })
		switch {
		case at < 0:
			return &adapter.FieldError{File: adapter.WeightsFile, Field: m.Name,
				Msg: "the model has no such module that an adapter can be for"}
		case m.In != linears[at].In || m.Out != linears[at].Out || m.Embeds != linears[at].Embeds:
			return &adapter.FieldError{File: adapter.WeightsFile, Field: m.Name,
				Msg: fmt.Sprintf("want %d inputs and %d outputs, got %d and %d", linears[at].In, linears[at].Out, m.In,
					m.Out)}
		}
	}
	return s.checkSaved(a.Saved)
}

// checkSaved checks that the tensors that an adapter saves and their shapes are those of the model. As in PEFT an
// embedding and a head are two modules, also if the model ties them.
func (s *Spec) checkSaved(saved []adapter.Saved) error {
	if len(saved) == 0 {
		return nil
	}
	apart := s.WithSaved(func(string) bool { return true })
	params, err := apart.Parameters()
	if err != nil {
		return err
	}
	for i := range saved {
		v := &saved[i]
		at := slices.IndexFunc(params, func(p Param[float32]) bool { return p.Name == v.Name })
		if at < 0 {
			return &adapter.FieldError{File: adapter.WeightsFile, Field: v.Name, Msg: "the model has no such parameter"}
		}
		base, end := splitParam(v.Name)
		if end == "" {
			return &adapter.UnsupportedError{File: adapter.ConfigFile, Field: "modules_to_save", Value: v.Name,
				Supported: "weights and biases of linear layers, embeddings and norms"}
		}
		shape := slices.Clone(params[at].Shape)
		if s.conv1D(base) {
			slices.Reverse(shape)
		}
		if !slices.Equal(v.Shape, shape) {
			return &adapter.FieldError{File: adapter.WeightsFile, Field: v.Name,
				Msg: fmt.Sprintf("want shape %v, got %v", shape, v.Shape)}
		}
	}
	return nil
}

// conv1D reports whether Hugging Face's files hold the matrix of a module transposed.
func (s *Spec) conv1D(module string) bool {
	return slices.ContainsFunc(s.Layers, func(l Layer) bool {
		return slices.ContainsFunc(l.linears(), func(m *Linear) bool { return m.Conv1D && m.Param == module })
	})
}

// SavedParams lists the parameters of the modules that an adapter saves, which are trained whole beside its low-rank
// parts. The error names a module that the model does not have, or that cannot be saved.
func (s *Spec) SavedParams(c *adapter.Config) ([]Param[float32], error) {
	if len(c.Save) == 0 {
		return nil, nil
	}
	const field = "adapter.modules_to_save"
	spec := s.WithSaved(c.Saves)
	params, err := spec.Parameters()
	if err != nil {
		return nil, err
	}
	var out []Param[float32]
	for _, name := range c.Save {
		one, found := adapter.Config{Save: []string{name}}, false
		for _, p := range params {
			base, end := splitParam(p.Name)
			if !one.Saves(base) {
				continue
			}
			if found = true; end == "" {
				return nil, fault.Field(field, "%s: experts and sinks of attention cannot be saved", p.Name)
			}
			if !slices.ContainsFunc(out, func(o Param[float32]) bool { return o.Name == p.Name }) {
				out = append(out, p)
			}
		}
		if !found {
			return nil, fault.Field(field, "the model has no module %q", name)
		}
	}
	slices.SortFunc(out, func(x, y Param[float32]) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// AsSaved returns the values of a parameter and its shape as PEFT saves them, which is as Hugging Face's files hold
// them. paired says that the rows of queries and keys are in the order of interleaved rotations, as in a GGUF file.
func (s *Spec) AsSaved(param string, values []float32, shape []int, paired bool) ([]float32, []int) {
	base, end := splitParam(param)
	if paired {
		return unpair(values, len(values)/shape[0], s.Layers[0].Attention.HeadDim), shape
	}
	if end == ".weight" && s.conv1D(base) {
		return transpose(values, shape[0], shape[1]), []int{shape[1], shape[0]}
	}
	return values, shape
}

// NewAdapterFor returns an adapter of the modules that a config selects, with initial values as PEFT has them:
// A uniform within 1/sqrt(I), B zero, so that the model starts as its base. Of an embedding A is zero and B
// normal. A value depends on the seed, the name of its tensor and the index only. Magnitudes of DoRA are left to
// the stages, which have the weights.
func (s *Spec) NewAdapterFor(c adapter.Config, seed uint64) (*adapter.Adapter, error) {
	linears, err := s.Linears()
	if err != nil {
		return nil, err
	}
	out := &adapter.Adapter{Config: c}
	for _, l := range linears {
		if !c.Selects(l.Target) {
			continue
		}
		rank, scale := c.For(l.Module)
		m := adapter.Module{Name: l.Module, Rank: rank, Scale: scale, In: l.In, Out: l.Out, Embeds: l.Embeds,
			A: make([]float32, rank*l.In), B: make([]float32, l.Out*rank)}
		if l.Embeds {
			if c.DoRA {
				return nil, fault.Field("adapter.dora", "is not possible for %s, an embedding", l.Module)
			}
			key := mix(seed ^ hashName(adapter.Name(l.Module, adapter.EmbedB)))
			for i := range m.B {
				m.B[i] = float32(normal(mix(key + uint64(i)*0x9e3779b97f4a7c15)))
			}
		} else {
			key := mix(seed ^ hashName(adapter.Name(l.Module, adapter.A)))
			bound := 1 / math.Sqrt(float64(l.In))
			for i := range m.A {
				u := float64(mix(key+uint64(i)*0x9e3779b97f4a7c15)>>11) / (1 << 53)
				m.A[i] = float32((2*u - 1) * bound)
			}
		}
		out.Modules = append(out.Modules, m)
	}
	if len(out.Modules) == 0 {
		var names []string
		for _, l := range linears {
			if name := l.Module[strings.LastIndexByte(l.Module, '.')+1:]; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		return nil, fault.Field("adapter.target_modules", "match no module; the model has %s",
			strings.Join(names, ", "))
	}
	slices.SortFunc(out.Modules, func(x, y adapter.Module) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// pairs reports whether the outputs of a module are in the order of interleaved rotations: those of queries
// and keys of a GGUF file that is used as it lies. Adapters are in Hugging Face's order.
func (s *Stage[F]) pairs(module string) bool { return s.Spec.Pairs(module) }

// Pairs reports whether the spec orders the outputs of a module in rotated pairs, unlike Hugging Face's files.
func (s *Spec) Pairs(module string) bool {
	rope := s.Rope()
	if rope == nil || !rope.Interleaved {
		return false
	}
	return slices.ContainsFunc(s.Layers, func(l Layer) bool {
		return l.Attention.Q.Param == module || l.Attention.K.Param == module
	})
}

// pair is the opposite of unpair: it puts the rows of each head into the order of interleaved rotations.
func pair[F tensor.Float](w []F, cols, headDim int) []F {
	out := make([]F, len(w))
	for r := range len(w) / cols {
		head, d := r/headDim*headDim, r%headDim
		from := head + d/2 + d%2*(headDim/2)
		copy(out[r*cols:(r+1)*cols], w[from*cols:(from+1)*cols])
	}
	return out
}

// Unpair puts rows of heads in the order of interleaved rotations into Hugging Face's order. Rows have cols
// elements.
func Unpair(w []float32, cols, headDim int) []float32 { return unpair(w, cols, headDim) }

// convert converts values to F.
func convert[F tensor.Float](x []float32) []F {
	out := make([]F, len(x))
	for i, v := range x {
		out[i] = F(v)
	}
	return out
}
