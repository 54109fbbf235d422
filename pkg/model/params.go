package model

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Param is a named tensor of parameters or of their gradients.
type Param[F tensor.Float] struct {
	Name   string
	Shape  []int // [N,I] for a matrix: row n holds the weights of output n
	Data   kernel.Buffer[F]
	TiedTo string // the parameter whose weight this one shares, if any
}

// Params are the parameters of a stage in the order of its layers, or their gradients.
type Params[F tensor.Float] struct{ Tensors []Param[F] }

// Get returns the tensor with a name.
func (p *Params[F]) Get(name string) (Param[F], bool) {
	for _, t := range p.Tensors {
		if t.Name == name {
			return t, true
		}
	}
	return Param[F]{}, false
}

// Len returns the number of elements. A tied head and its embedding both count.
func (p *Params[F]) Len() int {
	n := 0
	for _, t := range p.Tensors {
		n += len(t.Data)
	}
	return n
}

// at returns a piece of a tensor, or nil if the tensor has no memory or is not there.
func (p *Params[F]) at(s slot) kernel.Buffer[F] {
	if len(p.Tensors) == 0 || p.Tensors[s.index].Data == nil {
		return nil
	}
	return p.Tensors[s.index].Data[s.from : s.from+s.len]
}

// Params returns the weights themselves, not a copy. A tied head shares the slice of the embedding
// if both are on this stage. Otherwise it is a copy, and the optimizer keeps the two equal.
func (s *Stage[F]) Params() *Params[F] { return &s.params }

// NewGrads returns zeroed gradients for every parameter that is trained. The others have no memory.
func (s *Stage[F]) NewGrads() *Params[F] {
	g := &Params[F]{}
	for _, t := range s.params.Tensors {
		if !s.Trained(t.Name) {
			g.Tensors = append(g.Tensors, Param[F]{Name: t.Name, Shape: t.Shape, TiedTo: t.TiedTo})
			continue
		}
		n := 1
		for _, d := range t.Shape {
			n *= d
		}
		g.Tensors = append(g.Tensors, Param[F]{Name: t.Name, Shape: t.Shape, Data: s.memory.Alloc(n),
			TiedTo: t.TiedTo})
	}
	return g
}

// Owner returns the name under which the weight is stored. For a tied head it is that of the
// embedding.
func (p *Param[F]) Owner() string { return cmp.Or(p.TiedTo, p.Name) }

