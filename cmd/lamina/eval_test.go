package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// jsonLines writes values as JSON lines to a file and returns its path.
func jsonLines(t *testing.T, rows ...any) string {
	t.Helper()
	var b strings.Builder
	for _, r := range rows {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(text, '\n'))
	}
	path := filepath.Join(t.TempDir(), "rows.jsonl")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEvalLoss_LikeTransformers(t *testing.T) {
	want := readJSON[struct {
		Models map[string]struct {
			Samples []struct {
				IDs         []int32 `json:"ids"`
				TrainedFrom int     `json:"trained_from"`
				Loss        float64 `json:"loss"`
				Tokens      int     `json:"tokens"`
			}
			Loss   float64
			Tokens int
		}
	}](t, sharedPath(t, "vectors/tuning", "packing.json"))
	for name, m := range want.Models {
		var rows []any
		for _, s := range m.Samples {
			rows = append(rows, map[string]any{"ids": s.IDs, "trained_from": s.TrainedFrom})
		}
		data := jsonLines(t, rows...)
		for _, kernels := range kernelSets() {
			got := verbJSON[lossResult](t, "", "eval", "loss", "-m", sharedPath(t, "models/tiny", name), "--data", data,
				"--kernels", kernels, "--stages", "2", "--format", "json")
			if math.Abs(got.Loss-m.Loss) > 1e-4 || got.Tokens != m.Tokens || len(got.Samples) != len(m.Samples) {
				t.Errorf("%s/%s: loss %v over %d tokens, want %v over %d", name, kernels, got.Loss, got.Tokens, m.Loss,
					m.Tokens)
				continue
			}
			for i, s := range m.Samples {
				if g := got.Samples[i]; math.Abs(g.Loss-s.Loss) > 1e-4 || g.Tokens != s.Tokens {
					t.Errorf("%s/%s: sample %d: %+v, want %v over %d", name, kernels, i, g, s.Loss, s.Tokens)
				}
			}
		}
	}
	verbFails(t, 2, "trained_from", "{\"ids\": [1, 2], \"trained_from\": 9}\n", "eval", "loss", "-m",
		sharedPath(t, "models/tiny", "llama"), "--data", "-")
	verbFails(t, 2, "line 2", "\n{\"ids\": [1, 2, 3, 99999]}\n", "eval", "loss", "-m",
		sharedPath(t, "models/tiny", "llama"), "--data", "-")
}

func TestEvalPreference_LikePyTorch(t *testing.T) {
	type pair struct {
		pairResult
		Prompt   []int32 `json:"prompt"`
		Chosen   []int32 `json:"chosen"`
		Rejected []int32 `json:"rejected"`
	}
	want := readJSON[struct {
		Models map[string]struct {
			Beta     float64
			Pairs    []pair
			Loss     float64
			Smoothed float64 `json:"loss_smoothed_0_1"`
		}
	}](t, sharedPath(t, "vectors/tuning", "dpo.json"))
	for name, m := range want.Models {
		var rows []any
		for _, p := range m.Pairs {
			rows = append(
				rows,
				map[string]any{"prompt_ids": p.Prompt, "chosen_ids": p.Chosen, "rejected_ids": p.Rejected},
			)
		}
		base := sharedPath(t, "models/tiny", name)
		args := []string{
			"eval",
			"preference",
			"-m",
			base,
			"--adapter",
			sharedPath(t, "models/tiny-lora", name),
			"--data",
			jsonLines(t, rows...),
			"--beta",
			"0.1",
			"--format",
			"json",
		}
		for _, more := range [][]string{{"--kernels", "ref"}, {"--kernels", "cpu"}, {"--stages", "2"},
			{"--reference", base}} {
			got := verbJSON[preferenceResult](t, "", append(args, more...)...)
			if math.Abs(got.Loss-m.Loss) > 1e-4 || len(got.Pairs) != len(m.Pairs) {
				t.Errorf("%s %v: loss %v, want %v", name, more, got.Loss, m.Loss)
				continue
			}
			for i, p := range m.Pairs {
				p.Line = i + 1
				g := got.Pairs[i]
				for _, d := range []float64{g.PolicyChosen - p.PolicyChosen, g.PolicyRejected - p.PolicyRejected,
					g.ReferenceChosen - p.ReferenceChosen, g.ReferenceRejected - p.ReferenceRejected,
					10 * (g.Margin - p.Margin), 10 * (g.Loss - p.Loss)} {
					if math.Abs(d) > 2e-3 {
						t.Errorf("%s %v: pair %d: %+v, want %+v", name, more, i, g, p.pairResult)
						break
					}
				}
			}
		}
		got := verbJSON[preferenceResult](t, "", append(args, "--smoothing", "0.1")...)
		if math.Abs(got.Loss-m.Smoothed) > 1e-4 {
			t.Errorf("%s: smoothed loss %v, want %v", name, got.Loss, m.Smoothed)
		}
	}
}

func TestDataMasks_LikeTransformers(t *testing.T) {
	want := readJSON[struct {
		Plain, Marked string
		Cases         []struct {
			Messages json.RawMessage
			IDs      []int32
			Mask     []int
		}
	}](t, sharedPath(t, "vectors/tuning", "masks.json"))
	var rows []any
	for _, c := range want.Cases {
		rows = append(rows, map[string]any{"messages": c.Messages})
	}
	rows = append(rows, map[string]any{"messages": []any{}})
	data := jsonLines(t, rows...)
	for name, text := range map[string]string{"plain": want.Plain, "marked": want.Marked} {
		path := filepath.Join(t.TempDir(), "template.jinja")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := verbJSON[struct{ Samples []maskedSample }](t, "", "data", "masks", "--vocab",
			sharedPath(t, "vectors/tokenizer", "qwen3-hf"), "--template", path, "--data", data)
		if len(got.Samples) != len(want.Cases)+1 {
			t.Fatalf("%s: %d samples", name, len(got.Samples))
		}
		for i, c := range want.Cases {
			a, _ := json.Marshal([]any{got.Samples[i].IDs, got.Samples[i].Mask})
			b, _ := json.Marshal([]any{c.IDs, c.Mask})
			if string(a) != string(b) {
				t.Errorf("%s, case %d: %s, want %s", name, i, a, b)
			}
		}
		if last := got.Samples[len(want.Cases)]; last.Refused != "unreadable" || last.Line != len(rows) {
			t.Errorf("%s: an empty conversation: %+v", name, last)
		}
	}
}
