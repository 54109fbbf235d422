package model

import (
	"strings"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// An adapter may replace whole modules of the base (modules_to_save). In a batch the rows of such an adapter use its
// modules, and all other rows those of the base: a product or a norm is computed once for each run of rows that have
// the same module. No row is multiplied by a matrix that it does not use. Since a row's result does not depend on the
// rows beside it, the bits are those of the adapter alone and of the base alone.

// modules are the modules of a stage that an adapter replaces, by those of the base. Matrices are dense, whatever type
// the base has.
type modules[F tensor.Float] struct {
	linears map[*linear[F]]*linear[F]
	norms   map[*norm[F]]*norm[F]
	values  int // of all tensors
}

// tables lists the matrices of the stage in which rows are looked up.
func (s *Stage[F]) tables() []*linear[F] {
	var out []*linear[F]
	for _, l := range []*linear[F]{s.embed, s.position, s.types} {
		if l != nil {
			out = append(out, l)
		}
	}
	return out
}

// norms lists the norms of the stage.
func (s *Stage[F]) norms() []*norm[F] {
	out := []*norm[F]{&s.embedded}
	for i := range s.blocks {
		b := &s.blocks[i]
		out = append(out, &b.norm1, &b.norm2, &b.post1, &b.post2, &b.add1, &b.add2, &b.qNorm, &b.kNorm)
	}
	return append(out, &s.norm)
}

// replace puts the tensors that an adapter saves for the stage's modules into the memory of the kernel set.
func (ad *Adapter[F]) replace(a *adapter.Adapter) {
	s := ad.stage
	if len(a.Saved) == 0 {
		return
	}
	ad.whole = modules[F]{linears: map[*linear[F]]*linear[F]{}, norms: map[*norm[F]]*norm[F]{}}
	made := map[string]kernel.Buffer[F]{} // matrices that are divided share it
	take := func(at slot, change func(F) F) (kernel.Buffer[F], bool) {
		name := s.params.Tensors[at.index].Name
		v, ok := a.Replaced(name)
		if !ok {
			return nil, false
		}
		if made[name] == nil {
			values := s.Spec.fromSaved(v)
			for i := range values {
				values[i] = float32(change(F(values[i])))
			}
			made[name] = ad.memory.FromHost(convert[F](values))
			ad.whole.values += len(values)
		}
		return made[name][at.from : at.from+at.len], true
	}
	as := func(v F) F { return v }
	linears := append(s.tables(), s.linears()...)
	for i := range s.blocks {
		if x := s.blocks[i].experts; x != nil {
			linears = append(linears, x.router)
		}
	}
	for _, l := range linears {
		own := *l
		weight, replaced := take(l.atW, as)
		if replaced {
			own.Matrix = kernel.Matrix[F]{Rows: l.Rows, Cols: l.Cols, Dense: weight, Plain: l.Plain}
		}
		if l.hasB {
			if bias, ok := take(l.atB, as); ok {
				own.bias, replaced = bias, true
			}
		}
		if replaced {
			ad.whole.linears[l] = &own
		}
	}
	for _, n := range s.norms() {
		if n.Norm == nil || n.Kind == NoNorm {
			continue
		}
		gainOf := as
		if arch, _ := architectureOf(s.Spec.Architecture); n.OnePlus || arch.addedGGUF {
			gainOf = func(v F) F { return v + 1 } // PEFT saves gains as Hugging Face's files hold them
		}
		own := *n
		gain, replaced := take(n.atG, gainOf)
		if replaced {
			own.gain, own.fromOne = gain, nil
		}
		if n.Kind == LayerNorm {
			if bias, ok := take(n.atB, as); ok {
				own.bias, replaced = bias, true
			}
		}
		if replaced {
			ad.whole.norms[n] = &own
		}
	}
}

// linear and norm return the form of a module of the base that rows of the adapter use. ad may be nil.
func (ad *Adapter[F]) linear(l *linear[F]) *linear[F] {
	if ad != nil {
		if own := ad.whole.linears[l]; own != nil {
			return own
		}
	}
	return l
}

func (ad *Adapter[F]) norm(n *norm[F]) *norm[F] {
	if ad != nil {
		if own := ad.whole.norms[n]; own != nil {
			return own
		}
	}
	return n
}

// runs divides the rows of the batch into runs that use the same modules, and calls do for each. same reports whether
// two adapters have the modules in common that matter.
func (s *Stage[F]) runs(same func(a, b *Adapter[F]) bool, do func(ad *Adapter[F], lo, hi int)) {
	lo, of := 0, (*Adapter[F])(nil) // the run that is not done yet
	next := func(ad *Adapter[F], from int) {
		if from > lo && !same(ad, of) {
			do(of, lo, from)
			lo = from
		}
		if from == lo {
			of = ad
		}
	}
	row := 0
	for _, r := range s.adapted {
		if r.lo > row {
			next(nil, row)
		}
		next(r.adapter, r.lo)
		row = r.hi
	}
	if row < s.rows {
		next(nil, row)
	}
	do(of, lo, s.rows)
}

// multiply computes the products of matrices of the base with x[T,I], with the parts of adapters.
func (s *Stage[F]) multiply(x kernel.Buffer[F], t int, products ...output[F]) {
	list := make([]kernel.Product[F], len(products))
	if !s.replacing {
		for i, o := range products {
			list[i] = o.l.product(o.y)
		}
		s.set.MatMuls(x, t, list...)
		s.adapt(x, t, products...)
		return
	}
	same := func(a, b *Adapter[F]) bool {
		for _, o := range products {
			if a.linear(o.l) != b.linear(o.l) {
				return false
			}
		}
		return true
	}
	s.runs(same, func(ad *Adapter[F], lo, hi int) {
		in := products[0].l.Cols
		for i, o := range products {
			list[i] = ad.linear(o.l).product(o.y[lo*o.l.Rows : hi*o.l.Rows])
		}
		s.set.MatMuls(x[lo*in:hi*in], hi-lo, list...)
	})
	s.adapt(x, t, products...)
}

// lookUp copies a row of a table for each id to x[T,C].
func (s *Stage[F]) lookUp(x kernel.Buffer[F], table *linear[F], ids []int32) {
	if !s.replacing {
		s.set.Embed(x, &table.Matrix, ids)
		return
	}
	c := table.Cols
	s.runs(func(a, b *Adapter[F]) bool { return a.linear(table) == b.linear(table) },
		func(ad *Adapter[F], lo, hi int) { s.set.Embed(x[lo*c:hi*c], &ad.linear(table).Matrix, ids[lo:hi]) })
}

// normalizeRuns applies a norm that adapters may replace. Each row of the batch has as many rows of x[t,C] as it has
// heads.
func (s *Stage[F]) normalizeRuns(y, x kernel.Buffer[F], n *norm[F], t int) {
	each := t / s.rows
	width := each * len(n.gain)
	s.runs(func(a, b *Adapter[F]) bool { return a.norm(n) == b.norm(n) },
		func(ad *Adapter[F], lo, hi int) {
			s.normalizeAll(y[lo*width:hi*width], x[lo*width:hi*width], ad.norm(n), (hi-lo)*each)
		})
}

// fromSaved returns a tensor that an adapter saves in the order of the spec.
func (s *Spec) fromSaved(v *adapter.Saved) []float32 {
	values, shape := v.Data, v.Shape
	module := strings.TrimSuffix(strings.TrimSuffix(v.Name, ".weight"), ".bias")
	switch {
	case len(shape) == 2 && s.conv1D(module):
		return transpose(values, shape[0], shape[1])
	case s.Pairs(module):
		return pair(values, len(values)/shape[0], s.Layers[0].Attention.HeadDim)
	}
	return append([]float32(nil), values...)
}
