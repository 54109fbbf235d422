package model_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

// expectation is the expected.json of a tiny model.
type expectation struct {
	Cases []struct {
		IDs        []int32   `json:"ids"`
		LastLogits []float64 `json:"last_logits"`
		Hidden     []struct {
			RMS   float64   `json:"rms"`
			First []float64 `json:"first"`
		} `json:"hidden_last_position"`
		Greedy []int32   `json:"greedy_ids"`
		Gaps   []float64 `json:"gaps"`
	} `json:"cases"`
	Training struct {
		Loss      float64 `json:"loss"`
		Gradients map[string]struct {
			L2    float64   `json:"l2"`
			First []float64 `json:"first"`
		} `json:"gradients"`
	} `json:"training"`
	AdamW struct {
		Loss     []float64 `json:"loss"`
		GradNorm []float64 `json:"grad_norm"`
	} `json:"adamw"`
}

func readExpectation(t *testing.T, name string) expectation {
	t.Helper()
	text, err := os.ReadFile(shared(t, "models/tiny", name, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var e expectation
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// sets are the kernel sets that every model test runs on. tolerance is how much their logits
// may differ from transformers'.
func sets(t testing.TB) map[string]kernel.Set[float32] {
	return map[string]kernel.Set[float32]{"ref": ref.New[float32](), "cpu": cpu.New(2)}
}

var tolerance = map[string]float64{"ref": 1e-3, "cpu": 2e-2}

var tiny = []string{"llama", "llama3-rope", "llama-yarn", "llama-linear-bias", "mistral", "qwen2", "qwen3", "phi3",
	"smollm3", "gemma2", "gemma3", "mixtral", "qwen3-moe", "gpt-oss", "gpt-oss-mxfp4", "gpt2"}

func open(t testing.TB, path string) *model.Files {
	t.Helper()
	f, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// forms opens the files of a tiny model: the folder, and the GGUF file if there is one.
func forms(t *testing.T, name string) map[string]*model.Files {
	out := map[string]*model.Files{"safetensors": open(t, shared(t, "models/tiny", name))}
	gguf := filepath.Join(shared(t, "models/tiny", name), "model-bf16.gguf")
	if _, err := os.Stat(gguf); err == nil {
		out["gguf"] = open(t, gguf)
	}
	return out
}

// chain is a model split into stages, with a sequence in each stage's cache.
type chain[F tensor.Float] struct {
	stages []*model.Stage[F]
	caches []*kvcache.Cache[F]
}

func newChain[F tensor.Float](t testing.TB, f *model.Files, set kernel.Set[F], stages int) *chain[F] {
	t.Helper()
	c := &chain[F]{}
	for _, r := range model.Split(len(f.Spec.Layers), stages) {
		s, err := model.Load(f, r, set, model.LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.stages = append(c.stages, s)
		c.caches = append(c.caches, kvcache.New(s.CacheConfig(1024), s.Kernels()))
	}
	return c
}

func (c *chain[F]) sequence() []*kvcache.Sequence[F] {
	var out []*kvcache.Sequence[F]
	for _, cache := range c.caches {
		out = append(out, cache.NewSequence())
	}
	return out
}

// part is consecutive ids of a sequence in a batch.
type part[F tensor.Float] struct {
	seq []*kvcache.Sequence[F]
	ids []int32
	pos int
}

// run computes a batch on all stages. It returns the logits of the last row of each part.
func (c *chain[F]) run(t testing.TB, parts ...part[F]) []F {
	t.Helper()
	var hidden []F
	for i, s := range c.stages {
		b := &model.Batch[F]{Hidden: slices.Clone(hidden)}
		for _, p := range parts {
			if err := p.seq[i].Reserve(p.pos + len(p.ids)); err != nil {
				t.Fatal(err)
			}
			b.Entries = append(b.Entries, model.Entry[F]{Seq: p.seq[i], Pos: p.pos, Rows: len(p.ids), Logits: 1})
			if i == 0 {
				b.IDs = append(b.IDs, p.ids...)
			}
		}
		var err error
		if hidden, err = s.Forward(b); err != nil {
			t.Fatal(err)
		}
	}
	return slices.Clone(hidden)
}

func TestStage_LogitsOfTinyModels(t *testing.T) {
	for _, name := range brief(tiny, "llama", "mistral", "gpt2") {
		want := readExpectation(t, name)
		for form, files := range forms(t, name) {
			for kernels, set := range sets(t) {
				t.Run(fmt.Sprintf("%s/%s/%s", name, form, kernels), func(t *testing.T) {
					var first [][]float32
					for stages := 1; stages <= 4; stages++ {
						c := newChain(t, files, set, stages)
						for i, example := range want.Cases {
							got := c.run(t, part[float32]{c.sequence(), example.IDs, 0})
							if stages == 1 {
								first = append(first, got)
								near(t, got, example.LastLogits, tolerance[kernels])
							} else if !slices.Equal(got, first[i]) {
								t.Errorf("case %d over %d stages differs from one stage", i, stages)
							}
						}
					}
				})
			}
		}
	}
}

func near(t *testing.T, got []float32, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d logits, want %d", len(got), len(want))
	}
	var worst float64
	for i := range got {
		worst = max(worst, math.Abs(float64(got[i])-want[i]))
	}
	if !(worst <= tolerance) {
		t.Errorf("logits differ by up to %.2g, more than %.2g", worst, tolerance)
	}
}

func TestStage_HiddenStatesLayerByLayer(t *testing.T) {
	for _, name := range tiny {
		want := readExpectation(t, name).Cases[0]
		files := open(t, shared(t, "models/tiny", name))
		c := newChain(t, files, kernel.Set[float32](ref.New[float32]()), 1)
		seq := c.sequence()
		if err := seq[0].Reserve(len(want.IDs)); err != nil {
			t.Fatal(err)
		}
		width, layers := files.Spec.Width, len(files.Spec.Layers)
		_, err := c.stages[0].Forward(&model.Batch[float32]{
			IDs: want.IDs, Entries: []model.Entry[float32]{{Seq: seq[0], Rows: len(want.IDs), Logits: 1}},
			Observe: func(layer int, hidden []float32) {
				if layer == layers-1 {
					return // the reference has the last one after the norm only
				}
				row := hidden[len(hidden)-width:]
				w := want.Hidden[min(layer+1, layers)]
				if rms := math.Sqrt(optim.SumSquares(row) / float64(width)); math.Abs(rms-w.RMS) > 1e-3 {
					t.Errorf("%s: after layer %d the RMS is %.5f, want %.5f", name, layer, rms, w.RMS)
				}
				for i, v := range w.First {
					if math.Abs(float64(row[i])-v) > 1e-3 {
						t.Errorf("%s: after layer %d element %d is %.5f, want %.5f", name, layer, i, row[i], v)
					}
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func argmax(x []float32) int32 {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	return int32(best)
}

func TestStage_ChunksAndBatchesGiveTheSameBits(t *testing.T) {
	for _, name := range []string{"llama", "gpt2", "mistral"} {
		want := readExpectation(t, name)
		files := open(t, shared(t, "models/tiny", name))
		for kernels, set := range sets(t) {
			c := newChain(t, files, set, 2)
			ids, other := want.Cases[0].IDs, want.Cases[1].IDs
			whole := c.run(t, part[float32]{c.sequence(), ids, 0})
			vocab := files.Spec.Vocab
			for _, chunk := range []int{1, 7, 16, 40} {
				seq, company := c.sequence(), c.sequence()
				var got []float32
				for pos := 0; pos < len(ids); pos += chunk {
					n := min(chunk, len(ids)-pos)
					batch := []part[float32]{{seq, ids[pos : pos+n], pos}}
					if pos < len(other) { // another sequence comes first
						batch = append([]part[float32]{{company, other[pos : pos+1], company[0].Len()}}, batch...)
					}
					got = c.run(t, batch...)
				}
				if !slices.Equal(got[len(got)-vocab:], whole) {
					t.Errorf("%s/%s: prefill in chunks of %d differs from one piece", name, kernels, chunk)
				}
			}
		}
	}
}

func TestStage_Stories260KGreedy(t *testing.T) {
	text, err := os.ReadFile(shared(t, "models/stories260K/expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		IDs []int32 `json:"token_ids_from_numpy_forward"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"stories260K-f32.gguf", "."} {
		for kernels, set := range sets(t) {
			c := newChain(t, open(t, shared(t, "models/stories260K", file)), set, 1)
			seq, ids := c.sequence(), []int32{1}
			for pos := range 200 {
				ids = append(ids, argmax(c.run(t, part[float32]{seq, ids[pos:], pos})))
			}
			if !slices.Equal(ids, want.IDs) {
				t.Errorf("%s/%s: greedy ids are %v, want %v", file, kernels, ids, want.IDs)
			}
		}
	}
}
