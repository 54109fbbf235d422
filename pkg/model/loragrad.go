package model

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// embedLowGrad adds the gradients of the embedding's adapter, given the gradient dx[T,C] of the embeddings.
func (s *Stage[F]) embedLowGrad(dx kernel.Buffer[F], ids []int32, g *Params[F]) {
	if s.trained == nil || s.trained.embed == nil {
		return
	}
	p, t := s.trained.embed, len(ids)
	dA, dB := g.at(p.atA), g.at(p.atB)
	s.low.reset()
	u, du := s.low.take(t*p.a.Cols), s.low.take(t*p.a.Cols)
	s.set.Embed(u, &p.a, ids)
	s.set.Scale(u, p.scale)
	s.set.MatMulGrad(du, u, t, kernel.ProductGrad[F]{DY: dx, W: &p.b, DW: dB})
	s.set.Scale(du, p.scale)
	if dA != nil {
		s.set.EmbedGrad(dA, du, ids, p.a.Cols)
	}
}

// adaptedGrad overwrites dx with the gradient of the input that the branches share, of the matrices alone, and
// then adds that of their adapters.
func (s *Stage[F]) adaptedGrad(dx, x kernel.Buffer[F], t int, g *Params[F], branches ...branch[F]) {
	s.low.reset()
	parts := make([]*lora[F], len(branches))
	for i := range branches {
		if parts[i] = s.adapter.at(branches[i].l); parts[i] != nil && parts[i].magnitude != nil {
			branches[i].dy = s.magnifyGrad(parts[i], branches[i].dy, x, t, g)
		}
	}
	s.productGrad(dx, x, t, g, branches...)
	for i, p := range parts {
		if p != nil {
			s.lowGrad(p, dx, x, branches[i].dy, t, g)
		}
	}
}

// lowGrad adds to dx[T,I] the gradient of the input of a matrix's adapter, and computes the gradients of the
// adapter, given that of the product, dy[T,N]. A nil x leaves the adapter's gradients out.
func (s *Stage[F]) lowGrad(p *lora[F], dx, x, dy kernel.Buffer[F], t int, g *Params[F]) {
	dA, dB := g.at(p.atA), g.at(p.atB)
	if s.trained != s.adapter || x == nil {
		dA, dB = nil, nil
	}
	if dx == nil && dA == nil && dB == nil {
		return
	}
	var u, in kernel.Buffer[F]
	if x != nil && (dA != nil || dB != nil) {
		u, in = s.lowInput(p, x, t)
	}
	du := s.low.take(t * p.a.Rows)
	s.set.MatMulGrad(du, u, t, kernel.ProductGrad[F]{DY: dy, W: &p.b, DW: dB})
	s.set.Scale(du, p.scale)
	var dIn kernel.Buffer[F]
	if dx != nil {
		dIn = s.low.take(t * p.a.Cols)
	}
	s.set.MatMulGrad(dIn, in, t, kernel.ProductGrad[F]{DY: du, W: &p.a, DW: dA})
	if dx != nil {
		if d := s.adapterDropout(p); d.Rate != 0 {
			s.set.Dropout(dIn, d, t, p.a.Cols)
		}
		s.set.Add(dx, dIn)
	}
}
