package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// TrainBackward overwrites g, which NewGrads has made, with the gradients of the micro-batch.
// Parameters are frozen by setting their Data in g to nil; their gradients are not computed.
// It returns the gradient of the stage's input [B*T,C], or nil on the first stage. dOut is
// the gradient of Trace.Out; the last stage ignores it and starts from its loss. The result
// is in host memory and valid until the next call. The trace must not be used again.
func (s *Stage[F]) TrainBackward(tr *Trace[F], dOut []F, g *Params[F]) ([]F, error) {
	return s.TrainBackwardInParts(tr, dOut, g, func(int) {})
}

// TrainBackwardInParts is TrainBackward that calls done with a part of the stage as soon as the gradients of its
// parameters are final, while the backward pass of earlier layers is still to come. Spec.PartOf names the parts.
// A part without layers, which is that of the embeddings or of the head, may have no parameters on the stage.
func (s *Stage[F]) TrainBackwardInParts(tr *Trace[F], dOut []F, g *Params[F], done func(part int)) ([]F, error) {
	if err := s.checkBackward(tr, dOut); err != nil {
		return nil, err
	}
	s.clearSums(g)
	dx := s.backward(tr, dOut, g, done)
	var dIn []F
	if !s.First() {
		dIn = s.set.Host(dx)
	}
	s.Drop(tr)
	return dIn, nil
}

// checkBackward checks the arguments of a backward pass.
func (s *Stage[F]) checkBackward(tr *Trace[F], dOut []F) error {
	if tr.in.ForwardOnly {
		return fault.New(fault.Invalid, "train stage %v: the forward kept nothing for a backward", s.Range)
	}
	if n := tr.in.B * tr.in.T; !s.Last() && len(dOut) != n*s.Spec.Width {
		return fault.New(fault.Invalid, "train stage %v: %d gradient values for %d rows", s.Range, len(dOut), n)
	}
	return nil
}

// clearSums sets the gradients to zero that passes add to.
func (s *Stage[F]) clearSums(g *Params[F]) {
	for i, t := range g.Tensors {
		if !s.written[i] {
			s.set.Clear(t.Data)
		}
	}
}

// backward computes the gradients g of the parameters and returns that of the stage's input, in
// scratch memory. Parameters without memory in g are left out. It calls done with each part.
func (s *Stage[F]) backward(tr *Trace[F], dOut []F, g *Params[F], done func(part int)) kernel.Buffer[F] {
	width, n := s.Spec.Width, tr.in.B*tr.in.T
	s.scratch.reset()
	s.dropping = tr.in.Dropout
	dx := s.scratch.take(n * width)
	w := s.gradients(n)
	if tr.in.Dropout.Residual != 0 {
		w.dropped = s.scratch.take(n * width)
	}
	if s.Last() {
		s.set.Clear(dx)
		s.normalize(w.h, tr.last, &s.norm, n)
		s.linearGrad(w.dh, w.h, n, g, branch[F]{tr.dlogits, s.head})
		s.normGrad(dx, w.dh, tr.last, &s.norm, g, n)
		done(s.Spec.headPart())
	} else {
		s.set.Upload(dx, dOut)
	}
	var again kernel.Buffer[F]
	var forward *workspace[F]
	if len(tr.layers) > 0 && tr.layers[0].input != nil {
		again, forward = s.scratch.take(n*width), s.workspace(n)
	}
	for i := len(s.blocks) - 1; i >= 0; i-- {
		s.restore(i, tr, again, forward)
		s.blockGrad(&s.blocks[i], &tr.layers[i], dx, tr, g, w)
		done(s.blocks[i].index)
	}
	if !s.First() {
		return dx
	}
	s.drop(dx, tr.in.Dropout.of(embeddingDropout, 0), n)
	if tr.split != nil {
		tr.split.embedded = s.copied(&tr.mem, dx)
	} else {
		s.embedGrad(dx, tr, g)
	}
	done(EmbeddingPart)
	return dx
}

// embedGrad adds the gradients of the embeddings, given the gradient dx[B*T,C] of their sum. It scales
// dx.
func (s *Stage[F]) embedGrad(dx kernel.Buffer[F], tr *Trace[F], g *Params[F]) {
	width := s.Spec.Width
	if s.position != nil {
		if d := g.at(s.position.atW); d != nil {
			s.set.EmbedGrad(d, dx, tr.pos, width)
		}
	}
	s.scale(dx, s.Spec.Embedding.Scale)
	s.embedLowGrad(dx, tr.in.IDs, g)
	if d := g.at(s.embed.atW); d != nil {
		s.set.EmbedGrad(d, dx, tr.in.IDs, width)
	}
}

