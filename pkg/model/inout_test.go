package model_test

import (
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// Hidden states that functions take and give are those that would be in host memory.
func TestStage_HiddenStatesByFunctions(t *testing.T) {
	files := open(t, shared(t, "models/tiny/llama"))
	ids := []int32{3, 7, 40, 11}
	for name, set := range sets(t) {
		c := newChain(t, files, set, 3)
		want := c.run(t, part[float32]{c.sequence(), ids, 0})
		seq := c.sequence()
		var hidden, got []float32
		for i, s := range c.stages {
			b := &model.Batch[float32]{Entries: []model.Entry[float32]{{Seq: seq[i], Rows: len(ids), Logits: 1}}}
			if i == 0 {
				b.IDs = ids
			} else {
				before := hidden
				b.In = func(x kernel.Buffer[float32]) { set.Upload(x, before) }
			}
			b.Out = func(x kernel.Buffer[float32]) { hidden = slices.Clone(set.Host(x)) }
			out, err := s.Forward(b)
			if err != nil {
				t.Fatal(err)
			}
			if s.Last() {
				got = out
			} else if out != nil || len(hidden) != len(ids)*files.Spec.Width {
				t.Errorf("%s: stage %d returns %d values, and gives %d", name, i, len(out), len(hidden))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: other logits", name)
		}
	}
}
