package model_test

import (
	"runtime"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// The bytes that are counted before a load are those that it allocates, also for types that are decoded and beside a
// stage that is held. A pass stays within the workspace.
func TestSizeOn_IsWhatALoadAllocates(t *testing.T) {
	for _, name := range []string{"llama", "gpt2", "gemma2", "gpt-oss-mxfp4"} {
		files := open(t, shared(t, "models/tiny", name))
		set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), cuda.Config{KV: kernel.KVAuto})
		if err != nil {
			t.Fatal(err)
		}
		var held []*model.Stage[float32]
		for _, span := range []model.Range{{Lo: 0, Hi: 2}, {Lo: 1, Hi: len(files.Spec.Layers)}} {
			const rows = 5
			want, err := model.SizeOn(files, span, kernel.Set[float32](set), held, rows, 1)
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
			after := set.Device()
			// Vectors that are not weights of the file, such as room for 1 + gain, count as workspace once they are there.
			got := after.Weights + after.Workspace - before.Weights - before.Workspace
			if want.Weights == 0 || got != want.Weights || moved == 0 {
				t.Errorf("%s, layers %v: %d bytes are allocated and %d moved, %d were counted", name, span, got, moved,
					want.Weights)
			}
			held = append(held, stage)
			if !stage.First() || stage.Last() {
				continue
			}
			cache := kvcache.New(stage.CacheConfig(1), stage.Kernels())
			seq := cache.NewSequence()
			ids := make([]int32, rows)
			if _, err := stage.Forward(&model.Batch[float32]{IDs: ids, Entries: []model.Entry[float32]{{Seq: seq,
				Rows: rows}}}); err != nil {
				t.Fatal(err)
			}
			// What the set itself needs is of fixed size, for tables and activations of products.
			if used := set.Device().Workspace - after.Workspace; used > want.Workspace+1<<20 || want.Workspace == 0 {
				t.Errorf("%s: a pass takes %d bytes of workspace, %d were counted", name, used, want.Workspace)
			}
		}
		runtime.KeepAlive(held)
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}
	files, set := open(t, shared(t, "models/tiny/llama")), cpu.New(1)
	defer set.Close()
	span := model.Range{Lo: 0, Hi: 1}
	if got, err := model.SizeOn(files, span, kernel.Set[float32](set), nil, 5, 1); err != nil ||
		got.Weights != files.SpanBytes(span) {
		t.Errorf("on a processor: %+v, %v", got, err)
	}
}
