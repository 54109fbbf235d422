package model_test

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/testdevice"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// gpuDecode decodes on the first layer of a model on a GPU, with adapters that come and go.
type gpuDecode struct {
	*testing.T
	files *model.Files
	set   *cuda.Set
	stage *model.Stage[float32]
	cache *kvcache.Cache[float32]
	held  map[string]*model.Adapter[float32]
}

func newGPUDecode(t *testing.T, files *model.Files, c cuda.Config) *gpuDecode {
	t.Helper()
	d, number := testdevice.Open(t, twin.Config{Devices: 1, Machine: twin.Simulated})
	c.Number = number
	set, err := cuda.Open(d, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	stage, err := model.Load(files, model.Range{Hi: 1}, kernel.Set[float32](set), model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &gpuDecode{t, files, set, stage, kvcache.New(stage.CacheConfig(64), stage.Kernels()),
		map[string]*model.Adapter[float32]{}}
}

// load holds an adapter under a name.
func (g *gpuDecode) load(name string, a *adapter.Adapter) {
	g.Helper()
	ad, err := g.stage.ServeAdapter(a)
	if err != nil {
		g.Fatal(err)
	}
	g.held[name] = ad
}

// unload lets an adapter go and waits until its memory is freed.
func (g *gpuDecode) unload(name string) {
	g.Helper()
	delete(g.held, name)
	before := g.set.Device().Weights
	for limit := time.Now().Add(10 * time.Minute); g.set.Device().Weights == before; runtime.GC() {
		if time.Now().After(limit) {
			g.Fatal("an unloaded adapter stays in memory")
		}
	}
}

// forward runs a batch of a row of each sequence, with the adapters of some names, and returns the rows.
func (g *gpuDecode) forward(ids []int32, seqs []*kvcache.Sequence[float32], adapters []string) (rows [][]float32) {
	g.Helper()
	b := &model.Batch[float32]{IDs: ids}
	for i, seq := range seqs {
		b.Entries = append(b.Entries, model.Entry[float32]{Seq: seq, Pos: seq.Len(), Rows: 1,
			Adapter: g.held[adapters[i]]})
	}
	out, err := g.stage.Forward(b)
	if err != nil {
		g.Fatal(err)
	}
	for row := range slices.Chunk(out, len(out)/len(seqs)) {
		rows = append(rows, slices.Clone(row))
	}
	return rows
}

// adapterSteps is which adapter each of three sequences has in each step. A step in which one is loaded or unloaded
// says so.
type adapterSteps []struct {
	adapters     []string
	load, unload string
}

// decode runs the steps with all sequences in a batch, or with each alone, and returns the rows of each sequence.
func (g *gpuDecode) decode(steps adapterSteps, all map[string]*adapter.Adapter, alone bool) (rows [3][][]float32) {
	g.Helper()
	r := rand.New(rand.NewPCG(12, 1))
	var seqs []*kvcache.Sequence[float32]
	for range rows {
		seqs = append(seqs, g.cache.NewSequence())
	}
	for _, s := range steps {
		if s.load != "" {
			g.load(s.load, all[s.load])
		}
		if s.unload != "" {
			g.unload(s.unload)
		}
		ids := random(r, g.files, len(seqs))
		if !alone {
			for i, row := range g.forward(ids, seqs, s.adapters) {
				rows[i] = append(rows[i], row)
			}
			continue
		}
		for i := range seqs {
			row := g.forward(ids[i:i+1], seqs[i:i+1], s.adapters[i:i+1])
			rows[i] = append(rows[i], row[0])
		}
	}
	return rows
}

// Steps of a batch over several adapters are launched as graphs. They give each row the bits that it has alone, kernel
// by kernel, also when the rows change their adapters, and when adapters come and go between two steps: what an
// unloaded one has lain in is freed, and a kernel that read it would fail.
func TestStep_AdaptersInAGraphGiveTheBitsOfEachAlone(t *testing.T) {
	files := open(t, shared(t, "models/tiny/llama"))
	spec := &files.Spec
	saved := withSaved(t, spec, randomAdapter(t, spec, 2, queries, false, 5), 5, "down_proj", "k_proj")
	all := map[string]*adapter.Adapter{"a": randomAdapter(t, spec, 8, everyMatrix, false, 1),
		"b": randomAdapter(t, spec, 3, queries, false, 2), "c": randomAdapter(t, spec, 8, everyMatrix, false, 3),
		"dora": randomAdapter(t, spec, 4, queries, true, 4), "saved": saved}
	// The scratch memory grows in the first step of a batch. The next one is launched kernel by kernel, and the one
	// after it makes the graph. So it is whenever rows with adapters come after steps that have none.
	ab := []string{"a", "b", ""}
	for _, c := range []struct {
		name         string
		held         []string
		steps        adapterSteps
		made, played int64
	}{
		{"that change", []string{"a", "b"}, adapterSteps{
			{ab, "", ""}, {ab, "", ""}, {ab, "", ""}, {ab, "", ""}, {ab, "", ""}, {[]string{"b", "a", ""}, "", ""},
			{[]string{"", "a", "a"}, "", "b"}, {[]string{"c", "a", ""}, "c", ""}, // more products than b and a have
			{[]string{"", "c", ""}, "", "a"}, {[]string{"", "", ""}, "", ""}, {[]string{"", "c", ""}, "", ""},
		}, 2, 5},
		{"that replace modules", []string{"a", "saved"}, adapterSteps{
			{[]string{"a", "saved", ""}, "", ""}, {[]string{"a", "saved", ""}, "", ""},
			{[]string{"a", "saved", ""}, "", ""}, {[]string{"a", "saved", ""}, "", ""},
			{[]string{"a", "saved", ""}, "", ""}, {[]string{"saved", "a", ""}, "", ""},
		}, 1, 2},
		{"with DoRA", []string{"a", "dora"}, adapterSteps{
			{[]string{"a", "dora", ""}, "", ""}, {[]string{"a", "dora", ""}, "", ""},
			{[]string{"a", "dora", ""}, "", ""}, {[]string{"a", "dora", ""}, "", ""},
		}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := func(cfg cuda.Config, alone bool) (rows [3][][]float32, made, played int64) {
				g := newGPUDecode(t, files, cfg)
				for _, name := range c.held {
					g.load(name, all[name])
				}
				rows = g.decode(c.steps, all, alone)
				made, played = g.set.Graphs()
				return rows, made, played
			}
			want, none, _ := run(cuda.Config{KV: kernel.KVAuto, NoGraphs: true}, true)
			got, made, played := run(cuda.Config{KV: kernel.KVAuto}, false)
			for i := range want {
				for step := range want[i] {
					if !slices.Equal(got[i][step], want[i][step]) {
						t.Fatalf("row %d of step %d has other bits in a batch than alone", i, step)
					}
				}
			}
			if none != 0 || made != c.made || played != c.played {
				t.Errorf("%d graphs were made and %d steps launched as one that was there, want %d and %d", made,
					played, c.made, c.played)
			}
		})
	}
}
