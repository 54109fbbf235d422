package model

import (
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Gradient checkpointing (Chen et al., arXiv 1604.06174): the forward pass keeps only the input of every
// block. The backward pass runs a block again, from the same input and with the same kernels, so that all
// bits are the same, and keeps what that gives until the gradient of the block is done.

// RecomputeLayers sets whether later forward passes keep only the inputs of blocks.
func (s *Stage[F]) RecomputeLayers(on bool) { s.recompute = on }

// lean returns a trace that takes what a block keeps, in place of tr and until the next call.
func (s *Stage[F]) lean(tr *Trace[F], forwardOnly bool) *Trace[F] {
	if s.again == nil {
		s.again = s.trace()
	}
	s.again.mem.reset()
	s.again.bf16.reset()
	s.again.in, s.again.pos = tr.in, append(s.again.pos[:0], tr.pos...)
	s.again.in.ForwardOnly = forwardOnly
	return s.again
}

// restore runs block i forward again if its trace holds only the input. x[B*T,C] and w are scratch memory.
func (s *Stage[F]) restore(i int, tr *Trace[F], x kernel.Buffer[F], w *workspace[F]) {
	k := &tr.layers[i]
	if k.input == nil {
		return
	}
	to := tr // the second half of the backward pass needs it, too
	if tr.split == nil {
		to = s.lean(tr, false)
	}
	s.set.Copy(x, k.input)
	*k = s.trainBlock(&s.blocks[i], x, to, w)
}

// ActivationBytes returns the most memory that the traces of earlier passes have held for their backward
// passes, and the memory for running a block again, in bytes. All traces must have been taken back. What
// experts keep is not counted.
func (s *Stage[F]) ActivationBytes() int {
	traces := s.micro
	if s.again != nil {
		traces = append(traces[:len(traces):len(traces)], s.again)
	}
	var f F
	n := 0
	for _, tr := range traces {
		n += tr.mem.size()*int(unsafe.Sizeof(f)) + tr.bf16.size()*2
	}
	return n
}
