package model

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Low-rank adapters. The product of a matrix W[N,I] that has an adapter is
//
//	y = x·Wᵀ + bias + (s·(x·Aᵀ))·Bᵀ
//
// with A[r,I] and B[N,r]. W·x is computed by the same kernels as without an adapter, whatever type W has: the
// base is used as it lies, also in training, where only A and B have gradients. The parts are added in this
// order in every layout, in training and inference, and a row's result depends on that row alone.
//
// With DoRA y = bias + g·(x·Wᵀ + (s·(x·Aᵀ))·Bᵀ), elementwise over outputs, where g[n] is the magnitude of row n
// divided by the length of row n of W + s·B·A. As in the paper and in PEFT, no gradient flows through the length.

// Adapter is an adapter on a stage: the parts that belong to the stage's matrices.
type Adapter[F tensor.Float] struct {
	stage  *Stage[F]
	number uint64           // no other adapter of the process has it
	memory kernel.Memory[F] // of its tensors
	sites  []*lora[F]       // by linear.site; nil where a matrix has none
	embed  *lora[F]         // of the embedding; A is [V,r]

	whole  modules[F] // that it replaces for entries of batches
	params []Param[F] // its tensors, by module
	scales map[string]float64
	dora   bool // it has magnitudes
}

// adapterNumbers is the number of the adapter that was made last.
var adapterNumbers atomic.Uint64

// lora is the adapter of a matrix, or of some rows of it.
type lora[F tensor.Float] struct {
	module   string
	memory   kernel.Memory[F] // of gain
	a, b     kernel.Matrix[F] // [r,I], [N,r]
	atA, atB slot             // in the stage's parameters, if the adapter is trained
	scale    float64

	magnitude kernel.Buffer[F] // [N] with DoRA, else nil
	atM       slot
	base      *linear[F]
	lengths   []float64        // [N]: of the rows of W + s·B·A; nil until they are needed
	gain      kernel.Buffer[F] // [N]: magnitude / length
}

// linears lists the matrices of the stage that an adapter may be for.
func (s *Stage[F]) linears() []*linear[F] { return slices.Concat(s.inputs()...) }

// inputs lists the same matrices, those that multiply the same x together.
func (s *Stage[F]) inputs() [][]*linear[F] {
	var out [][]*linear[F]
	add := func(all ...*linear[F]) {
		out = append(out, slices.DeleteFunc(all, func(l *linear[F]) bool { return l.Rows == 0 }))
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		add(&b.q, &b.k, &b.v)
		add(&b.o)
		if b.experts == nil {
			add(&b.gate, &b.up)
			add(&b.down)
		}
	}
	if s.head != nil {
		add(s.head)
	}
	return out
}

