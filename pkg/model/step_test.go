package model_test

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/testdevice"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// decodeOnGPU decodes two sequences, whose pages of 16 positions end on the way, with a pass of more rows between two
// steps, and then one of them alone. It returns the results of all steps, and how many steps were launched as graphs
// that were there.
func decodeOnGPU(t *testing.T, name string, span model.Range, steps int, c cuda.Config) (out []float32, played int64) {
	t.Helper()
	d, number := testdevice.Open(t, twin.Config{Devices: 1, Machine: twin.Simulated})
	c.Number = number
	set, err := cuda.Open(d, c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}()
	files := open(t, shared(t, "models/tiny", name))
	r := rand.New(rand.NewPCG(9, 1))
	stage, err := model.Load(files, span, kernel.Set[float32](set), model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ch := &chain[float32]{[]*model.Stage[float32]{stage},
		[]*kvcache.Cache[float32]{kvcache.New(stage.CacheConfig(8), stage.Kernels())}}
	a, b := part[float32]{seq: ch.sequence(), ids: random(r, files, 13)}, part[float32]{seq: ch.sequence(),
		ids: random(r, files, 1)}
	next := func(of ...*part[float32]) {
		for _, p := range of {
			p.pos, p.ids = p.pos+len(p.ids), random(r, files, 1)
		}
	}
	ch.run(t, a, b)
	for i := range steps {
		next(&a, &b)
		out = append(out, ch.run(t, a, b)...)
		if i == 4 { // other tables
			ch.run(t, part[float32]{ch.sequence(), random(r, files, 9), 0})
		}
	}
	next(&b)
	out = append(out, ch.run(t, b)...)
	_, played = set.Graphs()
	return out, played
}

// A decode step that is launched as a graph gives the bits of its kernels one by one, also if the rows of a step choose
// other experts than those of the step before. Without LAMINA_SLOW it checks two models.
func TestStep_AGraphGivesTheBitsOfItsKernels(t *testing.T) {
	type decoded struct {
		name   string
		span   model.Range
		kv     kernel.KVType
		steps  int
		played int64
	}
	models := []decoded{
		// The first step of a kind is launched kernel by kernel, the second one makes the graph. The third step has one
		// page more, which is another kind, and the sixth one comes behind a pass that is none.
		{"gemma2", model.Range{Hi: 1}, kernel.KVF16, 5, 2},
		{"gpt-oss-mxfp4", model.Range{Hi: 1}, kernel.KVAuto, 8, 4},
	}
	if os.Getenv("LAMINA_SLOW") != "" {
		models = append(models, decoded{"llama", model.Range{Hi: 1}, kernel.KVAuto, 8, 4},
			decoded{"qwen3-moe", model.Range{Hi: 2}, kernel.KVAuto, 4, 1})
	}
	for _, c := range models {
		t.Run(c.name, func(t *testing.T) {
			want, none := decodeOnGPU(t, c.name, c.span, c.steps, cuda.Config{KV: c.kv, NoGraphs: true})
			got, played := decodeOnGPU(t, c.name, c.span, c.steps, cuda.Config{KV: c.kv})
			if !slices.Equal(got, want) {
				t.Error("graphs give other bits")
			}
			if none != 0 || played != c.played {
				t.Errorf("%d steps were launched as graphs and %d without graphs, want %d and 0", played, none, c.played)
			}
		})
	}
}
