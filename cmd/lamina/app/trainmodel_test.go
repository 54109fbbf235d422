package app_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/fixtures"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// tinyModel returns the folder of a tiny model.
func tinyModel(t *testing.T, name string) string {
	t.Helper()
	return fixtures.Path(t, "models/tiny", name)
}

// tinyNames lists the tiny models, and some of them.
func tinyNames(t *testing.T) (all, some []string) {
	t.Helper()
	entries, err := os.ReadDir(tinyModel(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	some = []string{"gpt-oss-mxfp4", "gemma3", "gpt2"}
	if os.Getenv("LAMINA_SLOW") != "" {
		some = all
	}
	return all, some
}

// TestTrain_AnyArchitectureFromFilesAndFromRandomWeights trains every tiny model from its files and from
// random weights, over two layouts, one of which recomputes layers. The trained model is served.
func TestTrain_AnyArchitectureFromFilesAndFromRandomWeights(t *testing.T) {
	all, some := tinyNames(t)
	if testing.Short() {
		all = some
	}
	for _, name := range all {
		dir := tinyModel(t, name)
		for form, with := range map[string]map[string]any{
			"files":  {"from": dir},
			"random": {"config": filepath.Join(dir, "config.json")},
		} {
			if form == "random" && !slices.Contains(some, name) {
				continue
			}
			t.Run(name+"/"+form, func(t *testing.T) {
				f := newTrainFleet(t, 4)
				change := map[string]any{"steps": 3, "model": with, "vocabulary": map[string]any{"type": "model"}}
				calmOut, out := t.TempDir(), t.TempDir()
				calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: manifest(t, "any", change), Out: calmOut}, nil)
				change["recompute"], change["schedule"] = "layers", "zero-bubble"
				got := f.watch(&trainerv1.StartRunRequest{ManifestJson: manifest(t, "any", change), Out: out, Stages: 2,
					Replicas: 2}, nil)
				same(t, fmt.Sprintf("%s from %s", name, form), out, calmOut, got, calm)
				written, err := model.Open(got.GetModelPath())
				if err != nil {
					t.Fatal(err)
				}
				defer written.Close()
				from, err := model.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				defer from.Close()
				if !written.Spec.Same(&from.Spec) {
					t.Errorf("the trained model is %+v, want %+v", written.Spec, from.Spec)
				}
				if form == "files" && slices.Contains(some, name) {
					router := mesh(t, app.MeshConfig{Model: got.GetModelPath(), Stages: 2})
					if text := generateText(t, router, "one two", 4); text == "" {
						t.Error("the trained model generates no text")
					}
				}
			})
		}
	}
}

// TestTrain_StartsFromTheWeightsOfTheFile compares the loss before the first step with a learning rate of 0.
func TestTrain_StartsFromTheWeightsOfTheFile(t *testing.T) {
	dir := tinyModel(t, "qwen2")
	still := map[string]any{"steps": 1, "vocabulary": map[string]any{"type": "model"},
		"model": map[string]any{"from": dir}, "learning_rate": map[string]any{"type": "constant", "max": 0}}
	run := train(t, manifest(t, "still", still), 2, 1, t.TempDir(), false)
	for form, path := range map[string]string{
		"gguf": filepath.Join(dir, "model-bf16.gguf"), "trained": run.GetModelPath(),
	} {
		still["model"] = map[string]any{"from": path}
		still["vocabulary"] = map[string]any{"type": "model", "path": dir}
		again := train(t, manifest(t, "still", still), 1, 2, t.TempDir(), false)
		if again.GetWeightsDigest() != run.GetWeightsDigest() || again.GetLoss() != run.GetLoss() {
			t.Errorf("%s: weights %s and loss %v, want %s and %v", form, again.GetWeightsDigest(), again.GetLoss(),
				run.GetWeightsDigest(), run.GetLoss())
		}
	}
}

