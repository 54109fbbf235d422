package model

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// SpanBytes returns the size of the weights of a span. held are the spans of the model that are in memory already,
// whose layers do not count. A tied head counts again unless the span is the whole model.
func (f *Files) SpanBytes(r Range, held ...Range) int64 {
	z, last := f.Sizes(), len(f.Spec.Layers)
	has := func(part func(Range) bool) bool {
		for _, h := range held {
			if part(h) {
				return true
			}
		}
		return false
	}
	out := int64(0)
	for l := r.Lo; l < r.Hi; l++ {
		if !has(func(h Range) bool { return h.Lo <= l && l < h.Hi }) {
			out += z.Layers[l]
		}
	}
	if r.Lo == 0 && !has(func(h Range) bool { return h.Lo == 0 }) {
		out += z.Embedding
	}
	if r.Hi == last && (r.Lo > 0 || !f.Spec.Head.Tied) && !has(func(h Range) bool { return h.Hi == last }) {
		out += z.Head
	}
	return out
}

// Span lists the names of the tensors of a span. held is as in SpanBytes.
func (f *Files) Span(r Range, held ...Range) []string {
	last := len(f.Spec.Layers)
	tokens := f.tensor(f.Spec.Embedding.Tokens, ".weight")
	var out []string
	for _, name := range f.Source.Names() {
		layer, kind := placeOf(name)
		// needed reports whether a span uses the tensor.
		needed := func(r Range) bool {
			switch kind {
			case layerTensor:
				return r.Lo <= layer && layer < r.Hi
			case embeddingTensor:
				return r.Lo == 0 || r.Hi == last && f.Spec.Head.Tied && name == tokens
			case headTensor:
				return r.Hi == last
			}
			return false
		}
		use := needed(r)
		for _, h := range held {
			use = use && !needed(h)
		}
		if use {
			out = append(out, name)
		}
	}
	return out
}

// smallTensor is the number of bytes up to which a tensor outside of all layers counts as common.
const smallTensor = 1 << 20

// SpanFiles lists the names of all tensors that have to be there for a span to be loaded: those of Span, and small ones
// that belong to no layer, such as factors of positions and norms.
func (f *Files) SpanFiles(r Range) []string {
	out := f.Span(r)
	has := map[string]bool{}
	for _, name := range out {
		has[name] = true
	}
	for _, name := range f.Source.Names() {
		if _, kind := placeOf(name); kind == layerTensor || has[name] {
			continue
		}
		if info, _ := f.Source.Info(name); info.Bytes <= smallTensor {
			out = append(out, name)
		}
	}
	return out
}

// LoadBeside builds a stage like Load, and shares the packed matrices of layers that stages of the same model and
// kernel set hold already. Both stages may compute at the same time, and either may be dropped first.
func LoadBeside[F tensor.Float](f *Files, r Range, set kernel.Set[F], held []*Stage[F]) (*Stage[F], error) {
	return load(f, r, set, LoadOptions{Encoder: f.Spec.Encoder()}, held)
}

// heldBy returns the block of a layer, and whether the stage has it.
func (s *Stage[F]) heldBy(layer int) (*block[F], bool) {
	if layer < s.Range.Lo || layer >= s.Range.Hi {
		return nil, false
	}
	return &s.blocks[layer-s.Range.Lo], true
}

// packable returns the matrices of a block that the kernel set packs, always in the same order.
func (b *block[F]) packable() []*kernel.Matrix[F] {
	var out []*kernel.Matrix[F]
	if b.experts != nil {
		out = append(out, b.experts.packed()...)
	}
	for _, l := range []*linear[F]{&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down} {
		if l.Rows > 0 {
			out = append(out, &l.Matrix)
		}
	}
	return out
}

// keep keeps what a matrix of another stage is in, since either stage may be dropped first. A packed matrix has a
// lifetime of its own: for its sake the other stage's vectors must not stay as long as this stage.
func (s *Stage[F]) keep(other *Stage[F], m *kernel.Matrix[F]) {
	if m.Dense == nil {
		return
	}
	for _, from := range append([]kernel.Memory[F]{other.memory}, other.owners...) { // held stages are read by several
		if !slices.Contains(s.owners, from) {
			s.owners = append(s.owners, from)
		}
	}
}

// share takes over the packed matrices of a layer, or of the head if layer is that behind the last one. It returns
// false if no stage holds it.
func (s *Stage[F]) share(layer int, held []*Stage[F]) bool {
	for _, other := range held {
		if layer == len(s.Spec.Layers) {
			if other.head != nil && s.head != nil {
				s.head.Matrix = other.head.Matrix
				s.keep(other, &s.head.Matrix)
				return true
			}
			continue
		}
		from, ok := other.heldBy(layer)
		if !ok {
			continue
		}
		to, _ := s.heldBy(layer)
		have, want := from.packable(), to.packable()
		if len(have) != len(want) {
			continue
		}
		for i := range want {
			*want[i] = *have[i]
			s.keep(other, want[i])
		}
		return true
	}
	return false
}