// NewAdapter puts the parts of an adapter that belong to the stage's layers into the memory of its kernel set.
// Several adapters may be on one stage: Use chooses one for all rows, and the entries of a batch choose their own
// (see batchadapters.go). NewAdapter may run beside Forward.
func (s *Stage[F]) NewAdapter(a *adapter.Adapter) (*Adapter[F], error) {
	if err := s.Spec.CheckAdapter(a); err != nil {
		return nil, err
	}
	linears := s.linears()
	ad := &Adapter[F]{stage: s, number: adapterNumbers.Add(1), memory: s.set.Scope(),
		sites: make([]*lora[F], len(linears)), scales: map[string]float64{}}
	if s.First() {
		name := s.Spec.Embedding.Tokens.Param
		if m, ok := a.Module(name); ok {
			at := transpose(convert[F](m.A), m.Rank, m.In)
			p := &lora[F]{module: name, scale: m.Scale}
			p.a = kernel.Matrix[F]{Rows: m.In, Cols: m.Rank, Dense: ad.memory.FromHost(at)}
			p.b = kernel.Matrix[F]{Rows: m.Out, Cols: m.Rank, Dense: ad.memory.FromHost(convert[F](m.B))}
			ad.embed = p
			ad.add(m, p, p.a.Dense, p.b.Dense)
		}
	}
	type held struct{ a, b, m kernel.Buffer[F] }
	made := map[string]held{}
	for i, l := range linears {
		module := strings.TrimSuffix(s.params.Tensors[l.atW.index].Name, ".weight")
		m, ok := a.Module(module)
		if !ok {
			continue
		}
		h, ok := made[module] // of a fused matrix: the parts share A, and B is divided like W
		if !ok {
			b := convert[F](m.B)
			magnitude := convert[F](m.Magnitude)
			if s.pairs(module) {
				d := s.Spec.Layers[0].Attention.HeadDim
				b = pair(b, m.Rank, d)
				magnitude = pair(magnitude, 1, d)
			}
			h = held{a: ad.memory.FromHost(convert[F](m.A)), b: ad.memory.FromHost(b)}
			switch {
			case m.Magnitude != nil:
				h.m = ad.memory.FromHost(magnitude)
			case a.DoRA:
				h.m = ad.memory.Alloc(m.Out)
			}
			made[module] = h
		}
		lo := l.atW.from / l.Cols
		if a.DoRA && m.Magnitude == nil { // a new adapter: the model starts as its base
			s.set.Upload(h.m[lo:lo+l.Rows], s.magnitudes(l))
		}
		p := &lora[F]{module: module, scale: m.Scale, base: l, memory: ad.memory}
		p.a = kernel.Matrix[F]{Rows: m.Rank, Cols: m.In, Dense: h.a}
		p.b = kernel.Matrix[F]{Rows: l.Rows, Cols: m.Rank, Dense: h.b[lo*m.Rank : (lo+l.Rows)*m.Rank]}
		if h.m != nil {
			p.magnitude, ad.dora = h.m[lo:lo+l.Rows], true
		}
		ad.sites[i] = p
		if !ok {
			ad.add(m, p, h.a, h.b)
			if h.m != nil {
				ad.params = append(ad.params, Param[F]{Name: adapter.Name(module, adapter.Magnitude),
					Shape: []int{m.Out}, Data: h.m})
			}
		}
	}
	return ad, nil
}

// add lists the two matrices of a module.
func (ad *Adapter[F]) add(m *adapter.Module, p *lora[F], a, b kernel.Buffer[F]) {
	partA, partB := adapter.A, adapter.B
	if m.Embeds {
		partA, partB = adapter.EmbedA, adapter.EmbedB
	}
	ad.params = append(ad.params,
		Param[F]{Name: adapter.Name(m.Name, partA), Shape: []int{p.a.Rows, p.a.Cols}, Data: a},
		Param[F]{Name: adapter.Name(m.Name, partB), Shape: []int{m.Out, m.Rank}, Data: b})
	ad.scales[m.Name] = m.Scale
}

// Use sets the adapter of all following passes; nil for none.
func (s *Stage[F]) Use(ad *Adapter[F]) { s.adapter = ad }

// Train makes the adapter's tensors the parameters that are trained, instead of the stage's own but for those of
// LoadOptions.Saved. Gradients and optimizer leave the others alone, which need not be dense. It must come before
// NewGrads.
func (s *Stage[F]) Train(ad *Adapter[F]) {
	s.adapter, s.trained = ad, ad
	index := map[string]int{}
	for _, p := range ad.params {
		index[p.Name] = len(s.params.Tensors)
		s.params.Tensors = append(s.params.Tensors, p)
		s.written = append(s.written, false)
	}
	place := func(p *lora[F], a, b adapter.Part, lo int) {
		p.atA = slot{index[adapter.Name(p.module, a)], 0, len(p.a.Dense)}
		p.atB = slot{index[adapter.Name(p.module, b)], lo * p.b.Cols, len(p.b.Dense)}
		if p.magnitude != nil {
			p.atM = slot{index[adapter.Name(p.module, adapter.Magnitude)], lo, len(p.magnitude)}
		}
	}
	if ad.embed != nil {
		place(ad.embed, adapter.EmbedA, adapter.EmbedB, 0)
	}
	for _, p := range ad.sites {
		if p != nil {
			place(p, adapter.A, adapter.B, p.base.atW.from/p.base.Cols)
		}
	}
}

