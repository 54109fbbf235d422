package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// TrainBackward overwrites g, as NewGrads makes it, with the micro-batch's gradients, and
// returns the gradient of the stage's input [B*T,C], nil on the first stage. dOut
// is the gradient of Trace.Out; the last stage starts from its loss and ignores it.
// The result is the stage's scratch and stands until the next call; the trace is
// taken back.
func (s *Stage[F]) TrainBackward(tr *Trace[F], dOut []F, g *Params[F]) ([]F, error) {
	c, n := &s.Config, tr.in.B*tr.in.T
	if tr.in.ForwardOnly {
		return nil, fault.New(fault.Invalid, "train stage %v: the forward kept nothing for a backward", s.Range)
	}
	if !s.Last() && len(dOut) != n*c.Width {
		return nil, fault.New(fault.Invalid, "train stage %v: %d gradient values for %d rows", s.Range, len(dOut), n)
	}
	for i, t := range g.Tensors {
		if !s.written[i] {
			clear(t.Data)
		}
	}
	s.scratch.reset()
	dx := s.scratch.take(n * c.Width)
	w := s.gradients(n)
	if s.Last() {
		clear(dx)
		s.normalize(w.h, tr.last, &s.norm, n)
		s.linearGrad(w.dh, w.h, n, g, branch[F]{tr.dlogits, s.head})
		s.normGrad(dx, w.dh, tr.last, &s.norm, g, n)
	} else {
		copy(dx, dOut)
	}
	for i := len(s.blocks) - 1; i >= 0; i-- {
		s.blockGrad(s.Range.Lo+i, &s.blocks[i], &tr.layers[i], dx, tr, g, w)
	}
	if s.First() {
		if s.position != nil {
			s.set.EmbedGrad(g.at(s.position.atW), dx, tr.pos, c.Width)
		}
		scale(dx, c.EmbedScale)
		s.set.EmbedGrad(g.at(s.embed.atW), dx, tr.in.IDs, c.Width)
		dx = nil
	}
	s.Drop(tr)
	return dx, nil
}

// grads is the scratch of a backward pass.
type grads[F tensor.Float] struct {
	h, dh, dq, dk, dv, datt, dgate, act, dact []F

	raw  []F // of queries or keys before their norms, with QKNorm
	post []F // of what a part computed, with PostNorms
}

func (s *Stage[F]) gradients(t int) *grads[F] {
	c, a := &s.Config, &s.scratch
	w := &grads[F]{
		h: a.take(t * c.Width), dh: a.take(t * c.Width),
		dq: a.take(t * c.Heads * c.HeadDim), dk: a.take(t * c.KVHeads * c.HeadDim), dv: a.take(t * c.KVHeads * c.HeadDim),
		datt: a.take(t * c.Heads * c.HeadDim), act: a.take(t * c.FF), dact: a.take(t * c.FF),
	}
	if c.GLU {
		w.dgate = a.take(t * c.FF)
	}
	if c.QKNorm {
		w.raw = a.take(t * c.Heads * c.HeadDim)
	}
	if c.PostNorms {
		w.post = a.take(t * c.Width)
	}
	return w
}

func (s *Stage[F]) normGrad(dx, dy, x []F, n *norm[F], g *Params[F], t int) {
	if s.Config.LayerNorm {
		s.set.LayerNormGrad(dx, g.at(n.atG), g.at(n.atB), dy, x, n.effective(), s.Config.NormEps, t, s.Config.Width)
		return
	}
	s.set.RMSNormGrad(dx, g.at(n.atG), dy, x, n.effective(), s.Config.NormEps, t, s.Config.Width)
}

// postGrad is the gradient of what a block's part computed, x, from that of what was
// added: behind the part's norm with PostNorms, else the same.
func (s *Stage[F]) postGrad(dx, x []F, n *norm[F], g *Params[F], t int, w *grads[F]) []F {
	if !s.Config.PostNorms {
		return dx
	}
	clear(w.post)
	s.normGrad(w.post, dx, x, n, g, t)
	return w.post
}

// headsGrad takes the gradient of normed heads d[rows,D] in place to that of x.
func (s *Stage[F]) headsGrad(d, x []F, n *norm[F], g *Params[F], w *grads[F]) {
	raw, size := w.raw[:len(d)], s.Config.HeadDim
	clear(raw)
	s.set.RMSNormGrad(raw, g.at(n.atG), d, x, n.effective(), s.Config.NormEps, len(d)/size, size)
	copy(d, raw)
}

