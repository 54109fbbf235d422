package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/evaluate"
)

// evalSamples reads the samples of a folder of results, by doc.
func evalSamples(t *testing.T, dir string) map[int]evaluate.Sample {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, evaluate.SamplesFile))
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]evaluate.Sample{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for first := true; lines.Scan(); first = false {
		var s evaluate.Sample
		if first {
			continue
		}
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		out[s.Index] = s
	}
	return out
}

// TestEvalTasks_EqualTransformers compares log-likelihoods and metrics with testdata/eval/golden.json, which
// testdata/eval/reference.py has computed with transformers.
func TestEvalTasks_EqualTransformers(t *testing.T) {
	text, err := os.ReadFile("testdata/eval/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	type expected map[string]json.RawMessage
	var golden map[string]map[string]expected
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden) != 4 {
		t.Fatalf("%d models", len(golden))
	}
	worst := 0.0
	for model, tasks := range golden {
		path := sharedPath(t, "models", "tiny", model)
		for name, want := range tasks {
			args := []string{"eval", "choice"}
			if name == "text" {
				args = []string{"eval", "perplexity", "--ctx", "64"}
			}
			dir := t.TempDir()
			got := verbJSON[evaluate.Results](t, "", append(args, "-m", path, "--data", "testdata/eval/"+name+".jsonl",
				"--out", dir, "--streams", "3", "--format", "json")...)
			samples := evalSamples(t, dir)
			for key, raw := range want {
				if key == "scores" {
					var scores [][]float64
					if err := json.Unmarshal(raw, &scores); err != nil {
						t.Fatal(err)
					}
					for i, list := range scores {
						for k, v := range list {
							off := math.Abs(samples[i].Scores[k]/v - 1)
							worst = max(worst, off)
							if !(off <= 1e-4) {
								t.Errorf(
									"%s %s: doc %d scores %v, transformers %v",
									model,
									name,
									i,
									samples[i].Scores,
									list,
								)
							}
						}
					}
					continue
				}
				var v float64
				if err := json.Unmarshal(raw, &v); err != nil {
					t.Fatal(err)
				}
				if m := got.Metrics[key]; !(math.Abs(m.Value-v) <= 1e-4*v) {
					t.Errorf("%s %s: %s is %g, transformers have %g", model, name, key, m.Value, v)
				}
			}
		}
	}
	t.Logf("log-likelihoods differ by %.2g at most", worst)
}

