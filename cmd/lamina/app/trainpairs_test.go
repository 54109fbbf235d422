package app_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// pairManifest returns the manifest of a run that prefers answers, on a tiny model.
func pairManifest(t *testing.T, name string, rows []string, change map[string]any) []byte {
	t.Helper()
	data := filepath.Join(t.TempDir(), "pairs.jsonl")
	if err := os.WriteFile(data, []byte(strings.Join(rows, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	set := map[string]any{"objective": "dpo", "data": map[string]any{"pairs": data, "packing": "none"},
		"sequence_len": 40}
	for k, v := range change {
		set[k] = v
	}
	return adapterManifest(t, name, nil, set)
}

// metricsOf reads the lines of metrics.jsonl.
func metricsOf[T any](t *testing.T, out string) []T {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []T
	for row := range strings.Lines(string(text)) {
		var l T
		if err := json.Unmarshal([]byte(row), &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

type pairMetrics struct {
	Loss     float64  `json:"loss"`
	Norm     float64  `json:"gradient_norm"`
	Accuracy *float64 `json:"accuracy"`
	Margin   *float64 `json:"margin"`
}

// The first step of a run over the pairs of dpo.json has the loss and the gradient of PyTorch. The reference is the
// base, although the run goes on from an adapter.
func TestTrain_PairsLikePEFT(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(sharedModel(t), "..", "vectors", "tuning", "dpo.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Models map[string]struct {
			Beta  float64 `json:"beta"`
			Pairs []struct {
				Prompt   []int32 `json:"prompt"`
				Chosen   []int32 `json:"chosen"`
				Rejected []int32 `json:"rejected"`
				Margin   float64 `json:"margin"`
			} `json:"pairs"`
			Loss      float64            `json:"loss"`
			Smoothed  float64            `json:"loss_smoothed_0_1"`
			Gradients map[string]float64 `json:"adapter_gradients"`
		} `json:"models"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	want := v.Models["qwen2"]
	var rows []string
	margin := 0.0
	for _, p := range want.Pairs {
		row, err := json.Marshal(map[string]any{"prompt_ids": p.Prompt, "chosen_ids": p.Chosen,
			"rejected_ids": p.Rejected})
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, string(row))
		margin += p.Margin / float64(len(want.Pairs))
	}
	squares := 0.0
	for _, n := range want.Gradients {
		squares += n * n
	}
	for smoothing, loss := range map[float64]float64{0: want.Loss, 0.1: want.Smoothed} {
		out := t.TempDir()
		train(t, pairManifest(t, "qwen2", rows, map[string]any{"slots": len(rows), "steps": 1,
			"dpo":     map[string]any{"beta": want.Beta, "label_smoothing": smoothing},
			"adapter": map[string]any{"from": sharedModel(t, "tiny-lora", "qwen2")},
		}), 2, 1, out, false)
		got := metricsOf[pairMetrics](t, out)[0]
		if !(math.Abs(got.Loss-loss) <= 1e-3*loss) || got.Margin == nil ||
			!(math.Abs(*got.Margin-margin) <= 1e-3*math.Abs(margin)) {
			t.Errorf("smoothing %v: loss %v, margin %v, want %v and %v", smoothing, got.Loss, *got.Margin, loss, margin)
		}
		if norm := math.Sqrt(squares); smoothing == 0 && !(math.Abs(got.Norm-norm) <= 1e-3*norm) {
			t.Errorf("gradient norm %v, want %v", got.Norm, norm)
		}
	}
}

// The weights do not depend on stages, replicas and resumes. The preferred answers become more likely.
func TestTrain_PairsAreExactOverLayouts(t *testing.T) {
	var rows []string
	for i := range 12 {
		rows = append(rows, fmt.Sprintf(
			`{"prompt_ids": [%d, 7], "chosen_ids": [%d, %d], "rejected_ids": [%d, 9, 3]}`, 20+i, 40+i%3, 50, 60+i%4))
	}
	raw := pairManifest(t, "qwen2", rows, map[string]any{"slots": 4, "slot_sequences": 1, "sequence_len": 16,
		"steps": 6, "adapter": map[string]any{"rank": 4}, "dpo": map[string]any{"beta": 0.3}, "keep_last": 9})
	var first *trainerv1.Run
	for _, l := range [][2]int{{1, 1}, {2, 1}, {1, 2}, {2, 2}} {
		out := t.TempDir()
		got := train(t, raw, l[0], l[1], out, false)
		if first == nil {
			first = got
		}
		if got.GetWeightsDigest() == "" || got.GetWeightsDigest() != first.GetWeightsDigest() ||
			got.GetLoss() != first.GetLoss() || got.GetMargin() != first.GetMargin() {
			t.Errorf("%d stages x %d replicas: weights %s, loss %v, over 1 x 1 %s, %v", l[0], l[1],
				got.GetWeightsDigest(), got.GetLoss(), first.GetWeightsDigest(), first.GetLoss())
		}
		lines := metricsOf[pairMetrics](t, out)
		if a, b := lines[0], lines[len(lines)-1]; math.Abs(a.Loss-math.Ln2) > 1e-6 || *a.Margin != 0 ||
			!(b.Loss < 0.5) || *b.Accuracy != 1 {
			t.Errorf("loss %v, then %v with accuracy %v; a new adapter begins at log 2", a.Loss, b.Loss, *b.Accuracy)
		}
		if l != [2]int{2, 2} {
			continue
		}
		if err := os.RemoveAll(filepath.Join(out, "checkpoints", "step-00000006")); err != nil {
			t.Fatal(err)
		}
		if resumed := train(t, raw, 1, 1, out, true); resumed.GetWeightsDigest() != first.GetWeightsDigest() {
			t.Errorf("resumed: weights %s, want %s", resumed.GetWeightsDigest(), first.GetWeightsDigest())
		}
	}
}
