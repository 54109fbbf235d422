package main

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
)

// tinyExpectation is the part of a tiny model's expected.json that a verb prints.
type tinyExpectation struct {
	Cases []struct {
		IDs        []int32   `json:"ids"`
		LastLogits []float64 `json:"last_logits"`
	} `json:"cases"`
	Training struct {
		Loss      float64 `json:"loss"`
		Gradients map[string]struct {
			L2 float64 `json:"l2"`
		} `json:"gradients"`
	} `json:"training"`
}

func joinIDs(ids []int32) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ","), "[]")
}

func TestLogits_TinyModelsLikeTransformers(t *testing.T) {
	tolerance := map[string]float64{"ref": 1e-3, "cpu": 1e-2}
	for _, name := range []string{"llama", "llama-linear-bias", "gpt2"} {
		for _, kernels := range kernelSets() {
			t.Run(name+"/"+kernels, func(t *testing.T) {
				dir := sharedPath(t, "models/tiny", name)
				want := readJSON[tinyExpectation](t, filepath.Join(dir, "expected.json"))
				for _, path := range []string{dir, filepath.Join(dir, "model-bf16.gguf")} {
					args := []string{"logits", "-m", path, "--ids", joinIDs(want.Cases[0].IDs), "--kernels", kernels,
						"--format", "json"}
					got := verbJSON[logitsResult](t, "", append(args, "--gradients")...)
					checkTiny(t, got, want, tolerance[kernels])
					bare := verbOK(t, "", args...)
					if split := verbOK(t, "", append(args, "--stages", "4")...); split != bare {
						t.Errorf("%s: logits over 4 stages differ from one stage's", path)
					}
				}
			})
		}
	}
}

func checkTiny(t *testing.T, got logitsResult, want tinyExpectation, tolerance float64) {
	t.Helper()
	if len(got.Logits) != len(want.Cases[0].LastLogits) {
		t.Fatalf("%d logits, want %d", len(got.Logits), len(want.Cases[0].LastLogits))
	}
	for i, w := range want.Cases[0].LastLogits {
		if !(math.Abs(float64(got.Logits[i])-w) <= tolerance) {
			t.Fatalf("logit %d is %g, want %g", i, got.Logits[i], w)
		}
	}
	if got.Loss == nil || !(math.Abs(*got.Loss-want.Training.Loss) <= 1e-4) {
		t.Fatalf("loss %v, want %g", got.Loss, want.Training.Loss)
	}
	if len(got.Gradients) != len(want.Training.Gradients) {
		t.Errorf("%d gradients, want %d", len(got.Gradients), len(want.Training.Gradients))
	}
	for name, w := range want.Training.Gradients {
		if g, ok := got.Gradients[name]; !ok || !(math.Abs(g-w.L2) <= 1e-3*w.L2) {
			t.Errorf("gradient of %s has norm %g, want %g", name, g, w.L2)
		}
	}
}

func TestLogits_GradientsOverStagesAreTheSame(t *testing.T) {
	path := sharedPath(t, "models/tiny/gpt2") // its head is tied: two stages each hold a part of one gradient
	args := []string{"logits", "-m", path, "--ids", "5,6,7,8,9", "--kernels", "ref", "--gradients", "--format", "json"}
	want := verbOK(t, "", args...)
	if got := verbOK(t, "", append(args, "--stages", "3")...); got != want {
		t.Errorf("over 3 stages %.300s, want %.300s", got, want)
	}
}

func TestLogits_LossAloneHasNoGradients(t *testing.T) {
	path := sharedPath(t, "models/tiny/llama")
	got := verbJSON[map[string]any](t, "", "logits", "-m", path, "--ids", "5,6,7", "--kernels", "ref", "--loss",
		"--format", "json")
	if got["loss"] == nil || got["gradients"] != nil || got["logits"] == nil {
		t.Errorf("keys of %v", got)
	}
	text := verbOK(t, "", "logits", "-m", path, "--ids", "5,6,7", "--kernels", "ref", "--gradients")
	for _, word := range []string{"LOGIT", "LOSS", "lm_head.weight"} {
		if !strings.Contains(text, word) {
			t.Errorf("the text lacks %s: %s", word, text)
		}
	}
}

func TestLogits_BadInput(t *testing.T) {
	path := sharedPath(t, "models/tiny/llama")
	for words, args := range map[string][]string{
		"ids: id 99999":      {"--ids", "1,99999"},
		"ids: parse":         {"--ids", "1,x"},
		"two ids":            {"--ids", "1", "--loss"},
		"stages: 0 stages":   {"--ids", "1", "--stages", "0"},
		"stages: 200 stages": {"--ids", "1", "--stages", "200"},
		"kernels":            {"--ids", "1", "--kernels", "gpu"},
		"threads":            {"--ids", "1", "--threads", "-3"},
	} {
		verbFails(t, 2, words, "", append([]string{"logits", "-m", path, "--kernels", "ref"}, args...)...)
	}
	verbFails(t, 1, "nowhere", "", "logits", "-m", "nowhere", "--ids", "1", "--kernels", "ref")
}
