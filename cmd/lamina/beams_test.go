package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBeams_TinyModels(t *testing.T) {
	for _, name := range []string{"llama", "gpt2", "qwen3"} {
		dir := sharedPath(t, "models/tiny", name)
		text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
		if err != nil {
			t.Fatal(err)
		}
		var want struct {
			Search struct {
				Prompt []int32 `json:"prompt_ids"`
				Runs   []struct {
					Beams     int       `json:"beams"`
					Most      int       `json:"max_new_tokens"`
					Penalty   float64   `json:"length_penalty"`
					Sequences [][]int32 `json:"sequences"`
					Scores    []float64 `json:"scores"`
				} `json:"runs"`
			} `json:"beam_search"`
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		for _, run := range want.Search.Runs {
			ids := strings.Trim(strings.ReplaceAll(fmt.Sprint(want.Search.Prompt), " ", ","), "[]")
			got := verbJSON[beamsResult](t, "", "beams", "-m", dir, "--kernels", "ref", "--ids", ids, "--beams",
				fmt.Sprint(run.Beams),
				"--max-tokens", fmt.Sprint(run.Most), "--length-penalty", fmt.Sprint(run.Penalty), "--end-id", "2",
				"--format", "json")
			if len(got.Sequences) != len(run.Sequences) {
				t.Fatalf("%s, %d beams: %d sequences, want %d", name, run.Beams, len(got.Sequences), len(run.Sequences))
			}
			for i, sequence := range run.Sequences {
				if end := slices.Index(sequence, 2); end >= 0 {
					sequence = sequence[:end+1] // the rest is padding
				}
				if !slices.Equal(got.Sequences[i], sequence) || math.Abs(got.Scores[i]-run.Scores[i]) > 2e-4 {
					t.Errorf("%s, %d beams, %d: %v at %.5f, want %v at %.5f", name, run.Beams, i, got.Sequences[i],
						got.Scores[i], sequence, run.Scores[i])
				}
			}
		}
	}
}
