package model

// Work is what a training step computes.
type Work struct {
	Rows      int   // positions of all sequences
	Documents []int // lengths of what attends to itself alone: documents, or whole sequences
	Frozen    bool  // the matrices have no gradients of their own, since only an adapter is trained
}

// Sequences returns the work of sequences of one length.
func Sequences(n, length int) Work {
	w := Work{Rows: n * length}
	for range n {
		w.Documents = append(w.Documents, length)
	}
	return w
}

// StepFlops returns the floating-point operations of a training step, counted as nanoGPT does: for each row, six for
// each weight of a matrix that it is multiplied by, and for each pair of positions in a document, twelve for each
// component of attention. Frozen matrices take four for each weight, for the outputs and the gradients of inputs. What
// is recomputed does not count, and neither does an adapter.
func (s *Spec) StepFlops(w Work) float64 {
	matrices, attention := float64(s.Vocab)*float64(s.Width), 0
	for i := range s.Layers {
		a, f := &s.Layers[i].Attention, &s.Layers[i].FFN
		queries, keys := a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
		attention += queries
		branches, width := 2, f.Width
		if f.Gated() {
			branches = 3
		}
		if x := f.Experts; x != nil {
			branches, width = 3*x.TopK, x.Width
			matrices += float64(s.Width) * float64(x.Count)
		}
		matrices += float64(s.Width) * float64(2*queries+2*keys+branches*width)
	}
	each, pairs := 6.0, 0.0
	if w.Frozen {
		each = 4
	}
	for _, n := range w.Documents {
		pairs += float64(n) * float64(n)
	}
	return each*float64(w.Rows)*matrices + 12*float64(attention)*pairs
}
