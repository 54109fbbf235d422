package model

import (
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
)

// lowGroup is the most products of one x.
const lowGroup = 3

// passes describes the largest passes of a stage whose cache has some pages.
func (s *Stage[F]) passes(rows, logits, pages int) kernel.Passes[F] {
	cache := s.CacheConfig(pages)
	p := kernel.Passes[F]{Rows: rows, KV: cache.Type, Layers: cache.Layers, Pages: pages,
		PageLen: kvcache.DefaultPageLen, LowRanks: lowGroup * adapter.MaxServedRank}
	for i := range s.blocks {
		b := &s.blocks[i]
		p.Heads = b.heads // H, K and D are those of all layers
		if b.sinks32 != nil {
			p.Sinks++
		}
		if b.rotary != nil {
			p.Rotated = max(p.Rotated, b.rotary.Dims)
		}
		t := rows
		if b.experts != nil {
			t *= b.FFN.Experts.TopK // rows of all experts together
		}
		for _, w := range b.packable() {
			p.Products = append(p.Products, kernel.PassProduct[F]{W: w, Rows: t})
		}
	}
	if s.Last() {
		p.Logits, p.Vocab = logits, s.Spec.Vocab
		if s.head != nil {
			p.Products = append(p.Products, kernel.PassProduct[F]{W: &s.head.Matrix, Rows: logits})
		}
	}
	return p
}

// lowElements returns the elements of scratch memory that the adapters of a batch take: those of the products of one x,
// or of the embedding.
func (s *Stage[F]) lowElements(rows, logits int64) (n int64) {
	if s.First() {
		n = rows * int64(s.Spec.Width+adapter.MaxServedRank)
	}
	for _, group := range s.inputs() {
		t, all := rows, int64(0)
		for _, l := range group {
			all += int64(l.Rows + adapter.MaxServedRank)
			if l == s.head {
				t = logits
			}
		}
		n = max(n, t*all)
	}
	return n
}

// packingBytes returns the most that packing one of the matrices takes beside what it leaves. Matrices that are shared
// count as well, so that what is reserved does not depend on the order of loads.
func (s *Stage[F]) packingBytes(device kernel.Accelerator[F]) (most int64) {
	for _, p := range s.passes(1, 1, 1).Products {
		raw := *p.W
		raw.Packed = nil
		most = max(most, device.PackingBytes(&raw))
	}
	return most
}
