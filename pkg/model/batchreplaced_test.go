package model_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// withSaved gives an adapter tensors with random values in place of the modules with some names.
func withSaved(t testing.TB, spec *model.Spec, a *adapter.Adapter, seed uint64, names ...string) *adapter.Adapter {
	t.Helper()
	a.Save = names
	params, err := spec.SavedParams(&a.Config)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 11))
	for _, p := range params {
		n := 1
		for _, d := range p.Shape {
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(0.15 * r.NormFloat64())
			if len(p.Shape) == 1 && strings.HasSuffix(p.Name, ".weight") {
				values[i]++
			}
		}
		values, shape := spec.AsSaved(p.Name, values, p.Shape, false)
		a.Saved = append(a.Saved, adapter.Saved{Name: p.Name, Shape: shape, Data: values})
	}
	a.Modules = slices.DeleteFunc(a.Modules, func(m adapter.Module) bool { // PEFT leaves the others to LoRA
		_, ok := a.Replaced(m.Name + ".weight")
		return ok
	})
	return a
}

// saves has modules of every kind that a model has: embeddings, heads, matrices alone and fused, norms of the hidden
// state and of heads, and routers.
var saves = map[string][]string{
	"llama":     {"lm_head", "embed_tokens", "norm", "q_proj", "down_proj"},
	"phi3":      {"qkv_proj", "gate_up_proj"},
	"gpt2":      {"wte", "wpe", "c_attn", "ln_2"},
	"gemma3":    {"lm_head", "q_norm", "post_feedforward_layernorm", "k_proj"},
	"qwen2":     {"k_proj", "v_proj", "norm"},
	"qwen3-moe": {"mlp.gate", "k_norm", "o_proj"},
}

// TestForward_ReplacedModulesGiveTheBitsOfEachAlone mixes rows of adapters that replace modules, of others and of none.
func TestForward_ReplacedModulesGiveTheBitsOfEachAlone(t *testing.T) {
	for _, name := range brief([]string{"llama", "phi3", "gpt2", "gemma3", "qwen3-moe"}, "llama", "gpt2") {
		for form, files := range forms(t, name) {
			for kernels, set := range sets(t) {
				for stages := 1; stages <= 2; stages++ {
					t.Run(fmt.Sprintf("%s/%s/%s/%d", name, form, kernels, stages), func(t *testing.T) {
						spec, names := &files.Spec, saves[name]
						mix(t, files, set, stages,
							withSaved(t, spec, randomAdapter(t, spec, 2, queries, false, 1), 1, names...),
							randomAdapter(t, spec, 3, everyMatrix, false, 2),
							withSaved(t, spec, randomAdapter(t, spec, 4, everyMatrix, false, 3), 3, names[0]),
							withSaved(t, spec, randomAdapter(t, spec, 5, queries, true, 4), 4, names[1:]...))
					})
				}
			}
		}
	}
}

// TestForward_ReplacedModulesEqualMergedWeights compares rows of a mixed batch with a model into which the adapter is
// merged. With float32 weights those rows' products are the same.
func TestForward_ReplacedModulesEqualMergedWeights(t *testing.T) {
	all := []string{"llama", "phi3", "gpt2", "gemma3", "qwen2", "qwen3-moe"}
	for _, name := range brief(all, "llama", "gpt2", "gemma3") {
		for form, files := range forms(t, name) {
			set := kernel.Set[float32](ref.New[float32]())
			ids := readExpectation(t, name).Cases[0].IDs[:12]
			a := withSaved(t, &files.Spec, randomAdapter(t, &files.Spec, 2, queries, false, 5), 5, saves[name]...)
			c := newChain(t, files, set, 2)
			got := c.adapted(t, turn[float32]{part[float32]{c.sequence(), ids, 0}, nil},
				turn[float32]{part[float32]{c.sequence(), ids, 0}, c.serve(t, a)})
			near(t, got[1], merged(t, files, a, ids), 2e-3)
			if slices.Equal(got[0], got[1]) {
				t.Error("the adapter has no effect")
			}
			if t.Failed() {
				t.Fatalf("%s/%s", name, form)
			}
		}
	}
}

// savedGolden is what PEFT computes with adapters that save modules. The values of a tensor are a formula, so that the
// file is small.
type savedGolden struct {
	By    string
	Cases []struct {
		Model   string
		Config  json.RawMessage
		Tensors map[string]struct {
			Shape         []int
			Seed          uint64
			Scale, Offset float64
		}
		IDs        []int32
		LastLogits []float64 `json:"last_logits"`
	}
}

