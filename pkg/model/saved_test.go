package model_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// saving returns a random adapter that saves modules, too.
func saving(t *testing.T, f *model.Files, modules ...string) *adapter.Adapter {
	t.Helper()
	a := randomAdapter(t, &f.Spec, 2, `.*(q_proj|v_proj|c_attn)`, false, 5)
	a.Save = modules
	return a
}

// TestStage_SavedModulesAreTrainedWhole compares the gradients of modules that are saved with those that they have when
// everything is trained, with the same adapter in use. A tied head and its embedding are two.
func TestStage_SavedModulesAreTrainedWhole(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	in := masked[float32]([]int32{3, 14, 15, 92, 65, 35, 89, 79, 32, 38}, 3)
	for name, want := range map[string][]string{
		"llama":  {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"},
		"gemma2": {"lm_head.weight", "model.embed_tokens.weight"},
		"gpt2":   {"transformer.wte.weight", "transformer.h.0.mlp.c_proj.weight", "transformer.h.0.mlp.c_proj.bias"},
	} {
		for _, stages := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s over %d", name, stages), func(t *testing.T) {
				f := open(t, shared(t, "models/tiny", name))
				var modules []string
				for _, w := range want {
					modules = append(modules, strings.TrimSuffix(strings.TrimSuffix(w, ".weight"), ".bias"))
				}
				a := saving(t, f, modules...)
				full, low, both := &lowTrainer[float32]{}, newLow(t, f, a, set, stages, true), &lowTrainer[float32]{}
				for _, r := range model.Split(len(f.Spec.Layers), stages) {
					load := func(o model.LoadOptions) (*model.Stage[float32], *model.Adapter[float32]) {
						s, err := model.Load(f, r, set, o)
						if err != nil {
							t.Fatal(err)
						}
						part, err := s.NewAdapter(a)
						if err != nil {
							t.Fatal(err)
						}
						return s, part
					}
					s, part := load(model.LoadOptions{Dense: true})
					s.Use(part)
					full.stages, full.grads = append(full.stages, s), append(full.grads, s.NewGrads())
					s, part = load(model.LoadOptions{Dense: true, Saved: a})
					s.Train(part)
					both.stages, both.grads = append(both.stages, s), append(both.grads, s.NewGrads())
				}
				a1, b1, c1 := full.step(t, in), low.step(t, in), both.step(t, in)
				if a1 != b1 || b1 != c1 {
					t.Errorf("losses %v, %v and %v", a1, b1, c1)
				}
				got, _ := both.all()
				lows, _ := low.all()
				if names := slices.Sorted(maps.Keys(got)); len(names) != len(lows)+len(want) {
					t.Errorf("trains %v", names)
				}
				for name, g := range lows {
					if !slices.Equal(got[name], g) {
						t.Errorf("the gradient of %s differs from that without modules that are saved", name)
					}
				}
				for _, name := range want {
					for _, g := range full.grads {
						if p, ok := g.Get(name); ok && !slices.Equal(got[name], p.Data) {
							t.Errorf("the gradient of %s differs from that of training everything", name)
						}
					}
					if slices.IndexFunc(got[name], func(v float32) bool { return v != 0 }) < 0 {
						t.Errorf("%s has no gradient", name)
					}
				}
			})
		}
	}
}

// TestStage_SavedModulesOfAStoredBase decodes what is saved of a GGUF file, and reads it back from an adapter as PEFT
// has it.
func TestStage_SavedModulesOfAStoredBase(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for name, module := range map[string]string{"llama": "model.layers.0.self_attn.q_proj",
		"gpt2": "transformer.h.0.attn.c_proj"} {
		f := open(t, filepath.Join(shared(t, "models/tiny", name), "model-bf16.gguf"))
		a := saving(t, f, module)
		whole := model.Range{Hi: len(f.Spec.Layers)}
		load := func(o model.LoadOptions) *model.Stage[float32] {
			s, err := model.Load(f, whole, set, o)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		stage := load(model.LoadOptions{Saved: a})
		p, ok := stage.Params().Get(module + ".weight")
		if !ok || p.Data == nil {
			t.Fatalf("%s: %s has no memory of its own", name, module)
		}
		if other, _ := stage.Params().Get(strings.Replace(module, ".0.", ".1.", 1) + ".weight"); other.Data != nil {
			t.Errorf("%s: %s has memory of its own", name, other.Name)
		}
		for i := range p.Data {
			p.Data[i] += float32(i%5) / 8
		}
		values, shape := stage.Spec.AsSaved(p.Name, p.Data, p.Shape, stage.Spec.Pairs(module))
		saved := &adapter.Adapter{Config: adapter.Config{Save: a.Save},
			Saved: []adapter.Saved{{Name: p.Name, Shape: shape, Data: values}}}
		for what, o := range map[string]model.LoadOptions{"used": {Adapter: saved}, "trained on": {Saved: saved}} {
			if again, _ := load(o).Params().Get(p.Name); !slices.Equal(again.Data, p.Data) {
				t.Errorf("%s: %s has other values when the adapter is %s", name, module, what)
			}
		}
	}
}

func TestSpec_SavedModulesMustFit(t *testing.T) {
	f := open(t, shared(t, "models/tiny", "qwen3-moe"))
	for name, want := range map[string]string{"classifier": "no module", "gate_up_proj": "experts"} {
		_, err := f.Spec.SavedParams(&adapter.Config{Save: []string{name}})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	got, err := f.Spec.SavedParams(&adapter.Config{Save: []string{"lm_head", "model.norm", "q_proj"}})
	if err != nil || len(got) != 2+len(f.Spec.Layers) {
		t.Errorf("%d parameters, %v", len(got), err)
	}
}