// Stepped lists the parameters whose weights the stage's optimizer steps, by name. A tied
// head is among them only on a stage without the embedding, where it is a copy.
func (s *Stage[F]) Stepped() []Param[F] {
	var out []Param[F]
	for _, p := range s.params.Tensors {
		if s.Trained(p.Name) && (p.TiedTo == "" || !s.First()) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Param[F]) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Tied reports whether the parameter shares the weight of another one. Only the stage of
// the other one counts and stores the weight and reports the norm of its gradient.
func (p *Param[F]) Tied() bool { return p.TiedTo != "" }

// TiedEnd returns this stage's parameter of a tied weight if the other one is on another stage: the
// embedding on the first stage, the head on the last one. Each has one of the two parts of the
// weight's gradient.
func (s *Stage[F]) TiedEnd() (name string, ok bool) {
	if !s.Spec.Head.Tied || s.First() == s.Last() || s.trained != nil {
		return "", false
	}
	if s.First() {
		return s.Spec.Embedding.Tokens.Param + ".weight", true
	}
	return s.Spec.Head.Param + ".weight", true
}

// FoldTied adds the gradient of a tied head to that of the embedding, by
// add(embedding, head), if p has both.
func (p *Params[F]) FoldTied(add func(dst, src kernel.Buffer[F])) {
	for _, t := range p.Tensors {
		if owner, ok := p.Get(t.TiedTo); ok && t.TiedTo != "" && t.Data != nil {
			add(owner.Data, t.Data)
		}
	}
}

// Holders lists the stages that hold a parameter. A tied embedding is on the first and the
// last stage, any other parameter on one, and a parameter that the model lacks on none.
func (s *Spec) Holders(param string, stages []Range) []int {
	last := len(stages) - 1
	if module, _, ok := adapter.Split(param); ok { // of the embedding and the head there is one on each side
		if module == s.Embedding.Tokens.Param {
			return []int{0}
		}
		param = module + ".weight"
	}
	base, end := splitParam(param)
	weight := end == ".weight"
	switch {
	case base == "": // the case for unnamed tensors of the spec
		return nil
	case weight && base == s.Embedding.Tokens.Param && s.Head.Tied && last > 0:
		return []int{0, last}
	case weight && (base == s.Embedding.Tokens.Param || base == s.Embedding.Positions.Param ||
		base == s.Embedding.Types.Param), s.Embedding.Norm.holds(base, end):
		return []int{0}
	case s.Norm.holds(base, end), weight && base == s.Head.Param:
		return []int{last}
	}
	for l := range s.Layers {
		if s.Layers[l].holds(base, end) {
			i := slices.IndexFunc(stages, func(r Range) bool { return l >= r.Lo && l < r.Hi })
			if i < 0 {
				return nil
			}
			return []int{i}
		}
	}
	return nil
}

// Hidden reports whether a parameter belongs to a layer, rather than to an embedding, the head or the norm before
// it. A tensor of an adapter belongs where its module does.
func (s *Spec) Hidden(param string) bool {
	if module, _, ok := adapter.Split(param); ok {
		param = module + ".weight"
	}
	base, end := splitParam(param)
	return slices.ContainsFunc(s.Layers, func(l Layer) bool { return l.holds(base, end) })
}

// EmbeddingPart is the part of a model that has the embeddings.
const EmbeddingPart = -1

// headPart is the part of a model that has the head and the norm before it.
func (s *Spec) headPart() int { return len(s.Layers) }

// PartOf returns the part of a model that a parameter belongs to: the index of a layer, EmbeddingPart, or the
// number of layers for the head and the norm before it. A tied head goes by its own name.
func (s *Spec) PartOf(param string) int {
	base, end := splitParam(param)
	for l := range s.Layers {
		if s.Layers[l].holds(base, end) {
			return l
		}
	}
	if base == s.Head.Param || s.Norm.holds(base, end) {
		return s.headPart()
	}
	return EmbeddingPart
}

// Parameters lists the names and shapes of a model's parameters, without their values.
func (s *Spec) Parameters() ([]Param[float32], error) {
	b, err := build[float32](*s, Range{Hi: len(s.Layers)}, nowhere{}, blank{})
	if err != nil {
		return nil, err
	}
	return b.params.Tensors, nil
}

// nowhere is a kernel set without memory, for stages that are only described.
type nowhere struct{ kernel.Set[float32] }

func (n nowhere) Scope() kernel.Memory[float32]          { return n }
func (nowhere) Alloc(int) kernel.Buffer[float32]         { return nil }
func (nowhere) AllocBF16(int) []uint16                   { return nil }
func (nowhere) Pack(*kernel.Matrix[float32])             {}
func (nowhere) Upload(kernel.Buffer[float32], []float32) {}
func (nowhere) Host(kernel.Buffer[float32]) []float32    { return nil }

// blank leaves all weights out.
type blank struct{}

func (blank) vector(wanted) ([]float32, error) { return nil, nil }

func (blank) matrix(w wanted) (kernel.Matrix[float32], error) {
	return kernel.Matrix[float32]{Rows: w.rows, Cols: w.cols}, nil
}

func (b blank) expert(_ *Experts, _ int, _ expertPart, w wanted) (kernel.Matrix[float32], error) {
	return b.matrix(w)
}

func (blank) expertBias(*Experts, int, expertPart, wanted) ([]float32, error) { return nil, nil }

func (blank) packed() {}

func (blank) moved(int64) error { return nil }

// splitParam splits a parameter's name into that of its Name and the ending.
func splitParam(param string) (base, end string) {
	for _, end := range []string{".weight", ".bias"} {
		if base, ok := strings.CutSuffix(param, end); ok {
			return base, end
		}
	}
	return param, ""
}

// holds reports whether a parameter is the layer's.
func (l *Layer) holds(base, end string) bool {
	a, f := &l.Attention, &l.FFN
	for _, m := range l.linears() {
		if m.Param == base && (end == ".weight" || end == ".bias" && m.Bias) {
			return true
		}
	}
	for _, n := range l.norms() {
		if n.holds(base, end) {
			return true
		}
	}
	if x := f.Experts; x != nil {
		part, ok := strings.CutPrefix(base, x.Stack+".")
		name, bias := strings.CutSuffix(part, "_bias")
		if ok && end == "" && (name == "gate_up_proj" || name == "down_proj") {
			return x.Bias || !bias
		}
	}
	return base != "" && end == "" && a.Sinks.Param == base
}

func (n *Norm) holds(base, end string) bool {
	return n.Kind != NoNorm && n.Param == base && (end == ".weight" || end == ".bias" && n.Kind == LayerNorm)
}
