package model_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// sized are the models whose sizes are compared.
var sized = []string{"llama", "gpt2", "gemma2", "gpt-oss-mxfp4"}

// twinSet opens a device without a GPU.
func twinSet(t *testing.T) *cuda.Set {
	t.Helper()
	set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), cuda.Config{KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return set
}

// The bytes that are counted before a load are those that it allocates, also for types that are decoded and beside a
// stage that is held.
func TestSizeOn_IsWhatALoadAllocates(t *testing.T) {
	for _, name := range sized {
		files, set := open(t, shared(t, "models/tiny", name)), twinSet(t)
		var held []*model.Stage[float32]
		for _, span := range []model.Range{{Lo: 0, Hi: 2}, {Lo: 1, Hi: len(files.Spec.Layers)}} {
			want, err := model.SizeOn(files, span, kernel.Set[float32](set), held, 5, 1)
			if err != nil {
				t.Fatal(err)
			}
			before := set.Device()
			moved := int64(0)
			stage, err := model.LoadBeside(files, span, kernel.Set[float32](set), model.LoadOptions{
				Progress: func(n int64) error {
					moved += n
					return nil
				},
			}, held)
			if err != nil {
				t.Fatal(err)
			}
			// What is decoded on the device was there as it lies for a moment. The collector frees that.
			after := set.Device()
			allocated := func() int64 { return after.Weights + after.Workspace - before.Weights - before.Workspace }
			for limit := time.Now().Add(time.Minute); allocated() > want.Weights && time.Now().Before(limit); {
				runtime.GC()
				after = set.Device()
			}
			// Vectors that are not weights of the file, such as room for 1 + gain, count as workspace once they are
			// there.
			got := allocated()
			if want.Weights == 0 || got != want.Weights {
				t.Errorf("%s, layers %v: %d bytes are allocated and %d moved, %d were counted", name, span, got, moved,
					want.Weights)
			}
			held = append(held, stage)
		}
		runtime.KeepAlive(held)
	}
	files, set := open(t, shared(t, "models/tiny/llama")), cpu.New(1)
	defer set.Close()
	span := model.Range{Lo: 0, Hi: 1}
	if got, err := model.SizeOn(files, span, kernel.Set[float32](set), nil, 5, 1); err != nil ||
		got.Weights != files.SpanBytes(span) {
		t.Errorf("on a processor: %+v, %v", got, err)
	}
}

// A pass takes no more workspace than was counted before the load.
func TestSizeOn_BoundsTheWorkspaceOfAPass(t *testing.T) {
	for _, name := range sized {
		files, set := open(t, shared(t, "models/tiny", name)), twinSet(t)
		const rows = 5
		span := model.Range{Lo: 0, Hi: 2}
		want, err := model.SizeOn(files, span, kernel.Set[float32](set), nil, rows, 1)
		if err != nil {
			t.Fatal(err)
		}
		stage, err := model.Load(files, span, kernel.Set[float32](set), model.LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		before := set.Device().Workspace
		seq := kvcache.New(stage.CacheConfig(1), stage.Kernels()).NewSequence()
		if _, err := stage.Forward(&model.Batch[float32]{IDs: make([]int32, rows),
			Entries: []model.Entry[float32]{{Seq: seq, Rows: rows}}}); err != nil {
			t.Fatal(err)
		}
		// What the set itself needs is of fixed size, for tables and activations of products.
		if used := set.Device().Workspace - before; used > want.Workspace+1<<20 || want.Workspace == 0 {
			t.Errorf("%s: a pass takes %d bytes of workspace, %d were counted", name, used, want.Workspace)
		}
	}
}