// TestEvalTasks_GoOnAfterAStop cuts a journal in the middle of a line.
func TestEvalTasks_GoOnAfterAStop(t *testing.T) {
	model, dir := sharedPath(t, "models", "stories260K", "stories260K-f32.gguf"), t.TempDir()
	args := []string{
		"eval",
		"choice",
		"-m",
		model,
		"--data",
		"testdata/eval/choice.jsonl",
		"--out",
		dir,
		"--format",
		"json",
	}
	whole := verbJSON[evaluate.Results](t, "", args...)
	path := filepath.Join(dir, evaluate.SamplesFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	marked := strings.Replace(lines[2], `"tokens":`, `"tokens":1000`, 1)
	if err := os.WriteFile(path, []byte(lines[0]+lines[1]+marked+lines[3][:20]), 0o600); err != nil {
		t.Fatal(err)
	}
	again := verbJSON[evaluate.Results](t, "", args...)
	if again.Metrics["acc"] != whole.Metrics["acc"] || again.Metrics["acc_norm"] != whole.Metrics["acc_norm"] {
		t.Errorf("%+v after a stop, %+v without one", again.Metrics, whole.Metrics)
	}
	kept := 0
	samples := evalSamples(t, dir)
	for _, s := range samples {
		if s.Tokens >= 10000 {
			kept++
		}
	}
	if kept != 1 || len(samples) != 12 {
		t.Errorf("%d of %d samples come from before the stop, want the marked one", kept, len(samples))
	}
	_, errText, code := runVerb(t, "", append(args, "--shots", "1")...)
	if code == 0 || !strings.Contains(errText, "other settings") {
		t.Errorf("other settings: exit code %d, %s", code, errText)
	}
}

// TestEvalTasks_CompareTwoModels compares a model with its quantised form.
func TestEvalTasks_CompareTwoModels(t *testing.T) {
	var dirs []string
	for _, kind := range []string{"f32", "Q4_0"} {
		dir := t.TempDir()
		verbOK(
			t,
			"",
			"eval",
			"perplexity",
			"-m",
			sharedPath(t, "models/stories260K/stories260K-"+kind+".gguf"),
			"--data",
			"testdata/eval/text.jsonl",
			"--out",
			dir,
		)
		dirs = append(dirs, dir)
	}
	got := verbJSON[evaluate.Comparison](t, "", "eval", "compare", dirs[0], dirs[1], "--format", "json")
	d := got.Differences["bits_per_byte"]
	if d.A == d.B || d.Docs != 3 || math.Abs(d.Delta-(d.B-d.A)) > 1e-12 || d.P <= 0 || d.P > 1 {
		t.Errorf("%+v", d)
	}
	if text := verbOK(t, "", "eval", "compare", dirs[0], dirs[1]); !strings.Contains(text, "bits_per_byte") ||
		!strings.Contains(text, "A is stories260K-f32, B is stories260K-Q4_0") {
		t.Errorf("printed %q", text)
	}
	if _, errText, code := runVerb(t, "", "eval", "compare", dirs[0], t.TempDir()); code == 0 {
		t.Errorf("a folder without results: %s", errText)
	}
}

// TestEvalTasks_Generate judges generated answers, free and constrained by a schema.
func TestEvalTasks_Generate(t *testing.T) {
	model, dir := sharedPath(t, "models", "stories260K", "stories260K-f32.gguf"), t.TempDir()
	story := verbJSON[generated](
		t,
		"",
		"generate",
		"-m",
		model,
		"-p",
		"Once upon a time",
		"-n",
		"8",
		"--format",
		"json",
	)
	row, err := json.Marshal(map[string]string{"prompt": "Once upon a time", "answer": story.Text})
	if err != nil {
		t.Fatal(err)
	}
	data, schema := filepath.Join(dir, "data.jsonl"), filepath.Join(dir, "schema.json")
	other := `{"prompt":"One day","answer":"no such answer"}`
	if err := os.WriteFile(data, []byte(string(row)+"\n"+other), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(schema, []byte(`{"type":"boolean"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"eval", "generate", "-m", model, "--data", data, "-n", "8", "--format", "json"}
	got := verbJSON[evaluate.Results](t, "", args...)
	if got.Metrics["exact_match"].Value != 0.5 {
		t.Errorf("%+v", got.Metrics)
	}
	args = append(args, "--schema", schema)
	if got = verbJSON[evaluate.Results](t, "", args...); got.Metrics["valid"].Value != 0 {
		t.Errorf("free: %+v", got.Metrics)
	}
	if got = verbJSON[evaluate.Results](t, "", append(args, "--constrain")...); got.Metrics["valid"].Value != 1 ||
		got.Metrics["exact_match"].Value != 0 {
		t.Errorf("constrained: %+v", got.Metrics)
	}
}

func TestEvalTasks_Errors(t *testing.T) {
	model := sharedPath(t, "models", "stories260K", "stories260K-f32.gguf")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"choice", "-m", model, "--data", "testdata/eval/text.jsonl"}, "use lamina eval perplexity"},
		{[]string{"choice", "-m", model, "--data", "testdata/eval/none.jsonl"}, "read data"},
		{[]string{"choice", "-m", model, "--data", "testdata/eval/blimp.jsonl", "--shots", "8"}, "shots"},
		{[]string{"perplexity", "-m", model, "--data", "testdata/eval/text.jsonl", "--ctx", "500"}, "at most 127"},
		{[]string{"generate", "-m", model, "--data", "testdata/eval/choice.jsonl"}, "use lamina eval choice"},
		{[]string{"generate", "-m", model, "--data", "testdata/eval/choice.jsonl", "--constrain"}, "--schema"},
	} {
		_, errText, code := runVerb(t, "", append([]string{"eval"}, c.args...)...)
		if code == 0 || !strings.Contains(errText, c.want) {
			t.Errorf("%v: exit code %d, %s, want %q", c.args, code, errText, c.want)
		}
	}
}
