package model

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// TrainForward runs the stage over a micro-batch. The trace belongs to the caller
// until TrainBackward or Drop takes it back.
func (s *Stage[F]) TrainForward(in Micro[F]) (*Trace[F], error) {
	if err := s.checkMicro(&in); err != nil {
		return nil, err
	}
	width, vocab, n := s.Spec.Width, s.Spec.Vocab, in.B*in.T
	if in.ForwardOnly {
		in.Dropout = Dropout{}
	}
	s.dropping = in.Dropout
	if ad := s.adapter; in.Base {
		s.adapter = nil
		defer func() { s.adapter = ad }()
	}
	tr := s.trace()
	tr.in = in
	tr.pos = tr.pos[:0]
	if in.Documents == nil {
		for i := range n {
			tr.pos = append(tr.pos, int32(i%in.T))
		}
	}
	for _, length := range in.Documents {
		for i := range length {
			tr.pos = append(tr.pos, int32(i))
		}
	}
	s.scratch.reset()
	x := s.scratch.take(n * width)
	if s.First() {
		s.embedRows(x, in.IDs, tr.pos)
		s.drop(x, in.Dropout.of(embeddingDropout, 0), n)
	} else {
		s.set.Upload(x, in.Hidden)
	}
	w := s.workspace(n)
	for i := range s.blocks {
		if s.recompute && !in.ForwardOnly {
			tr.layers = append(tr.layers, saved[F]{input: s.copied(&tr.mem, x)})
			s.trainBlock(&s.blocks[i], x, s.lean(tr, true), w)
			continue
		}
		tr.layers = append(tr.layers, s.trainBlock(&s.blocks[i], x, tr, w))
	}
	if !s.Last() {
		tr.Out = s.set.Host(s.copied(&tr.mem, x))
		return tr, nil
	}
	tr.last = s.copied(&tr.mem, x)
	s.normalize(w.h, x, &s.norm, n)
	logits := s.scratch.take(n * vocab)
	s.set.MatMul(logits, w.h, &s.head.Matrix, nil, n)
	s.adapt(w.h, n, output[F]{s.head, logits})
	s.bound(logits)
	for _, row := range in.Picks {
		tr.Logits = append(tr.Logits, slices.Clone(s.set.Host(logits[row*vocab:(row+1)*vocab])))
	}
	tr.Loss = make([]float64, n)
	if !in.ForwardOnly {
		tr.dlogits = tr.mem.take(n * vocab)
	}
	s.set.CrossEntropy(tr.Loss, tr.dlogits, logits, in.Targets, in.Scale, n, vocab)
	if in.AsServed {
		for r, id := range in.Targets {
			if row := logits[r*vocab : (r+1)*vocab]; id >= 0 {
				tr.Loss[r] = s.set.LogSumExp(row) - float64(s.set.Host(row)[id])
			}
		}
	}
	if in.Weigh != nil {
		s.weigh(tr.dlogits, in.Weigh(tr.Loss))
	}
	if in.ZLoss != 0 && tr.dlogits != nil {
		s.set.ZLossGrad(tr.dlogits, logits, tr.Loss, in.Targets, in.ZLoss, in.Scale, n, vocab)
	}
	if limit := s.Spec.Head.Softcap; limit != 0 && tr.dlogits != nil {
		s.set.SoftcapGrad(tr.dlogits, logits, limit)
	}
	return tr, nil
}

// rotary returns the rotation of a layer in sequences of t tokens. LongRoPE rotates a whole
// sequence with its far frequencies if it is longer than the original context. Inference decides
// that by position, but in training the length is known.
func (s *Stage[F]) rotary(blk *block[F], t int) *kernel.Rotary {
	r := blk.rotary
	if r == nil || r.Far == nil || t <= r.From {
		return r
	}
	far := s.farRotaries[r]
	if far == nil {
		far = new(*r)
		far.Freq, far.Far = r.Far, nil
		if s.farRotaries == nil {
			s.farRotaries = map[*kernel.Rotary]*kernel.Rotary{}
		}
		s.farRotaries[r] = far // kernels cache tables by pointer
	}
	return far
}

// rotate rotates queries and keys, or their gradients, by the rotary positions of a layer, with Rotate or
// RotateGrad. Documents of different lengths may be rotated by different frequencies.
func (s *Stage[F]) rotate(blk *block[F], tr *Trace[F], q, k kernel.Buffer[F],
	by func(x kernel.Buffer[F], r *kernel.Rotary, pos []int32, h, d int)) {
	a := &blk.Attention
	if blk.rotary == nil {
		return
	}
	if tr.in.Documents == nil || blk.rotary.Far == nil || tr.in.AsServed {
		r := s.rotary(blk, tr.in.T)
		if tr.in.AsServed {
			r = blk.rotary
		}
		by(q, r, tr.pos, a.Heads, a.HeadDim)
		by(k, r, tr.pos, a.KVHeads, a.HeadDim)
		return
	}
	at, wide, narrow := 0, a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	for _, n := range tr.in.Documents {
		r, pos := s.rotary(blk, n), tr.pos[at:at+n]
		by(q[at*wide:(at+n)*wide], r, pos, a.Heads, a.HeadDim)
		by(k[at*narrow:(at+n)*narrow], r, pos, a.KVHeads, a.HeadDim)
		at += n
	}
}