// grads is the scratch of a backward pass.
type grads[F tensor.Float] struct {
	h, dh, dq, dk, dv, datt, dgate, act, dact kernel.Buffer[F]

	raw     kernel.Buffer[F] // gradient of queries or keys before the norm of their heads
	dropped kernel.Buffer[F] // gradient of the output of attention or feed-forward before its dropout

	post kernel.Buffer[F] // gradient of the output of attention or feed-forward before its norm
}

func (s *Stage[F]) gradients(t int) *grads[F] {
	a, z, width := &s.scratch, &s.sizes, s.Spec.Width
	w := &grads[F]{
		h: a.take(t * width), dh: a.take(t * width), dq: a.take(t * z.q), dk: a.take(t * z.kv), dv: a.take(t * z.kv),
		datt: a.take(t * z.q),
		act:  a.take(t * z.ff), dact: a.take(t * z.ff), dgate: a.take(t * z.gate),
	}
	for i := range s.blocks {
		if blk := &s.blocks[i]; w.raw == nil && blk.Attention.QNorm.Kind != NoNorm {
			w.raw = a.take(t * z.q)
		}
		if blk := &s.blocks[i]; w.post == nil &&
			(blk.Attention.PostNorm.Kind != NoNorm || blk.FFN.PostNorm.Kind != NoNorm) {
			w.post = a.take(t * width)
		}
	}
	return w
}

// of returns the parts of the scratch that a layer's attention uses.
func (w *grads[F]) of(blk *block[F], t int) (dq, dk, dv, datt kernel.Buffer[F]) {
	a := &blk.Attention
	queries, keys := t*a.Heads*a.HeadDim, t*a.KVHeads*a.HeadDim
	return w.dq[:queries], w.dk[:keys], w.dv[:keys], w.datt[:queries]
}

func (s *Stage[F]) normGrad(dx, dy, x kernel.Buffer[F], n *norm[F], g *Params[F], t int) {
	gain := s.orUnused(g.at(n.atG), n.atG.len)
	if n.Kind == LayerNorm {
		bias := s.orUnused(g.at(n.atB), n.atB.len)
		s.set.LayerNormGrad(dx, gain, bias, dy, x, s.effective(n), n.Eps, t, len(n.gain))
		return
	}
	s.set.RMSNormGrad(dx, gain, dy, x, s.effective(n), n.Eps, t, len(n.gain))
}

// orUnused returns d, or memory that nobody reads if d is nil: the gradient of a frozen vector, which
// its kernel computes anyway.
func (s *Stage[F]) orUnused(d kernel.Buffer[F], n int) kernel.Buffer[F] {
	if d != nil {
		return d
	}
	if len(s.unused) < n {
		s.unused = s.memory.Alloc(n)
	}
	return s.unused[:n]
}

// postGrad returns the gradient of the output x of attention or feed-forward, given the
// gradient dx of the residual stream that it was added to. They differ if the output was
// normalized before it was added.
func (s *Stage[F]) postGrad(dx, x kernel.Buffer[F], n *norm[F], g *Params[F], t int, w *grads[F]) kernel.Buffer[F] {
	if n.Kind == NoNorm {
		return dx
	}
	s.set.Clear(w.post)
	s.normGrad(w.post, dx, x, n, g, t)
	return w.post
}

// headsGrad turns the gradient d[rows,D] of normalized heads, in place, into that of the
// heads x before the norm.
func (s *Stage[F]) headsGrad(d, x kernel.Buffer[F], n *norm[F], g *Params[F], w *grads[F]) {
	raw := w.raw[:len(d)]
	s.set.Clear(raw)
	s.normGrad(raw, d, x, n, g, len(d)/len(n.gain))
	s.set.Copy(d, raw)
}

// branch is a matrix and the gradient of its output.
type branch[F tensor.Float] struct {
	dy kernel.Buffer[F]
	l  *linear[F]
}

// linearGrad overwrites dx with the gradient of the input x that the branches share, and
// computes the gradients of their matrices: it overwrites those of parameters in s.written,
// and adds to the others, which may take part in several products.
//
// If s has an adapter, it computes the gradients of the branches' adapters, too.
func (s *Stage[F]) linearGrad(dx, x kernel.Buffer[F], t int, g *Params[F], branches ...branch[F]) {
	if s.adapter != nil {
		s.adaptedGrad(dx, x, t, g, branches...)
		return
	}
	s.productGrad(dx, x, t, g, branches...)
}

// productGrad is linearGrad without adapters.
func (s *Stage[F]) productGrad(dx, x kernel.Buffer[F], t int, g *Params[F], branches ...branch[F]) {
	var products []kernel.ProductGrad[F]
	for _, b := range branches {
		p := kernel.ProductGrad[F]{DY: b.dy, W: &b.l.Matrix, DW: g.at(b.l.atW), Fresh: s.written[b.l.atW.index]}
		if b.l.hasB {
			p.DBias = g.at(b.l.atB)
		}
		if dx != nil || p.DW != nil || p.DBias != nil {
			products = append(products, p)
		}
	}
	if len(products) > 0 {
		s.set.MatMulGrad(dx, x, t, products...)
	}
}

