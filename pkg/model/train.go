package model

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Micro is one micro-batch: B sequences of T tokens, each from position 0.
type Micro[F tensor.Float] struct {
	B, T int
	// Documents isolates documents: the lengths of those in the B*T rows, in order. A row attends only to its own
	// document, in which positions begin at 0. A document does not cross the end of a sequence. With nil every
	// sequence is one document.
	Documents []int

	IDs     []int32 // [B,T], for the first stage
	Hidden  []F     // [B*T,C], for the other stages; must stay unchanged until the backward
	Targets []int32 // [B,T], for the last stage; a negative target masks its position
	Scale   float64 // for the last stage: multiplies the gradient of the loss
	// ZLoss, for the last stage, is the coefficient of the z-loss, ZLoss·log²Z with Z the sum of
	// exponentials of a row of logits. It is part of the gradient, but not of Trace.Loss.
	ZLoss   float64
	Dropout Dropout
	// ForwardOnly keeps nothing for a backward pass. Nothing is dropped.
	ForwardOnly bool
	// Weigh, for the last stage, is called with the negative log-likelihoods [B*T] and returns the derivative of the
	// loss with respect to each: the gradient of a row is multiplied by it. It is for losses that are not sums of
	// log-likelihoods, and excludes ZLoss. With nil every derivative is 1.
	Weigh func(loss []float64) []float64
	// Base leaves the adapter out, so that the pass is that of the base. Only with ForwardOnly.
	Base bool
	// Picks, for the last stage, are rows whose logits Trace.Logits gets.
	Picks []int
}

// Trace is what the forward pass of a micro-batch keeps for its backward pass.
type Trace[F tensor.Float] struct {
	Out  []F       // [B*T,C]: the hidden state that leaves the stage; nil on the last
	Loss []float64 // [B*T]: negative log-likelihoods, on the last stage
	// Logits are the rows of logits [V] that Micro.Picks asks for, in host memory.
	Logits [][]F

	in      Micro[F]
	pos     []int32
	layers  []saved[F]
	last    kernel.Buffer[F] // input of the final norm
	dlogits kernel.Buffer[F]
	mem     scratch[F]
	split   *split[F] // between the two halves of a backward pass

	bf16 arena[[]uint16, uint16] // what layers keep with a bfloat16 kernel set
}

// saved is one block's part of a trace. Tensors that are cheap to recompute are not kept.
type saved[F tensor.Float] struct {
	x, q, k, v, att, lse, mid, gate, up kernel.Buffer[F]

	rawQ, rawK   kernel.Buffer[F] // queries and keys before their norms, if heads are normalized
	post1, post2 kernel.Buffer[F] // outputs of attention and feed-forward before their norms, if they have any
	experts      routed[F]

	// gradients of the outputs of the matrices, between the two halves of a backward pass
	dDown, dGate, dUp, dO, dQ, dK, dV kernel.Buffer[F]

	bf16 [savedParts][]uint16 // parts in bfloat16, with a bfloat16 kernel set; parts are nil then

	input kernel.Buffer[F] // [B*T,C] of the block, in place of all the rest, if layers are recomputed
}

// savedParts is the number of tensors that parts lists.
const savedParts = 12

// parts lists the tensors that may be kept in bfloat16, in the order of k.bf16. Tensors of
// experts stay in F.
func (k *saved[F]) parts() [savedParts]*kernel.Buffer[F] {
	return [...]*kernel.Buffer[F]{&k.x, &k.q, &k.k, &k.v, &k.att, &k.mid, &k.gate, &k.up, &k.rawQ, &k.rawK, &k.post1,
		&k.post2}
}

// keepBF16 keeps parts in bfloat16 if the kernel set asks for it. It is called before the
// forward pass uses a part again, and rounds the part itself, too, so that forward and
// backward compute with the same values.
func (s *Stage[F]) keepBF16(k *saved[F], tr *Trace[F], parts ...*kernel.Buffer[F]) {
	if !s.set.UsesBFloat16() {
		return
	}
	for i, p := range k.parts() {
		if slices.Contains(parts, p) && *p != nil && k.bf16[i] == nil {
			k.bf16[i] = tr.bf16.take(len(*p))
			s.set.RoundBF16(k.bf16[i], *p)
		}
	}
}

// widen restores the parts that keepBF16 has kept.
func (s *Stage[F]) widen(k *saved[F]) {
	s.block.reset()
	for i, p := range k.parts() {
		if h := k.bf16[i]; h != nil {
			*p = s.block.take(len(h))
			s.set.WidenBF16(*p, h)
		}
	}
}

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

// weigh multiplies rows of gradients of logits by their weights. dlogits may be nil.
func (s *Stage[F]) weigh(dlogits kernel.Buffer[F], weights []float64) {
	if dlogits == nil {
		return
	}
	vocab := s.Spec.Vocab
	for lo, hi := 0, 0; lo < len(weights); lo = hi {
		for hi = lo + 1; hi < len(weights) && weights[hi] == weights[lo]; hi++ {
		}
		if w := weights[lo]; w != 1 {
			s.set.Scale(dlogits[lo*vocab:hi*vocab], w)
		}
	}
}

