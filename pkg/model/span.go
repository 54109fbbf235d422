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
// kernel set hold already. With Dense it shares nothing. All of them may compute at the same time, and any may be
// dropped first, together with its files: what is packed does not read them.
func LoadBeside[F tensor.Float](
	f *Files, r Range, set kernel.Set[F], o LoadOptions, held []*Stage[F],
) (*Stage[F], error) {
	if o.Dense {
		held = nil
	}
	return load(f, r, set, o, beside[F]{held, o.Saved != nil})
}

// beside are stages that hold matrices which another one may share.
type beside[F tensor.Float] struct {
	stages     []*Stage[F]
	packedOnly bool // what is decoded may be trained
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

// keep keeps what a decoded matrix of another stage is in, since either stage may be dropped first. A packed matrix has
// a lifetime of its own: for its sake the other stage's vectors must not stay as long as this stage.
func (s *Stage[F]) keep(other *Stage[F]) {
	for _, from := range append([]kernel.Memory[F]{other.memory}, other.owners...) { // held stages are read by several
		if !slices.Contains(s.owners, from) {
			s.owners = append(s.owners, from)
		}
	}
}

// take takes over a matrix of another stage in the form in which that holds it.
func (s *Stage[F]) take(other *Stage[F], to, from *kernel.Matrix[F], packedOnly bool) {
	switch {
	case to.Dense == nil && from.Dense == nil:
		to.Packed = from.Packed // Raw stays, since each stage may have mapped the file on its own
	case to.Dense != nil && from.Dense != nil && !packedOnly && other.trained == nil && !s.onDevice():
		// A device has copied both already, and would have to keep all vectors of the other stage.
		*to = *from
		s.keep(other)
	}
}

// onDevice reports whether the stage is in the memory of a device that is not the host's.
func (s *Stage[F]) onDevice() bool {
	_, ok := s.set.(kernel.Accelerator[F])
	return ok
}

// share takes over the matrices of a layer, or of the head if layer is that behind the last one, from a stage that
// holds it.
func (s *Stage[F]) share(layer int, held beside[F]) {
	for _, other := range held.stages {
		if layer == len(s.Spec.Layers) {
			if other.head != nil && s.head != nil {
				s.take(other, &s.head.Matrix, &other.head.Matrix, held.packedOnly)
				return
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
			s.take(other, want[i], have[i], held.packedOnly)
		}
		return
	}
}
