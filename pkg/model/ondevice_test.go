package model_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
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
			want, err := model.SizeOn(files, span, kernel.Set[float32](set), held, 5, 1, 8)
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
	if got, err := model.SizeOn(files, span, kernel.Set[float32](set), nil, 5, 1, 8); err != nil ||
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
		want, err := model.SizeOn(files, span, kernel.Set[float32](set), nil, rows, 1, 1)
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
		if used := set.Device().Workspace - before; used > want.Workspace || want.Workspace == 0 {
			t.Errorf("%s: a pass takes %d bytes of workspace, %d were counted", name, used, want.Workspace)
		}
	}
}

// largest loads a stage that is the last, and runs passes of up to so many rows of two sequences, with an adapter too.
func largest(files *model.Files, span model.Range, set kernel.Set[float32], rows, pages int, a *adapter.Adapter) error {
	stage, err := model.Load(files, span, set, model.LoadOptions{})
	if err != nil {
		return err
	}
	cache := kvcache.New(stage.CacheConfig(pages), stage.Kernels())
	seqs := []*kvcache.Sequence[float32]{cache.NewSequence(), cache.NewSequence()}
	pass := func(ad *model.Adapter[float32], each ...int) error {
		b := &model.Batch[float32]{Rank: 5}
		for i, n := range each {
			b.Entries = append(b.Entries, model.Entry[float32]{Seq: seqs[i], Pos: seqs[i].Len(), Rows: n, Logits: 1,
				Adapter: ad})
			b.Hidden = append(b.Hidden, make([]float32, n*files.Spec.Width)...)
		}
		_, err := stage.Forward(b)
		return err
	}
	if err := pass(nil, 2, rows-2); err != nil {
		return err
	}
	ad, err := stage.ServeAdapter(a)
	for _, with := range []*model.Adapter[float32]{nil, ad} {
		for range 4 {
			if err == nil {
				err = pass(with, 1, 1)
			}
		}
	}
	if err == nil {
		err = pass(ad, rows-2, 2)
	}
	return err
}

// A device with as much memory as is reserved for a stage, and no more, computes all that the reservation is for: its
// load, passes of many rows and steps, graphs of them, and those of rows with adapters. Without LAMINA_SLOW it checks
// two models.
func TestSizeOn_NoAllocationFailsWithinTheReservation(t *testing.T) {
	const rows, pages = 20, 6
	names := []string{"gpt2", "gpt-oss-mxfp4"}
	if os.Getenv("LAMINA_SLOW") != "" {
		names = sized
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			files := open(t, shared(t, "models/tiny", name))
			span := model.Range{Lo: len(files.Spec.Layers) - 1, Hi: len(files.Spec.Layers)}
			modules := fmt.Sprintf(`.*\.%d\..*(q_proj|o_proj|down_proj|c_\w+)`, span.Lo)
			a := randomAdapter(t, &files.Spec, 4, modules, false, 1)
			limited := func(memory int64) (err error) {
				d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated})
				set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto, Memory: memory})
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if closed := set.Close(); closed != nil {
						t.Error(closed)
					}
				}()
				defer func() {
					switch r := recover().(type) {
					case nil:
					case error:
						err = r
					default:
						panic(r)
					}
				}()
				return largest(files, span, set, rows, pages, a)
			}
			set := twinSet(t)
			size, err := model.SizeOn(files, span, kernel.Set[float32](set), nil, rows, 2, pages)
			if err != nil {
				t.Fatal(err)
			}
			all := size.Weights + size.Workspace + pages*kvcache.DefaultPageLen*files.Spec.KVBytes(kernel.KVAuto)
			for _, m := range a.Outline().Modules {
				all += m.Bytes()
			}
			if err := limited(all); err != nil {
				t.Errorf("with what is reserved, %d bytes: %v", all, err)
			}
			short := (*driver.OutOfMemoryError)(nil)
			if err := limited(all - size.Workspace); !errors.As(err, &short) {
				t.Errorf("without workspace: %v", err)
			}
		})
	}
}