// TestTrain_ConfigOfAnObject lets the vocabulary decide the size, and sets the deviation of the weights.
func TestTrain_ConfigOfAnObject(t *testing.T) {
	config := map[string]any{"model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 4, "head_dim": 8,
		"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32, "eos_token_id": 3,
		"initializer_range": 0.05}
	run := train(t, manifest(t, "object", map[string]any{"model": map[string]any{"config": config}}), 4, 1, t.TempDir(),
		false)
	text, err := os.ReadFile(filepath.Join(run.GetModelPath(), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got["vocab_size"] == nil || got["initializer_range"] != 0.05 || got["eos_token_id"] != nil ||
		got["model_type"] != "qwen3" {
		t.Errorf("config.json is %s", text)
	}
	config["vocab_size"] = got["vocab_size"].(float64) + 5
	padded := train(t, manifest(t, "object", map[string]any{"model": map[string]any{"config": config}}), 1, 1,
		t.TempDir(), false)
	if padded.GetParameters() != run.GetParameters()+2*5*16 {
		t.Errorf("%d parameters with five padding tokens, %d without", padded.GetParameters(), run.GetParameters())
	}
}

// TestTrain_WeightDecayIsOnlyWhereTheManifestSays makes one step of SGD. Decay moves a weight by rate·decay·weight
// more, and changes no weight that the rules leave out.
func TestTrain_WeightDecayIsOnlyWhereTheManifestSays(t *testing.T) {
	const rate, decay = 0.5, 0.25
	read := func(change map[string]any) map[string][]float32 {
		change["steps"], change["optimizer"] = 1, map[string]any{"type": "sgd", "momentum": 0}
		change["learning_rate"] = map[string]any{"type": "constant", "max": rate}
		run := train(t, manifest(t, "decay", change), 2, 1, t.TempDir(), false)
		files, err := model.Open(run.GetModelPath())
		if err != nil {
			t.Fatal(err)
		}
		defer files.Close()
		stage, err := model.Load(
			files,
			model.Range{Hi: len(files.Spec.Layers)},
			kernel.Set[float32](ref.New[float32]()),
			model.LoadOptions{Dense: true},
		)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]float32{}
		for _, p := range stage.Params().Tensors {
			out[p.Owner()] = p.Data
		}
		return out
	}
	matrices := func(name string) bool { return !strings.Contains(name, "norm") }
	spec := model.NewLlama(model.Shape{Layers: 4, Width: 16, Heads: 2, FF: 24, Vocab: 19, Context: 16, TiedHead: true})
	plain := read(map[string]any{"decay": 0})
	spec.Vocab = len(plain["model.embed_tokens.weight"]) / 16
	start, err := model.Init(spec, model.Range{Hi: 4}, kernel.Set[float32](ref.New[float32]()), 3)
	if err != nil {
		t.Fatal(err)
	}
	before := map[string][]float32{}
	for _, p := range start.Params().Tensors {
		before[p.Owner()] = p.Data
	}
	for what, c := range map[string]struct {
		change map[string]any
		decays func(name string) bool
	}{
		"everything": {map[string]any{"decay": decay}, func(string) bool { return true }},
		"matrices":   {map[string]any{"decay": decay, "decay_matrices_only": true}, matrices},
		"a pattern": {map[string]any{"decay": 0, "parameters": []any{map[string]any{"match": "*.mlp.*", "decay": decay}}},
			func(name string) bool { return strings.Contains(name, ".mlp.") }},
		"all but the embedding": {map[string]any{"decay": decay,
			"parameters": []any{map[string]any{"match": "*embed*", "decay": 0}}},
			func(name string) bool { return !strings.Contains(name, "embed") }},
	} {
		for name, got := range read(c.change) {
			for i, v := range got {
				want := float64(plain[name][i])
				if c.decays(name) {
					want -= rate * decay * float64(before[name][i])
				} else if v != plain[name][i] {
					t.Fatalf("%s: %s[%d] is %g, without decay %g", what, name, i, v, want)
				}
				if math.Abs(float64(v)-want) > 1e-6 {
					t.Fatalf("%s: %s[%d] is %g, want %g", what, name, i, v, want)
				}
			}
		}
	}
}