// blockGrad turns dx[B*T,C], the gradient of a block's output, into that of its input.
func (s *Stage[F]) blockGrad(blk *block[F], k *saved[F], dx kernel.Buffer[F], tr *Trace[F], g *Params[F], w *grads[F]) {
	n, act, none := tr.in.B*tr.in.T, blk.FFN.Act, Params[F]{}
	s.use(blk)
	dy := s.droppedGrad(dx, tr.in.Dropout.of(feedForwardDropout, blk.index), n, w)
	s.widen(k)
	if blk.experts != nil {
		s.normalize(w.h, k.mid, &blk.norm2, n)
		s.expertsBackward(blk, &k.experts, w.dh, s.postGrad(dy, k.post2, &blk.post2, g, n, w), w.h, n, g,
			tr.split != nil)
		s.normGrad(dx, w.dh, k.mid, &blk.norm2, g, n)
		s.attendGrad(blk, k, dx, tr, g, w)
		return
	}

	// x = mid + down(act(up(norm2(mid)))), so the gradient of mid is dx plus what comes back
	// through the branch. The output of act was not kept: the kernel that computes the
	// gradient of act recomputes it, too, for the gradient of down.
	inner := n * blk.FFN.Width
	made, dup := w.act[:inner], w.dact[:inner]
	down := branch[F]{s.postGrad(dy, k.post2, &blk.post2, g, n, w), &blk.down}
	k.dDown = s.deferred(tr, down.dy)
	s.linearGrad(dup, nil, n, &none, down)
	branches := []branch[F]{{dup, &blk.up}}
	if blk.gated {
		dgate := w.dgate[:inner]
		s.set.GLUGrad(dgate, dup, made, dup, k.gate, k.up, act)
		branches = []branch[F]{{dgate, &blk.gate}, {dup, &blk.up}}
		k.dGate = s.deferred(tr, dgate)
	} else {
		s.set.ActivateGrad(dup, made, dup, k.up, act)
	}
	k.dUp = s.deferred(tr, dup)
	s.linearGrad(nil, made, n, g, down)
	s.normalize(w.h, k.mid, &blk.norm2, n)
	s.linearGrad(w.dh, w.h, n, g, branches...)
	s.normGrad(dx, w.dh, k.mid, &blk.norm2, g, n)

	s.attendGrad(blk, k, dx, tr, g, w)
}

// attendGrad turns dx[B*T,C], the gradient of mid = x + o(attend(q, k, v)), into that of the
// block's input x.
func (s *Stage[F]) attendGrad(blk *block[F], k *saved[F], dx kernel.Buffer[F], tr *Trace[F], g *Params[F],
	w *grads[F]) {
	a, n := &blk.Attention, tr.in.B*tr.in.T
	dq, dk, dv, datt := w.of(blk, n)
	dy := s.droppedGrad(dx, tr.in.Dropout.of(outputDropout, blk.index), n, w)
	o := branch[F]{s.postGrad(dy, k.post1, &blk.post1, g, n, w), &blk.o}
	heads := blk.heads
	heads.Dropout = tr.in.Dropout.of(attentionDropout, blk.index)
	k.dO = s.deferred(tr, o.dy)
	s.linearGrad(datt, k.att, n, g, o)
	if blk.sinks32 != nil {
		s.set.SinkGrad(datt, s.orUnused(g.at(blk.sinks.atG), a.Heads), k.att, k.lse, blk.sinks.gain, a.Heads,
			a.HeadDim)
	}
	if tr.in.Documents != nil {
		s.set.AttendDocumentsGrad(dq, dk, dv, datt, k.att, k.lse, k.q, k.k, k.v, tr.in.Documents, heads)
	} else {
		s.set.AttendCausalGrad(dq, dk, dv, datt, k.att, k.lse, k.q, k.k, k.v, tr.in.B, tr.in.T, heads)
	}
	s.rotate(blk, tr, dq, dk, s.set.RotateGrad)
	if a.QNorm.Kind != NoNorm {
		s.headsGrad(dq, k.rawQ, &blk.qNorm, g, w)
		s.headsGrad(dk, k.rawK, &blk.kNorm, g, w)
	}
	k.dQ, k.dK, k.dV = s.deferred(tr, dq), s.deferred(tr, dk), s.deferred(tr, dv)
	s.normalize(w.h, k.x, &blk.norm1, n)
	s.linearGrad(w.dh, w.h, n, g, branch[F]{dq, &blk.q}, branch[F]{dk, &blk.k}, branch[F]{dv, &blk.v})
	s.normGrad(dx, w.dh, k.x, &blk.norm1, g, n)
}
