package model

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Storage in bfloat16 with masters: the passes read the matrices of the layers from bfloat16 copies, and the
// optimizer steps the values that Params has, which keep their precision. A small update that bfloat16 cannot
// hold still counts once it has added up. Embeddings, the head, gains and biases stay as they are: there are few
// of them, or they are looked up by rows.

// rounded has the bfloat16 copies. A block's matrices are widened before it runs, to memory that all blocks
// share, so kernels see plain matrices.
type rounded[F tensor.Float] struct {
	matrices [][]stored[F] // of each block
	wide     scratch[F]
	inUse    *block[F] // whose matrices are in wide
}

// stored is a matrix in bfloat16.
type stored[F tensor.Float] struct {
	at     *linear[F]
	master kernel.Buffer[F]
	bits   []uint16
}

// StoreBF16 lets later passes use the matrices of the layers rounded to bfloat16, to nearest even. Params has
// the masters. Whoever changes them calls RoundWeights before the next pass. The stage is for training only
// from now on, and without adapters.
func (s *Stage[F]) StoreBF16() {
	s.rounded = &rounded[F]{wide: newScratch(s.set)}
	for i := range s.blocks {
		var of []stored[F]
		for _, l := range s.blocks[i].linears() {
			if l.Dense == nil { // quantised, and never stepped
				continue
			}
			of = append(of, stored[F]{at: l, master: l.Dense, bits: s.memory.AllocBF16(len(l.Dense))})
		}
		s.rounded.matrices = append(s.rounded.matrices, of)
	}
	s.RoundWeights()
}

// RoundWeights rounds the masters again. It does nothing without StoreBF16.
func (s *Stage[F]) RoundWeights() {
	if s.rounded == nil {
		return
	}
	s.rounded.inUse = nil
	for _, of := range s.rounded.matrices {
		for _, m := range of {
			s.rounded.wide.reset()
			s.set.RoundBF16(m.bits, s.copied(&s.rounded.wide, m.master)) // it rounds its argument, too
		}
	}
}

// StorageBytes returns the size of the matrices of all layers as the passes read them.
func (s *Stage[F]) StorageBytes() int {
	n := 0
	for i := range s.blocks {
		for _, l := range s.blocks[i].linears() {
			n += l.Rows * l.Cols
		}
	}
	if s.rounded != nil {
		return 2 * n
	}
	return 4 * n
}

// use puts the matrices of a block in place.
func (s *Stage[F]) use(blk *block[F]) {
	if s.rounded == nil || s.rounded.inUse == blk {
		return
	}
	s.rounded.inUse = blk
	s.rounded.wide.reset()
	for _, m := range s.rounded.matrices[blk.index-s.Range.Lo] {
		m.at.Dense = s.rounded.wide.take(len(m.bits))
		s.set.WidenBF16(m.at.Dense, m.bits)
	}
}

// linears lists the matrices of a block.
func (b *block[F]) linears() []*linear[F] {
	var out []*linear[F]
	for _, l := range []*linear[F]{&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down} {
		if l.Rows > 0 {
			out = append(out, l)
		}
	}
	if x := b.experts; x != nil {
		out = append(out, x.router)
		for e := range x.gate {
			out = append(out, &x.gate[e], &x.up[e], &x.down[e])
		}
	}
	return out
}
