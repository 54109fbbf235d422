package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// split is what a trace keeps between the two halves of a backward pass.
type split[F tensor.Float] struct {
	small    *Params[F]       // gradients of the parameters that the first half computes: norms and sinks
	embedded kernel.Buffer[F] // [B*T,C]: gradient of the embeddings' sum, on the first stage
}

// TrainBackwardInput is the first half of TrainBackward: it returns the gradient of the stage's
// input, with the same bits. The previous stage waits for it. TrainBackwardWeight is the other half.
// In between, the trace keeps the gradient of every matrix product's output, too.
func (s *Stage[F]) TrainBackwardInput(tr *Trace[F], dOut []F) ([]F, error) {
	if err := s.checkBackward(tr, dOut); err != nil {
		return nil, err
	}
	if tr.split != nil {
		return nil, fault.New(fault.Invalid, "train stage %v: the trace has been run backward", s.Range)
	}
	// The gradients of norms and sinks come with the gradients of their inputs. They are small.
	tr.split = &split[F]{small: &Params[F]{}}
	for _, t := range s.params.Tensors {
		p := Param[F]{Name: t.Name, Shape: t.Shape, TiedTo: t.TiedTo}
		if s.early(t.Name) {
			p.Data = tr.mem.take(len(t.Data))
			s.set.Clear(p.Data)
		}
		tr.split.small.Tensors = append(tr.split.small.Tensors, p)
	}
	dx := s.backward(tr, dOut, tr.split.small, func(int) {})
	if s.First() {
		return nil, nil
	}
	return s.set.Host(dx), nil
}

// TrainBackwardWeight is the second half of TrainBackward. It overwrites g, which NewGrads has made,
// with the gradients of the micro-batch, which have the same bits. The trace must not be used again.
func (s *Stage[F]) TrainBackwardWeight(tr *Trace[F], g *Params[F]) error {
	return s.TrainBackwardWeightInParts(tr, g, func(int) {})
}

// TrainBackwardWeightInParts is TrainBackwardWeight that calls done as TrainBackwardInParts does.
func (s *Stage[F]) TrainBackwardWeightInParts(tr *Trace[F], g *Params[F], done func(part int)) error {
	if tr.split == nil {
		return fault.New(fault.Invalid, "train stage %v: the gradient of the input comes first", s.Range)
	}
	n := tr.in.B * tr.in.T
	s.clearSums(g)
	for i, p := range tr.split.small.Tensors {
		if dst := g.Tensors[i].Data; p.Data != nil && dst != nil {
			s.set.Copy(dst, p.Data)
		}
	}
	s.scratch.reset()
	s.dropping = tr.in.Dropout
	w := s.gradients(n)
	if s.Last() {
		s.normalize(w.h, tr.last, &s.norm, n)
		s.linearGrad(nil, w.h, n, g, branch[F]{tr.dlogits, s.head})
		done(s.Spec.headPart())
	}
	for i := len(s.blocks) - 1; i >= 0; i-- {
		s.blockWeights(&s.blocks[i], &tr.layers[i], tr, g, w)
		done(s.blocks[i].index)
	}
	if s.First() {
		s.embedGrad(tr.split.embedded, tr, g)
		done(EmbeddingPart)
	}
	s.Drop(tr)
	return nil
}

// early reports whether the first half computes a parameter's gradient.
func (s *Stage[F]) early(param string) bool {
	base, _ := splitParam(param)
	if s.Last() && base == s.Spec.Norm.Param && s.Spec.Norm.Kind != NoNorm {
		return true
	}
	for i := range s.blocks {
		a := &s.blocks[i].Attention
		for _, n := range s.blocks[i].norms() {
			if n.Kind != NoNorm && n.Param == base {
				return true
			}
		}
		if s.blocks[i].sinks32 != nil && a.Sinks.Param == param {
			return true
		}
	}
	return false
}

// deferred keeps the gradient of a product's output for the second half. Without a split, which
// computes the gradient of the product's matrix at once, it keeps nothing.
func (s *Stage[F]) deferred(tr *Trace[F], dy kernel.Buffer[F]) kernel.Buffer[F] {
	if tr.split == nil {
		return nil
	}
	return s.copied(&tr.mem, dy)
}

// blockWeights computes the gradients of a block's matrices. Their inputs are recomputed from the
// trace as in blockGrad.
func (s *Stage[F]) blockWeights(blk *block[F], k *saved[F], tr *Trace[F], g *Params[F], w *grads[F]) {
	n := tr.in.B * tr.in.T
	s.widen(k)
	if blk.experts != nil {
		s.normalize(w.h, k.mid, &blk.norm2, n)
		s.expertsWeights(blk, &k.experts, w.h, n, g)
	} else {
		made := w.act[:n*blk.FFN.Width]
		branches := []branch[F]{{k.dUp, &blk.up}}
		if blk.gated {
			s.set.GLU(made, k.gate, k.up, blk.FFN.Act)
			branches = []branch[F]{{k.dGate, &blk.gate}, {k.dUp, &blk.up}}
		} else {
			s.set.Activate(made, k.up, blk.FFN.Act)
		}
		s.linearGrad(nil, made, n, g, branch[F]{k.dDown, &blk.down})
		s.normalize(w.h, k.mid, &blk.norm2, n)
		s.linearGrad(nil, w.h, n, g, branches...)
	}
	s.linearGrad(nil, k.att, n, g, branch[F]{k.dO, &blk.o})
	s.normalize(w.h, k.x, &blk.norm1, n)
	s.linearGrad(nil, w.h, n, g, branch[F]{k.dQ, &blk.q}, branch[F]{k.dK, &blk.k}, branch[F]{k.dV, &blk.v})
}
