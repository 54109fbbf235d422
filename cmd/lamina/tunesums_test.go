package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rewardedStep is what metrics.jsonl has of a step with rewards.
type rewardedStep struct {
	Step       int     `json:"step"`
	Loss       float64 `json:"loss"`
	Reward     float64 `json:"reward"`
	Tokens     float64 `json:"answer_tokens"`
	Mismatched *int    `json:"mismatched"`
	Difference float64 `json:"difference"`
	Clipped    float64 `json:"clipped"`
	StepMS     float64 `json:"step_ms"`
}

func readSteps[T any](t *testing.T, path string) []T {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var out []T
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var line T
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		out = append(out, line)
	}
	return out
}

func meanReward(steps []rewardedStep) (sum float64) {
	for _, s := range steps {
		sum += s.Reward / float64(len(steps))
	}
	return sum
}

// TestTune_SumsOfTwoDigits trains a small model from scratch on the sums of two digits, not to the end, and then
// rewards right answers. The reward rises to nine tenths of its maximum, and every token's log-probability has the same
// bits when it is sampled and when it is trained. The kernels give the same bits on every machine, so the numbers of
// steps below have the same effect everywhere.
func TestTune_SumsOfTwoDigits(t *testing.T) {
	if os.Getenv("LAMINA_SLOW") == "" {
		t.Skip("it takes minutes on two cores: set LAMINA_SLOW")
	}
	vocabulary, err := filepath.Abs(sharedPath(t, "models", "tiny", "qwen2"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const rewarded = 100 // steps with rewards
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var sums, prompts strings.Builder
	for a := range 10 {
		for b := range 10 {
			fmt.Fprintf(&sums, `{"prompt": "%d+%d=", "completion": "%d"}`+"\n", a, b, a+b)
			fmt.Fprintf(&prompts, `{"prompt": "%d+%d=", "answer": "%d"}`+"\n", a, b, a+b)
		}
	}
	write("sums.jsonl", sums.String())
	write("prompts.jsonl", prompts.String())
	write("examples.jsonl", verbOK(t, "", "data", "masks", "-m", vocabulary, "--service", "--rows-only", "--data",
		in("sums.jsonl")))
	manifest, err := json.Marshal(map[string]any{
		"name": "sums", "model": map[string]any{"config": filepath.Join(vocabulary, "config.json")},
		"vocabulary": map[string]any{"type": "model"}, "data": map[string]any{"examples": in("examples.jsonl")},
		"slots": 4, "slot_sequences": 1, "sequence_len": 128, "steps": 200, "seed": 1, "clip": 1,
		"learning_rate": map[string]any{"type": "constant", "max": 0.003},
	})
	if err != nil {
		t.Fatal(err)
	}
	write("manifest.json", string(manifest))
	verbOK(t, "", "train", "--manifest", in("manifest.json"), "--out", in("half"))
	out := verbOK(t, "", "tune", "--objective", "grpo", "--model", filepath.Join(in("half"), "model"), "--data",
		in("prompts.jsonl"), "--out", in("rewarded"), "--reward", "number", "--group", "8", "--batch", "20",
		"--max-tokens", "3", "--steps", fmt.Sprint(rewarded), "--learning-rate", "0.006", "--show", "0")
	steps := readSteps[rewardedStep](t, filepath.Join(in("rewarded"), "metrics.jsonl"))
	if len(steps) != rewarded {
		t.Fatalf("%d steps, want %d:\n%s", len(steps), rewarded, out)
	}
	seconds := 0.0
	for i, s := range steps {
		if s.Mismatched == nil || *s.Mismatched != 0 || s.Difference != 0 {
			t.Errorf("step %d: log-probabilities differ: %+v", s.Step, s)
		}
		if seconds += s.StepMS / 1000; i%20 == 19 {
			t.Logf("| %d | %.3f | %d | %.2f |", s.Step, meanReward(steps[i-19:i+1]), *s.Mismatched, s.Tokens)
		}
	}
	first, last := meanReward(steps[:5]), meanReward(steps[len(steps)-5:])
	if !(first < 0.8) || !(last >= 0.9) {
		t.Errorf("the reward is %.3f in the first five steps and %.3f in the last five", first, last)
	}
	t.Logf("reward %.3f in the first five steps, %.3f in the last five; %.1f s for %d steps", first, last,
		seconds, len(steps))
}