// Trained reports whether a parameter is trained: all of them, unless an adapter is.
func (s *Stage[F]) Trained(param string) bool {
	if s.trained == nil || s.whole[param] {
		return true
	}
	return slices.ContainsFunc(s.trained.params, func(p Param[F]) bool { return p.Name == param })
}

// at returns the adapter of a matrix, or nil. ad may be nil.
func (ad *Adapter[F]) at(l *linear[F]) *lora[F] {
	if ad == nil || l.site >= len(ad.sites) {
		return nil
	}
	if p := ad.sites[l.site]; p != nil && p.base == l {
		return p
	}
	return nil
}

// adapt adds the adapters' parts to the outputs of products of x[T,I].
func (s *Stage[F]) adapt(x kernel.Buffer[F], t int, products ...output[F]) {
	if s.batching {
		s.adaptBatch(x, products)
		return
	}
	for _, r := range s.adaptedRows(t) {
		for _, o := range products {
			if p := r.adapter.at(o.l); p != nil {
				s.addLow(p, o.y, x, t)
			}
		}
	}
}

// output is the output y[T,N] of a matrix.
type output[F tensor.Float] struct {
	l *linear[F]
	y kernel.Buffer[F]
}

// lowInput computes u[T,r] = s·(x·Aᵀ) in scratch memory. It also returns x as A reads it, which dropout changes.
func (s *Stage[F]) lowInput(p *lora[F], x kernel.Buffer[F], t int) (u, in kernel.Buffer[F]) {
	in = x
	if d := s.adapterDropout(p); d.Rate != 0 {
		in = s.low.take(t * p.a.Cols)
		s.set.Copy(in, x[:t*p.a.Cols])
		s.set.Dropout(in, d, t, p.a.Cols)
	}
	u = s.low.take(t * p.a.Rows)
	s.set.MatMul(u, in, &p.a, nil, t)
	s.set.Scale(u, p.scale)
	return u, in
}

// addLow adds a matrix's adapter to its product y[T,N].
func (s *Stage[F]) addLow(p *lora[F], y, x kernel.Buffer[F], t int) {
	s.low.reset()
	u, _ := s.lowInput(p, x, t)
	v := s.low.take(t * p.b.Rows)
	s.set.MatMul(v, u, &p.b, nil, t)
	if p.magnitude == nil {
		s.set.Add(y, v)
		return
	}
	s.magnify(p, y, v, t)
}

// adapterDropout returns what is dropped of the input of an adapter.
func (s *Stage[F]) adapterDropout(p *lora[F]) kernel.Dropout {
	if s.dropping.Adapter == 0 {
		return kernel.Dropout{}
	}
	return kernel.Dropout{Rate: s.dropping.Adapter, Key: mix(s.dropping.Key ^ hashName(p.module))}
}

// embedLow adds the embedding's adapter to x[T,C].
func (s *Stage[F]) embedLow(x kernel.Buffer[F], ids []int32) {
	for _, r := range s.adaptedRows(len(ids)) {
		if r.adapter.embed == nil {
			continue
		}
		p, t := r.adapter.embed, r.hi-r.lo
		s.low.reset()
		u, v := s.low.take(t*p.a.Cols), s.low.take(t*p.b.Rows)
		s.set.Embed(u, &p.a, ids[r.lo:r.hi])
		s.set.Scale(u, p.scale)
		s.set.MatMul(v, u, &p.b, nil, t)
		s.set.Add(x[r.lo*p.b.Rows:r.hi*p.b.Rows], v)
	}
}
