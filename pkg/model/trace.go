package model

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

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

// trace returns a spare trace, or a new one.
func (s *Stage[F]) trace() *Trace[F] {
	if n := len(s.micro); n > 0 {
		tr := s.micro[n-1]
		s.micro = s.micro[:n-1]
		return tr
	}
	return &Trace[F]{mem: newScratch(s.set),
		bf16: newArena(func() func(n int) []uint16 { return s.set.Scope().AllocBF16 })}
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