// trainBlock adds a block's output to x[B*T,C] and returns what its backward pass needs.
func (s *Stage[F]) trainBlock(blk *block[F], x kernel.Buffer[F], tr *Trace[F], w *workspace[F]) saved[F] {
	a, n := &blk.Attention, tr.in.B*tr.in.T
	s.use(blk)
	q, key, v, att, gate, up, act := w.of(blk, n)
	var k saved[F]
	mem := s.traced(tr)
	hold := func(scratch kernel.Buffer[F]) kernel.Buffer[F] {
		if tr.in.ForwardOnly {
			return scratch
		}
		return mem.take(len(scratch))
	}
	keep := func(x kernel.Buffer[F]) kernel.Buffer[F] {
		if tr.in.ForwardOnly {
			return nil
		}
		return s.copied(mem, x)
	}
	k.x = keep(x)
	k.q, k.k, k.v, k.att = hold(q), hold(key), hold(v), hold(att)
	k.lse = tr.mem.take(n * a.Heads)
	s.normalize(w.h, x, &blk.norm1, n)
	s.set.MatMuls(w.h, n, blk.q.product(k.q), blk.k.product(k.k), blk.v.product(k.v))
	s.adapt(w.h, n, output[F]{&blk.q, k.q}, output[F]{&blk.k, k.k}, output[F]{&blk.v, k.v})
	if a.QNorm.Kind != NoNorm {
		k.rawQ, k.rawK = keep(k.q), keep(k.k)
		s.normHeads(k.q, k.q, &blk.qNorm)
		s.normHeads(k.k, k.k, &blk.kNorm)
	}
	s.rotate(blk, tr, k.q, k.k, s.set.Rotate)
	s.keepBF16(&k, tr, &k.q, &k.k, &k.v)
	heads := blk.heads
	heads.Dropout = tr.in.Dropout.of(attentionDropout, blk.index)
	switch {
	case tr.in.AsServed:
		if !tr.in.ForwardOnly { // for the log-sum-exps alone
			s.set.AttendDocuments(att, k.lse, k.q, k.k, k.v, tr.in.documents(), heads)
		}
		s.attendServed(blk, &tr.in, k.att, k.q, k.k, k.v)
	case tr.in.Documents != nil:
		s.set.AttendDocuments(k.att, k.lse, k.q, k.k, k.v, tr.in.Documents, heads)
	default:
		s.set.AttendCausal(k.att, k.lse, k.q, k.k, k.v, tr.in.B, tr.in.T, heads)
	}
	if blk.sinks32 != nil && !tr.in.AsServed {
		s.set.Sink(k.att, k.lse, blk.sinks.gain, a.Heads, a.HeadDim)
	}
	s.keepBF16(&k, tr, &k.att)
	s.set.MatMul(w.h, k.att, &blk.o.Matrix, blk.o.bias, n)
	s.adapt(k.att, n, output[F]{&blk.o, w.h})
	if a.PostNorm.Kind != NoNorm {
		k.post1 = keep(w.h)
	}
	s.addDropped(x, w.h, &blk.post1, tr.in.Dropout.of(outputDropout, blk.index), n)
	k.mid = keep(x)
	s.normalize(w.h, x, &blk.norm2, n)
	if blk.experts != nil {
		y := w.act[:n*s.Spec.Width]
		memory := s.set.Scope()
		k.experts = s.expertsForward(blk, y, w.h, n, memory.Alloc)
		k.experts.memory = memory
		if blk.FFN.PostNorm.Kind != NoNorm {
			k.post2 = keep(y)
		}
		s.addDropped(x, y, &blk.post2, tr.in.Dropout.of(feedForwardDropout, blk.index), n)
		return s.done(&k, tr)
	}
	k.up = hold(up)
	if blk.gated {
		k.gate = hold(gate)
		s.set.MatMuls(w.h, n, blk.gate.product(k.gate), blk.up.product(k.up))
		s.adapt(w.h, n, output[F]{&blk.gate, k.gate}, output[F]{&blk.up, k.up})
		s.keepBF16(&k, tr, &k.gate, &k.up)
		s.set.GLU(act, k.gate, k.up, blk.FFN.Act)
	} else {
		s.set.MatMul(k.up, w.h, &blk.up.Matrix, blk.up.bias, n)
		s.adapt(w.h, n, output[F]{&blk.up, k.up})
		s.keepBF16(&k, tr, &k.up)
		s.set.Activate(act, k.up, blk.FFN.Act)
	}
	s.set.MatMul(w.h, act, &blk.down.Matrix, blk.down.bias, n)
	s.adapt(act, n, output[F]{&blk.down, w.h})
	if blk.FFN.PostNorm.Kind != NoNorm {
		k.post2 = keep(w.h)
	}
	s.addDropped(x, w.h, &blk.post2, tr.in.Dropout.of(feedForwardDropout, blk.index), n)
	return s.done(&k, tr)
}