func (s *Stage[F]) checkMicro(in *Micro[F]) error {
	c, n := &s.Spec, in.B*in.T
	switch {
	case !s.dense && s.trained == nil && !in.ForwardOnly:
		return ErrNotDense
	case in.Base && !in.ForwardOnly:
		return fault.New(fault.Invalid, "train stage %v: the base has no backward pass", s.Range)
	case in.Weigh != nil && in.ZLoss != 0:
		return fault.New(fault.Invalid, "train stage %v: weights of rows exclude the z-loss", s.Range)
	case in.B < 1 || in.T < 1 || in.T > c.Context:
		return fault.New(fault.Invalid, "train stage %v: %d sequences of %d tokens in a context of %d", s.Range, in.B,
			in.T,
			c.Context)
	case s.First() && len(in.IDs) != n:
		return fault.New(fault.Invalid, "train stage %v: %d ids for %d rows", s.Range, len(in.IDs), n)
	case !s.First() && len(in.Hidden) != n*c.Width:
		return fault.New(fault.Invalid, "train stage %v: %d hidden values for %d rows", s.Range, len(in.Hidden), n)
	case s.Last() && len(in.Targets) != n:
		return fault.New(fault.Invalid, "train stage %v: %d targets for %d rows", s.Range, len(in.Targets), n)
	}
	if err := in.checkDocuments(); err != nil {
		return fault.Wrap(fault.Invalid, err, "train stage %v", s.Range)
	}
	if err := in.Dropout.check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "train stage %v", s.Range)
	}
	for _, row := range in.Picks {
		if row < 0 || row >= n {
			return fault.New(fault.Invalid, "train stage %v: logits of row %d of %d", s.Range, row, n)
		}
	}
	for i, id := range in.IDs {
		if id < 0 || int(id) >= c.Vocab {
			return fault.New(fault.Invalid, "train stage %v: id %d of row %d is outside the vocabulary of %d", s.Range,
				id, i,
				c.Vocab)
		}
	}
	for i, id := range in.Targets {
		if int(id) >= c.Vocab {
			return fault.New(fault.Invalid, "train stage %v: target %d of row %d is outside the vocabulary of %d",
				s.Range, id,
				i, c.Vocab)
		}
	}
	return nil
}

// checkDocuments checks that documents fill every sequence.
func (in *Micro[F]) checkDocuments() error {
	if in.Documents == nil {
		return nil
	}
	at := 0
	for i, n := range in.Documents {
		if n < 1 || n > in.T-at%in.T || n > in.B*in.T-at {
			return fault.New(fault.Invalid, "document %d of %d rows from row %d on does not fit sequences of %d", i, n, at,
				in.T)
		}
		at += n
	}
	if at != in.B*in.T {
		return fault.New(fault.Invalid, "documents of %d rows in %d sequences of %d", at, in.B, in.T)
	}
	return nil
}

// trace returns a spare trace, or a new one.
func (s *Stage[F]) trace() *Trace[F] {
	if n := len(s.micro); n > 0 {
		tr := s.micro[n-1]
		s.micro = s.micro[:n-1]
		return tr
	}
	return &Trace[F]{mem: newArena(s.set.Alloc), bf16: newArena(s.set.AllocBF16)}
}

// Drop takes a trace back without a backward pass.
func (s *Stage[F]) Drop(tr *Trace[F]) {
	tr.mem.reset()
	tr.bf16.reset()
	tr.layers = tr.layers[:0]
	tr.Logits = nil
	tr.Out, tr.Loss, tr.last, tr.dlogits, tr.in, tr.split = nil, nil, nil, nil, Micro[F]{}, nil
	s.micro = append(s.micro, tr)
}

// copied returns a copy of x in an arena.
func (s *Stage[F]) copied(a *scratch[F], x kernel.Buffer[F]) kernel.Buffer[F] {
	out := a.take(len(x))
	s.set.Copy(out, x)
	return out
}

// traced returns the memory for what a block's backward pass needs: the trace's own, or, with a
// bfloat16 kernel set, scratch memory whose contents are then kept in bfloat16.
func (s *Stage[F]) traced(tr *Trace[F]) *scratch[F] {
	if !s.set.UsesBFloat16() {
		return &tr.mem
	}
	s.block.reset()
	return &s.block
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
	if tr.in.Documents == nil || blk.rotary.Far == nil {
		r := s.rotary(blk, tr.in.T)
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
	if tr.in.Documents != nil {
		s.set.AttendDocuments(k.att, k.lse, k.q, k.k, k.v, tr.in.Documents, heads)
	} else {
		s.set.AttendCausal(k.att, k.lse, k.q, k.k, k.v, tr.in.B, tr.in.T, heads)
	}
	if blk.sinks32 != nil {
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
		k.experts = s.expertsForward(blk, y, w.h, n)
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

// done completes what a block's forward pass keeps. With a bfloat16 kernel set only the
// bfloat16 copies stay.
func (s *Stage[F]) done(k *saved[F], tr *Trace[F]) saved[F] {
	if !s.set.UsesBFloat16() || tr.in.ForwardOnly {
		return *k
	}
	parts := k.parts()
	s.keepBF16(k, tr, parts[:]...)
	for _, p := range parts {
		*p = nil
	}
	return *k
}
