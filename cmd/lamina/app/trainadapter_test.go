package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// adapterManifest returns the manifest of a run that trains an adapter on a tiny model.
func adapterManifest(t *testing.T, name string, rows []string, change map[string]any) []byte {
	t.Helper()
	base := sharedModel(t, "tiny", name)
	data := filepath.Join(t.TempDir(), "examples.jsonl")
	if err := os.WriteFile(data, []byte(strings.Join(rows, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	m := map[string]any{
		"name": "adapter-" + name, "model": map[string]any{"from": base},
		"adapter": map[string]any{"rank": 4, "dropout": 0.1, "target_modules": "all-linear"},
		"data":    map[string]any{"examples": data, "validation_fraction": 0.2},
		"slots":   4, "slot_sequences": 1, "sequence_len": 48, "steps": 4,
		"learning_rate": map[string]any{"type": "constant", "max": 0.005}, "betas": []float64{0.9, 0.999},
		"clip": 1, "seed": 3, "checkpoint_every": 2,
	}
	for k, v := range change {
		m[k] = v
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func sharedModel(t *testing.T, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, append([]string{"models"}, parts...)...)
}

// examplesOf returns rows of different lengths.
func examplesOf(n int) []string {
	var rows []string
	for i := range n {
		length := 6 + i*7%30
		var ids []string
		for j := range length {
			ids = append(ids, fmt.Sprint((i*31+j*17)%300))
		}
		rows = append(rows, fmt.Sprintf(`{"ids": [%s], "trained_from": %d}`, strings.Join(ids, ","), length/2))
	}
	return rows
}

// The weights of an adapter do not depend on stages, replicas, resumes and recomputing.
func TestTrain_AdapterIsExactOverLayouts(t *testing.T) {
	for _, c := range []struct {
		model  string
		change map[string]any
		saved  int
	}{
		{"qwen2", nil, 0},
		{"qwen2", map[string]any{"adapter": map[string]any{"rank": 3, "dora": true, "rslora": true,
			"target_modules": []string{"q_proj", "v_proj", "lm_head", "down_proj"}}, "recompute": "layers"}, 0},
		{"gpt2", map[string]any{"adapter": map[string]any{"rank": 2, "target_modules": []string{"c_attn"},
			"modules_to_save": []string{"wte", "ln_f"}}}, 3}, // the head is tied to wte in the base
	} {
		raw := adapterManifest(t, c.model, examplesOf(30), c.change)
		var first *trainerv1.Run
		for _, l := range [][2]int{{1, 1}, {2, 1}, {2, 2}} {
			got := train(t, raw, l[0], l[1], t.TempDir(), false)
			if first == nil {
				first = got
			}
			if got.GetWeightsDigest() == "" || got.GetWeightsDigest() != first.GetWeightsDigest() ||
				got.GetLoss() != first.GetLoss() || got.GetValidationLoss() != first.GetValidationLoss() {
				t.Errorf("%d stages x %d replicas: weights %s loss %v, over 1 x 1 %s %v", l[0], l[1],
					got.GetWeightsDigest(), got.GetLoss(), first.GetWeightsDigest(), first.GetLoss())
			}
		}
		out := t.TempDir()
		train(t, raw, 1, 1, out, false)
		if err := os.RemoveAll(filepath.Join(out, "checkpoints", "step-00000004")); err != nil {
			t.Fatal(err)
		}
		resumed := train(t, raw, 2, 2, out, true)
		if resumed.GetWeightsDigest() != first.GetWeightsDigest() {
			t.Errorf("resumed: weights %s, want %s", resumed.GetWeightsDigest(), first.GetWeightsDigest())
		}
		a, err := adapter.Open(resumed.GetModelPath())
		if err != nil || len(a.Modules) == 0 || len(a.Saved) != c.saved {
			t.Errorf("adapter at %s: %v", resumed.GetModelPath(), err)
		}
	}
}

// The mesh trains as PEFT does: from the same adapter, on the same prompt-masked sample, with the same losses.
func TestTrain_AdapterLikePEFT(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(sharedModel(t, "tiny-lora", "llama"), "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		IDs    []int32 `json:"ids"`
		Masked struct {
			Prompt int `json:"prompt_tokens"`
		} `json:"masked"`
		AdamW struct {
			Loss []float64 `json:"loss"`
		} `json:"adamw"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	ids, err := json.Marshal(want.IDs)
	if err != nil {
		t.Fatal(err)
	}
	raw := adapterManifest(
		t,
		"llama",
		[]string{fmt.Sprintf(`{"ids": %s, "trained_from": %d}`, ids, want.Masked.Prompt)},
		map[string]any{
			"adapter": map[string]any{"from": sharedModel(t, "tiny-lora", "llama")}, "slots": 1, "steps": 12,
			"data": nil, "epsilon": 1e-8,
		},
	)
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "one.jsonl")
	if err := os.WriteFile(data, []byte(fmt.Sprintf(`{"ids": %s, "trained_from": %d}`, ids, want.Masked.Prompt)),
		0o600); err != nil {
		t.Fatal(err)
	}
	m["data"] = map[string]any{"examples": data}
	if raw, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	train(t, raw, 2, 1, out, false)
	f, err := os.Open(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	step := 0
	for lines := bufio.NewScanner(f); lines.Scan(); step++ {
		var line struct {
			Loss float64 `json:"loss"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if d := math.Abs(line.Loss - want.AdamW.Loss[step]); !(d <= 1e-3*line.Loss) {
			t.Errorf("step %d: loss %v, want %v", step+1, line.Loss, want.AdamW.Loss[step])
		}
	}
	if step != len(want.AdamW.Loss) {
		t.Errorf("%d steps, want %d", step, len(want.AdamW.Loss))
	}
}