// TestForward_ReplacedModulesOfPEFT serves folders as PEFT writes them beside rows of the base.
func TestForward_ReplacedModulesOfPEFT(t *testing.T) {
	text, err := os.ReadFile("testdata/peft-saved.json")
	if err != nil {
		t.Fatal(err)
	}
	var want savedGolden
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	for _, tc := range want.Cases {
		dir := t.TempDir()
		var tensors []namedTensor
		for name, v := range tc.Tensors {
			n := 1
			for _, d := range v.Shape {
				n *= d
			}
			values := make([]float32, n)
			for i := range values {
				z := (uint64(i)*40503 + v.Seed*7919) % 65521
				values[i] = float32((float64(z)/65521-0.5)*v.Scale + v.Offset)
			}
			tensors = append(tensors, namedTensor{name, v.Shape, values})
		}
		writeFolder(t, dir, tc.Config, tensors)
		a, err := adapter.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for form, files := range forms(t, tc.Model) {
			for kernels, set := range sets(t) {
				for stages := 1; stages <= 2; stages++ {
					c := newChain(t, files, set, stages)
					got := c.adapted(t, turn[float32]{part[float32]{c.sequence(), tc.IDs, 0}, nil},
						turn[float32]{part[float32]{c.sequence(), tc.IDs, 0}, c.serve(t, a)})
					bound := tolerance[kernels]
					if form == "gguf" {
						bound = 0.1 // its base is bfloat16
					}
					near(t, got[1], tc.LastLogits, bound)
					if t.Failed() {
						t.Fatalf("%s/%s/%s over %d stages", tc.Model, form, kernels, stages)
					}
				}
			}
		}
	}
}

// TestServeAdapter_RefusesWhatCannotReplace names the tensor and why.
func TestServeAdapter_RefusesWhatCannotReplace(t *testing.T) {
	for _, tc := range []struct {
		model, want string
		code        fault.Code
		saved       adapter.Saved
	}{
		{"llama", "lm_head.weight: want shape [320 64], got [64 320]", fault.DataLoss,
			adapter.Saved{Name: "lm_head.weight", Shape: []int{64, 320}, Data: make([]float32, 64*320)}},
		{"llama", "score.weight: the model has no such parameter", fault.DataLoss,
			adapter.Saved{Name: "score.weight", Shape: []int{64}, Data: make([]float32, 64)}},
		{"gpt-oss", "modules_to_save model.layers.0.self_attn.sinks is not supported", fault.Unimplemented,
			adapter.Saved{Name: "model.layers.0.self_attn.sinks", Shape: []int{4}, Data: make([]float32, 4)}},
	} {
		files := open(t, shared(t, "models/tiny", tc.model))
		a := randomAdapter(t, &files.Spec, 2, `.*0.self_attn.q_proj`, false, 1)
		a.Saved = []adapter.Saved{tc.saved}
		_, err := newChain(t, files, kernel.Set[float32](ref.New[float32]()), 1).stages[0].ServeAdapter(a)
		if fault.CodeOf(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

// TestServeAdapter_CountsWhatItReplaces compares the bytes of a stage's part with its tensors. The embedding belongs to
// the first stage and the head to the last one, also if the model ties them.
func TestServeAdapter_CountsWhatItReplaces(t *testing.T) {
	files := open(t, shared(t, "models/tiny/gpt2"))
	a := randomAdapter(t, &files.Spec, 2, queries, false, 1)
	a = withSaved(t, &files.Spec, a, 1, "wte", "lm_head", "ln_f", "ln_1")
	a.Modules = nil
	c := newChain(t, files, kernel.Set[float32](ref.New[float32]()), 2)
	parts, sum := c.serve(t, a), int64(0)
	for i := range a.Outline().Saved {
		v := &a.Outline().Saved[i]
		for n, s := range c.stages {
			if s.NeedsSaved(v.Name) {
				sum += v.Bytes()
				first, last := v.Name == "transformer.wte.weight", v.Name == "lm_head.weight"
				if first && n == 1 || last && n == 0 {
					t.Errorf("stage %d needs %s", n, v.Name)
				}
			}
		}
	}
	all := int64(0)
	for i := range a.Saved {
		all += int64(4 * len(a.Saved[i].Data))
	}
	if got := parts[0].Bytes() + parts[1].Bytes(); got != sum || sum != all {
		t.Errorf("the stages take %d bytes, their tensors have %d, and the adapter %d", got, sum, all)
	}
}

// namedTensor is a tensor of a file of safetensors.
type namedTensor struct {
	name   string
	shape  []int
	values []float32
}

// writeFolder writes an adapter as PEFT does.
func writeFolder(t *testing.T, dir string, config []byte, tensors []namedTensor) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, adapter.ConfigFile), config, 0o600); err != nil {
		t.Fatal(err)
	}
	var all []weights.Named
	for _, v := range tensors {
		data := make([]byte, 4*len(v.values))
		tensor.PutF32LE(data, v.values)
		all = append(all, weights.Named{Name: v.name, DType: tensor.F32, Shape: v.shape, Data: data})
	}
	slices.SortFunc(all, func(x, y weights.Named) int { return strings.Compare(x.Name, y.Name) })
	if err := weights.WriteSafetensors(filepath.Join(dir, adapter.WeightsFile), all, nil); err != nil {
		t.Fatal(err)
	}
}
