package model_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestSpec_StepFlops compares counts with nanoGPT's formula, (6·N + 12·L·C·T)·tokens, and with what documents and
// frozen matrices leave out.
func TestSpec_StepFlops(t *testing.T) {
	s := model.NewGPT2(model.Shape{Layers: 3, Width: 64, Heads: 4, Context: 32, Vocab: 100})
	const tokens, length = 8 * 32, 32
	matrices := 100*64 + 3*12*64*64
	for _, c := range []struct {
		what string
		work model.Work
		want int
	}{
		{"sequences", model.Sequences(8, length), tokens * (6*matrices + 12*3*64*length)},
		{"documents of half the length", model.Work{Rows: tokens, Documents: model.Sequences(16, length/2).Documents},
			tokens * (6*matrices + 12*3*64*length/2)},
		{"an adapter", model.Work{Rows: tokens, Documents: model.Sequences(8, length).Documents, Frozen: true},
			tokens * (4*matrices + 12*3*64*length)},
		{"nothing", model.Work{}, 0},
	} {
		if got := s.StepFlops(c.work); got != float64(c.want) {
			t.Errorf("%s: %v operations, want %d", c.what, got, c.want)
		}
	}
}
