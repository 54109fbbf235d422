package model

// StepFlops returns the floating-point operations of a training step over sequences of one length, counted as
// nanoGPT does: for each token, six for each weight of a matrix that it is multiplied by, and twelve for each
// position and component of attention. What is recomputed does not count.
func (s *Spec) StepFlops(sequences, length int) float64 {
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
	return float64(sequences*length) * (6*matrices + 12*float64(attention)*float64(length))
}
