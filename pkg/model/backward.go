package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// TrainBackward adds the micro-batch's gradients into g, as NewGrads makes it, and
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
	s.scratch.reset()
	dx := s.scratch.take(n * c.Width)
	w := s.gradients(n)
	if s.Last() {
		clear(dx)
		s.normalize(w.h, tr.last, &s.norm, n)
		clear(w.dh)
		s.set.MatMulGrad(w.dh, g.at(s.head.atW), nil, tr.dlogits, w.h, &s.head.Matrix, n)
		s.normGrad(dx, w.dh, tr.last, &s.norm, g, n)
	} else {
		copy(dx, dOut)
	}
	for i := len(s.blocks) - 1; i >= 0; i-- {
		s.blockGrad(s.Range.Lo+i, &s.blocks[i], &tr.layers[i], dx, tr, g, w)
	}
	if s.First() {
		s.set.EmbedGrad(g.at(s.embed.atW), dx, tr.in.IDs, c.Width)
		if s.position != nil {
			s.set.EmbedGrad(g.at(s.position.atW), dx, tr.pos, c.Width)
		}
		dx = nil
	}
	s.Drop(tr)
	return dx, nil
}

// grads is the scratch of a backward pass.
type grads[F tensor.Float] struct {
	h, dh, dq, dk, dv, datt, dgate, dup, act, dact []F
}

func (s *Stage[F]) gradients(t int) *grads[F] {
	c, a := &s.Config, &s.scratch
	w := &grads[F]{
		h: a.take(t * c.Width), dh: a.take(t * c.Width),
		dq: a.take(t * c.Heads * c.HeadDim), dk: a.take(t * c.KVHeads * c.HeadDim), dv: a.take(t * c.KVHeads * c.HeadDim),
		datt: a.take(t * c.Heads * c.HeadDim), dup: a.take(t * c.FF), act: a.take(t * c.FF), dact: a.take(t * c.FF),
	}
	if c.GLU {
		w.dgate = a.take(t * c.FF)
	}
	return w
}

func (s *Stage[F]) normGrad(dx, dy, x []F, n *norm[F], g *Params[F], t int) {
	if s.Config.LayerNorm {
		s.set.LayerNormGrad(dx, g.at(n.atG), g.at(n.atB), dy, x, n.gain, s.Config.NormEps, t, s.Config.Width)
		return
	}
	s.set.RMSNormGrad(dx, g.at(n.atG), dy, x, n.gain, s.Config.NormEps, t, s.Config.Width)
}

// linearGrad adds the gradients of y = x·Wᵀ + b.
func (s *Stage[F]) linearGrad(dx, dy, x []F, l *linear[F], g *Params[F], t int) {
	var dbias []F
	if l.hasB {
		dbias = g.at(l.atB)
	}
	s.set.MatMulGrad(dx, g.at(l.atW), dbias, dy, x, &l.Matrix, t)
}

// blockGrad takes dx[B*T,C] from the output of a layer's block to its input.
func (s *Stage[F]) blockGrad(layer int, blk *block[F], k *saved[F], dx []F, tr *Trace[F], g *Params[F], w *grads[F]) {
	c, n := &s.Config, tr.in.B*tr.in.T

	// x = mid + down(act(up(norm2(mid)))): dx flows to mid as it is and through the branch.
	if c.GLU {
		s.set.GLU(w.act, k.gate, k.up, c.Act)
	} else {
		s.set.Activate(w.act, k.up, c.Act)
	}
	clear(w.dact)
	s.linearGrad(w.dact, dx, w.act, &blk.down, g, n)
	s.normalize(w.h, k.mid, &blk.norm2, n)
	clear(w.dh)
	clear(w.dup)
	if c.GLU {
		clear(w.dgate)
		s.set.GLUGrad(w.dgate, w.dup, w.dact, k.gate, k.up, c.Act)
		s.linearGrad(w.dh, w.dgate, w.h, &blk.gate, g, n)
	} else {
		s.set.ActivateGrad(w.dup, w.dact, k.up, c.Act)
	}
	s.linearGrad(w.dh, w.dup, w.h, &blk.up, g, n)
	s.normGrad(dx, w.dh, k.mid, &blk.norm2, g, n)

	// mid = x + o(attend(q, k, v)).
	clear(w.datt)
	s.linearGrad(w.datt, dx, k.att, &blk.o, g, n)
	clear(w.dq)
	clear(w.dk)
	clear(w.dv)
	s.set.AttendCausalGrad(w.dq, w.dk, w.dv, w.datt, k.att, k.lse, k.q, k.k, k.v, tr.in.B, tr.in.T, c.heads(layer))
	if s.rotary != nil {
		s.set.RotateGrad(w.dq, s.rotary, tr.pos, c.Heads, c.HeadDim)
		s.set.RotateGrad(w.dk, s.rotary, tr.pos, c.KVHeads, c.HeadDim)
	}
	s.normalize(w.h, k.x, &blk.norm1, n)
	clear(w.dh)
	s.linearGrad(w.dh, w.dq, w.h, &blk.q, g, n)
	s.linearGrad(w.dh, w.dk, w.h, &blk.k, g, n)
	s.linearGrad(w.dh, w.dv, w.h, &blk.v, g, n)
	s.normGrad(dx, w.dh, k.x, &blk.norm1, g, n)
}
