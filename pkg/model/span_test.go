package model_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

func TestLoadBeside_GivesTheBitsOfLoad(t *testing.T) {
	dir := os.Getenv("LAMINA_SHARED")
	if dir == "" {
		dir = "../../../shared"
	}
	paths, err := filepath.Glob(filepath.Join(dir, "models/tiny/*"))
	if err != nil || len(paths) == 0 {
		t.Skip("no tiny models: set LAMINA_SHARED")
	}
	set := cpu.New(1)
	defer set.Close()
	tested := 0
	for _, path := range paths {
		f, err := model.Open(path)
		if err != nil || f.Spec.Encoder() || len(f.Spec.Layers) < 2 {
			continue
		}
		tested++
		last := len(f.Spec.Layers)
		load := func(r model.Range, held ...*model.Stage[float32]) *model.Stage[float32] {
			s, err := model.LoadBeside(f, r, set, model.LoadOptions{}, held)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			return s
		}
		whole := model.Range{Lo: 0, Hi: last}
		plain, err := model.Load(f, whole, set, model.LoadOptions{})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		first, second := load(model.Range{Lo: 0, Hi: 1}), load(model.Range{Lo: 1, Hi: last})
		shared := load(whole, first, second)
		want, got := lastLogits(t, plain), lastLogits(t, shared)
		if !slices.Equal(want, got) {
			t.Errorf("%s: shared matrices give other logits", path)
		}
		if n := f.SpanBytes(whole, whole); n != 0 {
			t.Errorf("%s: %d bytes of a whole model that is held are missing", path, n)
		}
		parts := f.SpanBytes(model.Range{Lo: 0, Hi: 1}) + f.SpanBytes(whole, model.Range{Lo: 0, Hi: 1})
		all := f.SpanBytes(model.Range{Lo: 0, Hi: 1}) + f.SpanBytes(model.Range{Lo: 1, Hi: last})
		if parts > all {
			t.Errorf("%s: a part and the rest are %d bytes, two stages %d", path, parts, all)
		}
		if missing := f.Span(whole, whole); len(missing) > 0 {
			t.Errorf("%s: tensors %v are missing", path, missing)
		}
		_ = f.Close()
	}
	if tested == 0 {
		t.Error("no model was tested")
	}
}

// lastLogits runs three rows through a whole model and returns the logits of the last one.
func lastLogits(t *testing.T, s *model.Stage[float32]) []float32 {
	t.Helper()
	seq := kvcache.New(s.CacheConfig(4), s.Kernels()).NewSequence()
	defer seq.Free()
	out, err := s.Forward(&model.Batch[float32]{
		IDs: []int32{1, 5, 3}, Entries: []model.Entry[float32]{{Seq: seq, Rows: 3, Logits: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out)
}
