package model_test

import (
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// sameMemory is a set that notes the kinds of steps and, once it is told so, begins every scope at the same place, as a
// device may when what lay there has been freed.
type sameMemory struct {
	kernel.Set[float32]
	kinds []any
	store []float32 // nil until then
}

func (s *sameMemory) Steps() kernel.Steps[float32] { return s }

func (s *sameMemory) Run(step kernel.Step[float32], body func(set kernel.Set[float32])) bool {
	s.kinds = append(s.kinds, step.Kind)
	body(s)
	return false
}

func (s *sameMemory) Scope() kernel.Memory[float32] { return &sameScope{s.Set.Scope(), s.store} }

type sameScope struct {
	kernel.Memory[float32]
	store []float32
}

func (s *sameScope) Alloc(n int) kernel.Buffer[float32] {
	if n > len(s.store) {
		return s.Memory.Alloc(n)
	}
	x := s.store[:n]
	s.store = nil
	return x
}

// Steps of scratch memory that has been given back are of other kinds than those of the memory that comes after it,
// even if that begins at the same place: what the steps returned has been forgotten.
func TestStep_KindsEndWithTheirMemory(t *testing.T) {
	cpus := cpu.New(1)
	defer cpus.Close()
	files, set := open(t, shared(t, "models/tiny/llama")), &sameMemory{Set: cpus}
	stage, err := model.Load(files, model.Range{Hi: 1}, kernel.Set[float32](set), model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seq := kvcache.New(stage.CacheConfig(4), stage.Kernels()).NewSequence()
	set.store = make([]float32, 1<<20)
	var last [2]any
	for i := range last {
		for range 5 { // the memory grows, and then holds a pass
			_, err := stage.Forward(&model.Batch[float32]{IDs: []int32{5},
				Entries: []model.Entry[float32]{{Seq: seq, Rows: 1, Pos: seq.Len()}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		n := len(set.kinds)
		if n < 2 || set.kinds[n-1] != set.kinds[n-2] {
			t.Fatalf("the kinds of steps are %v", set.kinds)
		}
		last[i] = set.kinds[n-1]
		stage.Trim()
		if !stage.Trim() {
			t.Fatal("the scratch memory stays")
		}
	}
	if slices.Index(set.kinds, last[1]) < slices.Index(set.kinds, last[0])+2 || last[0] == last[1] {
		t.Errorf("before and after the memory was given back, steps are of the kinds %v", set.kinds)
	}
}
