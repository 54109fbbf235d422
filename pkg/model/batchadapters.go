package model

import (
	"encoding/binary"
	"slices"
	"strings"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// A batch of inference may mix rows of several adapters and rows of none. The products with the matrices of the
// base are computed for all rows at once. Then each run of consecutive rows of one adapter gets the adapter's part:
//
//	y = x·Wᵀ + bias + (s·(x·Aᵀ))·Bᵀ
//
// A row's part depends on that row alone and is added in the same order as in training, so neither the batch nor
// the order of its entries changes a bit, and rows without an adapter keep the bits of the base. Callers put the
// entries of one adapter next to each other, so that there are few runs.

// adapted is a run of rows, lo..hi-1 of those that a pass computes, that have the same adapter.
type adapted[F tensor.Float] struct {
	adapter *Adapter[F]
	lo, hi  int
}

// adaptRows sets the adapters of the rows of a batch. rows says how many rows an entry has in it.
func (s *Stage[F]) adaptRows(entries []Entry[F], rows func(*Entry[F]) int) {
	s.adapted, s.replacing = s.adapted[:0], false
	row := 0
	for i := range entries {
		e := &entries[i]
		n, ad := rows(e), e.Adapter
		if ad == nil {
			ad = s.adapter
		}
		switch last := len(s.adapted) - 1; {
		case ad == nil || n == 0:
		case last >= 0 && s.adapted[last].adapter == ad && s.adapted[last].hi == row:
			s.adapted[last].hi += n
		default:
			s.adapted = append(s.adapted, adapted[F]{ad, row, row + n})
			s.replacing = s.replacing || ad.whole.values > 0
		}
		row += n
	}
	s.batching, s.rows = true, row
}

// adapters returns a name of the adapters of the batch and of their rows. It is never that of others, even if those lie
// where these have lain.
func (s *Stage[F]) adapters() string {
	var name []byte
	for _, r := range s.adapted {
		name = binary.AppendUvarint(name, r.adapter.number)
		name = binary.AppendUvarint(name, uint64(r.lo))
		name = binary.AppendUvarint(name, uint64(r.hi))
	}
	return string(name)
}

// endBatch forgets the adapters of the batch: one that is unloaded must not stay in memory until the next batch.
func (s *Stage[F]) endBatch() {
	s.batching, s.replacing = false, false
	clear(s.adapted[:cap(s.adapted)])
	clear(s.lows[:cap(s.lows)])
}

// adaptedRows returns the runs of rows that have adapters. Outside of Forward the adapter of Use is that of all t
// rows.
func (s *Stage[F]) adaptedRows(t int) []adapted[F] {
	switch {
	case s.batching:
		return s.adapted
	case s.adapter == nil:
		return nil
	}
	return []adapted[F]{{s.adapter, 0, t}}
}

// adaptBatch adds the parts of all adapters of the batch to the outputs of products of x. Those without magnitudes are
// computed together.
func (s *Stage[F]) adaptBatch(x kernel.Buffer[F], products []output[F]) {
	s.low.reset()
	s.lows = s.lows[:0]
	scratch := kernel.NeedsLowScratch(s.set)
	for _, r := range s.adapted {
		for _, o := range products {
			p := r.adapter.at(o.l)
			if p == nil {
				continue
			}
			t, in, out := r.hi-r.lo, p.a.Cols, p.b.Rows
			part := kernel.LowRank[F]{Y: o.y[r.lo*out : r.hi*out], X: x[r.lo*in : r.hi*in], A: &p.a, B: &p.b,
				Scale: p.scale, Rows: t}
			if scratch || p.magnitude != nil {
				part.U, part.V = s.low.take(t*p.a.Rows), s.low.take(t*out)
			}
			if p.magnitude == nil {
				s.lows = append(s.lows, part)
				continue
			}
			s.set.MatMul(part.U, part.X, part.A, nil, t)
			s.set.Scale(part.U, part.Scale)
			s.set.MatMul(part.V, part.U, part.B, nil, t)
			s.magnify(p, part.Y, part.V, t)
		}
	}
	kernel.AddLowRanks(s.set, s.lows)
}

// ServeAdapter is NewAdapter for entries of batches: everything that does not depend on the rows is computed here
// and not in the first batch. Modules that the adapter replaces stand beside those of the base.
func (s *Stage[F]) ServeAdapter(a *adapter.Adapter) (_ *Adapter[F], err error) {
	defer refused(&err, "put an adapter beside layers %v", s.Range)
	if err := a.CheckServed(); err != nil {
		return nil, err
	}
	ad, err := s.NewAdapter(a)
	if err != nil {
		return nil, err
	}
	for _, p := range ad.sites {
		if p != nil && p.magnitude != nil {
			s.measure(p)
		}
	}
	ad.pack(s.set)
	ad.replace(a)
	return ad, nil
}

// pack puts the matrices into the order in which the set reads them, if it has one. Those with magnitudes are
// multiplied as they are.
func (ad *Adapter[F]) pack(set kernel.Set[F]) {
	packer, ok := set.(kernel.LowRanks[F])
	if !ok {
		return
	}
	var groups [][]kernel.Factors[F]
	for _, linears := range ad.stage.inputs() {
		var group []kernel.Factors[F]
		for _, l := range linears {
			if p := ad.at(l); p != nil && p.magnitude == nil {
				group = append(group, kernel.Factors[F]{A: &p.a, B: &p.b})
			}
		}
		if len(group) > 0 {
			groups = append(groups, group)
		}
	}
	if packer.PackLowRank(groups); len(groups) == 0 || groups[0][0].A.Packed == nil { // the set leaves them as they are
		return
	}
	for i := range ad.params { // matrices that were packed are not kept as they were
		ad.params[i].Data = nil
	}
}

// Bytes returns about how much memory the adapter's part on this stage takes.
func (ad *Adapter[F]) Bytes() int64 {
	n := ad.whole.values
	for _, p := range ad.params {
		size := 1
		for _, d := range p.Shape {
			size *= d
		}
		n += size
	}
	for _, p := range ad.sites {
		if p != nil {
			n += len(p.gain) + 2*len(p.lengths)
		}
	}
	return int64(n) * int64(unsafe.Sizeof(F(0)))
}

// NeedsSaved reports whether the stage has the parameter that a tensor of modules_to_save replaces.
func (s *Stage[F]) NeedsSaved(param string) bool {
	_, ok := s.params.Get(param)
	return ok
}

// Needs reports whether the stage has the matrix of a module, so that the module's adapter belongs to it.
func (s *Stage[F]) Needs(module string) bool {
	if s.First() && module == s.Spec.Embedding.Tokens.Param {
		return true
	}
	return slices.ContainsFunc(s.linears(), func(l *linear[F]) bool {
		return strings.TrimSuffix(s.params.Tensors[l.atW.index].Name, ".weight") == module
	})
}
