package model_test

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"weak"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// scopes is a set that hands out a memory of its own for each Scope, as a device does, and notes the allocations.
type scopes struct {
	kernel.Set[float32]
	mu      sync.Mutex
	handed  []weak.Pointer[scopeOf]
	largest int // elements of an allocation
}

// scopeOf is a scope of scopes.
type scopeOf struct {
	kernel.Memory[float32]
	set *scopes
}

func (s *scopes) Scope() kernel.Memory[float32] {
	out := &scopeOf{s.Set, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handed = append(s.handed, weak.Make(out))
	return out
}

func (s *scopeOf) Alloc(n int) kernel.Buffer[float32] {
	s.set.mu.Lock()
	s.set.largest = max(s.set.largest, n)
	s.set.mu.Unlock()
	return s.Memory.Alloc(n)
}

// A pass through experts uses the scratch memory of one layer, however many layers a stage has.
func TestForward_ExpertsShareScratchMemory(t *testing.T) {
	files := open(t, shared(t, "models/tiny/mixtral"))
	const rows = 64
	largest := func(r model.Range) int {
		set := &scopes{Set: ref.New[float32]()}
		stage, err := model.Load(files, r, kernel.Set[float32](set), model.LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c := &chain[float32]{stages: []*model.Stage[float32]{stage},
			caches: []*kvcache.Cache[float32]{kvcache.New(stage.CacheConfig(64), stage.Kernels())}}
		set.largest = 0
		for range 3 { // the first ones find how much is needed
			c.run(t, part[float32]{c.sequence(), make([]int32, rows), 0})
		}
		return set.largest
	}
	one, three := largest(model.Range{Hi: 1}), largest(model.Range{Hi: 3})
	if one == 0 || three != one {
		t.Errorf("a store of %d elements for one layer, of %d for three", one, three)
	}
}

// A stage that shares packed matrices with another one does not keep the other one's memory; one that shares decoded
// matrices, which are in that memory, does.
func TestLoadBeside_KeepsTheMemoryOfDecodedMatricesOnly(t *testing.T) {
	for name, kept := range map[string]bool{"llama": false, "gpt-oss": true} {
		files := open(t, shared(t, "models/tiny", name))
		set := &scopes{Set: ref.New[float32]()}
		load := func(r model.Range, held ...*model.Stage[float32]) *model.Stage[float32] {
			s, err := model.LoadBeside(files, r, kernel.Set[float32](set), model.LoadOptions{}, held)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		later := load(model.Range{Hi: 2}, load(model.Range{Hi: 1}))
		first := set.handed[0] // of the stage that is dropped now
		runtime.GC()
		if alive := first.Value() != nil; alive != kept {
			t.Errorf("%s: the memory of a stage that was dropped is kept: %v, want %v", name, alive, kept)
		}
		runtime.KeepAlive(later)
	}
}

// full is a set of a device that may have no memory left.
type full struct {
	kernel.Set[float32]
	now *bool
}

// errFull is what its allocations panic with.
var errFull = errors.New("cuda:0: out of device memory")

func (f full) Scope() kernel.Memory[float32] { return f }

func (f full) Alloc(n int) kernel.Buffer[float32] { return f.FromHost(make([]float32, n)) }

func (f full) FromHost(x []float32) kernel.Buffer[float32] {
	if *f.now {
		panic(errFull)
	}
	return x
}

// A stage or an adapter that does not fit a device is an error that names the layers, not a panic.
func TestStage_ThatDoesNotFit(t *testing.T) {
	files, now := open(t, shared(t, "models/tiny/llama")), true
	load := func() (*model.Stage[float32], error) {
		return model.Load(files, model.Range{Hi: 2}, kernel.Set[float32](full{ref.New[float32](), &now}),
			model.LoadOptions{})
	}
	if _, err := load(); !errors.Is(err, errFull) || !strings.Contains(err.Error(), "load layers 0-2 of "+files.Path) {
		t.Errorf("loading without memory: %v", err)
	}
	now = false
	stage, err := load()
	if err != nil {
		t.Fatal(err)
	}
	now = true
	a := &adapter.Adapter{Modules: []adapter.Module{{Name: "model.layers.0.mlp.down_proj", Rank: 1, Scale: 1,
		In: stage.Spec.Layers[0].FFN.Width, Out: stage.Spec.Width}}}
	a.Modules[0].A, a.Modules[0].B = make([]float32, a.Modules[0].In), make([]float32, a.Modules[0].Out)
	if _, err := stage.ServeAdapter(a); !errors.Is(err, errFull) ||
		!strings.Contains(err.Error(), "put an adapter beside layers 0-2") {
		t.Errorf("an adapter without memory: %v", err)
	}
}