// branch is a linear layer and the gradient of its output.
type branch[F tensor.Float] struct {
	dy []F
	l  *linear[F]
}

// linearGrad overwrites dx with the gradient of what layers have in common as input, and
// writes those of their weights, or adds them where a batch's rows come in several products.
func (s *Stage[F]) linearGrad(dx, x []F, t int, g *Params[F], branches ...branch[F]) {
	var products []kernel.ProductGrad[F]
	for _, b := range branches {
		p := kernel.ProductGrad[F]{DY: b.dy, W: &b.l.Matrix, DW: g.at(b.l.atW), Fresh: s.written[b.l.atW.index]}
		if b.l.hasB {
			p.DBias = g.at(b.l.atB)
		}
		products = append(products, p)
	}
	s.set.MatMulGrad(dx, x, t, products...)
}

// blockGrad takes dx[B*T,C] from the output of a layer's block to its input.
func (s *Stage[F]) blockGrad(layer int, blk *block[F], k *saved[F], dx []F, tr *Trace[F], g *Params[F], w *grads[F]) {
	c, n := &s.Config, tr.in.B*tr.in.T
	s.widen(k)
	if blk.experts != nil {
		s.normalize(w.h, k.mid, &blk.norm2, n)
		s.expertsBackward(blk.experts, &k.experts, w.dh, s.postGrad(dx, k.post2, &blk.post2, g, n, w), w.h, n, g)
		s.normGrad(dx, w.dh, k.mid, &blk.norm2, g, n)
		s.attendGrad(layer, blk, k, dx, tr, g, w)
		return
	}

	// x = mid + down(act(up(norm2(mid)))): dx flows to mid as it is and through the branch.
	// What act made comes again with its gradient.
	down, dup := branch[F]{s.postGrad(dx, k.post2, &blk.post2, g, n, w), &blk.down}, w.dact
	s.set.MatMulGrad(w.dact, nil, n, kernel.ProductGrad[F]{DY: down.dy, W: &down.l.Matrix})
	inner := []branch[F]{{dup, &blk.up}}
	if c.GLU {
		s.set.GLUGrad(w.dgate, dup, w.act, w.dact, k.gate, k.up, c.Act)
		inner = []branch[F]{{w.dgate, &blk.gate}, {dup, &blk.up}}
	} else {
		s.set.ActivateGrad(dup, w.act, w.dact, k.up, c.Act)
	}
	s.linearGrad(nil, w.act, n, g, down)
	s.normalize(w.h, k.mid, &blk.norm2, n)
	s.linearGrad(w.dh, w.h, n, g, inner...)
	s.normGrad(dx, w.dh, k.mid, &blk.norm2, g, n)

	s.attendGrad(layer, blk, k, dx, tr, g, w)
}

// attendGrad takes dx[B*T,C] from behind a block's attention, mid = x + o(attend(q, k, v)),
// to its input.
func (s *Stage[F]) attendGrad(layer int, blk *block[F], k *saved[F], dx []F, tr *Trace[F], g *Params[F], w *grads[F]) {
	c, n := &s.Config, tr.in.B*tr.in.T
	s.linearGrad(w.datt, k.att, n, g, branch[F]{s.postGrad(dx, k.post1, &blk.post1, g, n, w), &blk.o})
	if c.Sinks {
		s.sinkGrad(w.datt, k.att, k.lse, &blk.sinks, g)
	}
	s.set.AttendCausalGrad(w.dq, w.dk, w.dv, w.datt, k.att, k.lse, k.q, k.k, k.v, tr.in.B, tr.in.T, c.heads(layer))
	if r := s.rotary(layer, tr.in.T); r != nil {
		s.set.RotateGrad(w.dq, r, tr.pos, c.Heads, c.HeadDim)
		s.set.RotateGrad(w.dk, r, tr.pos, c.KVHeads, c.HeadDim)
	}
	if c.QKNorm {
		s.headsGrad(w.dq, k.rawQ, &blk.qNorm, g, w)
		s.headsGrad(w.dk, k.rawK, &blk.kNorm, g, w)
	}
	s.normalize(w.h, k.x, &blk.norm1, n)
	s.linearGrad(w.dh, w.h, n, g, branch[F]{w.dq, &blk.q}, branch[F]{w.dk, &blk.k}, branch[F]{w.dv, &blk.v})
	s.normGrad(dx, w.dh, k.x, &blk.norm1, g, n)
}
