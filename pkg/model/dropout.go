package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Dropout has the rates of dropout, from 0 (none) to below 1, in the places where GPT-2 has it.
type Dropout struct {
	Attention float64 // of the softmax weights
	Residual  float64 // of the outputs of attention and feed-forward, before they are added to the residual
	Embedding float64 // of the sum of the embeddings
	Adapter   float64 // of the inputs of adapters
	// Key is that of the micro-batch, made by DropoutKey. With it, the layer, the place and the position decide
	// what is dropped.
	Key uint64
}

// DropoutKey returns the key for the slot of a step.
func DropoutKey(seed, step, slot uint64) uint64 {
	const golden = 0x9e3779b97f4a7c15 // as in SplitMix64
	key := mix(seed ^ 0x64726f706f757421)
	key = mix(key + (step+1)*golden)
	return mix(key + (slot+1)*golden)
}

// dropoutPlace is a place of a layer in which values are dropped.
type dropoutPlace uint64

const (
	embeddingDropout dropoutPlace = iota
	attentionDropout
	outputDropout      // of attention
	feedForwardDropout // its output
	dropoutPlaces
)

// of returns the dropout of a place in a layer.
func (d *Dropout) of(place dropoutPlace, layer int) kernel.Dropout {
	rate := d.Residual
	switch place {
	case embeddingDropout:
		rate = d.Embedding
	case attentionDropout:
		rate = d.Attention
	}
	if rate == 0 {
		return kernel.Dropout{}
	}
	return kernel.Dropout{Rate: rate, Key: mix(d.Key + uint64(dropoutPlaces)*uint64(layer) + uint64(place) + 1)}
}

// any reports whether anything is dropped.
func (d *Dropout) any() bool {
	return d.Attention != 0 || d.Residual != 0 || d.Embedding != 0 || d.Adapter != 0
}

func (d *Dropout) check() error {
	for _, r := range []struct {
		name string
		rate float64
	}{{"attention", d.Attention}, {"residual", d.Residual}, {"embedding", d.Embedding},
		{"adapter", d.Adapter}} {
		if !(r.rate >= 0 && r.rate < 1) {
			return fault.Field("dropout."+r.name, "%v is not within 0..1, without 1", r.rate)
		}
	}
	return nil
}

// drop drops values of x[t,C].
func (s *Stage[F]) drop(x kernel.Buffer[F], d kernel.Dropout, t int) {
	if d.Rate != 0 {
		s.set.Dropout(x, d, t, s.Spec.Width)
	}
}

// addDropped is addBranch with dropout of what is added.
func (s *Stage[F]) addDropped(x, h kernel.Buffer[F], post *norm[F], d kernel.Dropout, t int) {
	if d.Rate == 0 {
		s.addBranch(x, h, post, t)
		return
	}
	if post.Kind != NoNorm {
		s.normalize(h, h, post, t)
	}
	s.drop(h, d, t)
	s.set.Add(x, h)
}

// droppedGrad returns the gradient of what addDropped has dropped, given that of the sum.
func (s *Stage[F]) droppedGrad(dx kernel.Buffer[F], d kernel.Dropout, t int, w *grads[F]) kernel.Buffer[F] {
	if d.Rate == 0 {
		return dx
	}
	s.set.Copy(w.dropped, dx)
	s.drop(w.dropped, d, t)
	return w.dropped
}
