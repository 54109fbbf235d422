package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A run over pairs of texts encodes them, says what it leaves out, trains, and evaluates as eval preference does.
func TestTune_Pairs(t *testing.T) {
	base := sharedPath(t, "models", "tiny", "qwen2")
	dir := t.TempDir()
	data, out := filepath.Join(dir, "pairs.jsonl"), filepath.Join(dir, "run")
	rows := []string{
		`{"prompt": "the sea is", "chosen": " blue", "rejected": " a red thing"}`,
		`{"prompt": "the sky is", "chosen": " blue", "rejected": " green"}`,
		`{"prompt": "the grass is", "chosen": " green", "rejected": " not here"}`,
		`{"prompt": "the night is", "chosen": " black"}`,
		`{"prompt": "snow is", "chosen": " white", "rejected": " ` + strings.Repeat("very ", 400) + `black"}`,
		`{"prompt": "the sun is", "chosen": " warm", "rejected": " cold"}`,
	}
	if err := os.WriteFile(data, []byte(strings.Join(rows, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"tune", "--objective", "dpo", "-m", base, "--data", data, "--out", out, "--steps", "3", "--batch",
		"2", "--sequence-len", "64", "--validation", "0.3", "--learning-rate", "0.01", "--beta", "0.5", "--kernels", "ref"}
	stdout, stderr, code := runVerb(t, "", args...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{"4 samples", "unreadable: 1 (line 4)", "exceeds the context: 1 (line 5)"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	for _, want := range []string{`"objective": "dpo"`, "accuracy 1.000", "adapter  "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in %s", want, stdout)
		}
	}
	text, err := os.ReadFile(filepath.Join(out, "reference.json"))
	if err != nil {
		t.Fatal(err)
	}
	var reference struct {
		Sums []struct{ Chosen, Rejected float64 } `json:"sums"`
	}
	if err := json.Unmarshal(text, &reference); err != nil {
		t.Fatal(err)
	}
	got := verbJSON[preferenceResult](t, "", "eval", "preference", "-m", base, "--adapter",
		filepath.Join(out, "adapter"), "--data", filepath.Join(out, "pairs.jsonl"), "--kernels", "ref",
		"--format", "json", "--beta", "0.5")
	if len(reference.Sums) != 4 || len(got.Pairs) != 4 {
		t.Fatalf("%d and %d pairs", len(reference.Sums), len(got.Pairs))
	}
	for i, p := range got.Pairs {
		want := reference.Sums[i]
		if d := p.ReferenceChosen - want.Chosen + p.ReferenceRejected - want.Rejected; !(d < 1e-4 && d > -1e-4) {
			t.Errorf("pair %d: reference %v and %v, the run has %v", i, p.ReferenceChosen, p.ReferenceRejected, want)
		}
	}
	if !(got.Loss < 0.69) {
		t.Errorf("loss %v after training, log 2 before", got.Loss)
	}
	verbFails(t, 2, "label_smoothing", "", append(args, "--label-smoothing", "0.7")...)
}

// A run with rewards samples answers of the model, scores them and learns from them. All answers to a prompt together
// are longer than the context of the model. Paths are relative
// to the working directory.
func TestTune_Rewards(t *testing.T) {
	base, err := filepath.Abs(sharedPath(t, "models", "tiny", "qwen2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	rows := `{"prompt": "the sea is", "answer": "blue"}` + "\n" + `{"prompt": "the grass is", "answer": "green"}`
	if err := os.WriteFile("prompts.jsonl", []byte(rows), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join("runs", "letters")
	args := []string{"tune", "--objective", "grpo", "-m", base, "--data", "prompts.jsonl", "--out", out, "--steps", "2",
		"--batch", "2", "--group", "4", "--max-tokens", "70", "--reward", "regex:[a-m]", "--reward", "exact"}
	stdout, stderr, code := runVerb(t, "", args...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{`"objective": "grpo"`, "reward 0.", "mismatch 0", "adapter  "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in %s", want, stdout)
		}
	}
	answers, err := os.ReadFile(filepath.Join(out, "rollouts.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(answers), "\n"); n != 2*2*4 {
		t.Errorf("%d answers, want 16", n)
	}
	if _, err := os.Stat(filepath.Join(out, "adapter", "adapter_config.json")); err != nil {
		t.Error(err)
	}
	_, stderr, code = runVerb(t, "", "train", "--dry-run", "--manifest", filepath.Join(out, "manifest.json"))
	if code != 0 {
		t.Errorf("a dry run: exit %d: %s", code, stderr)
	}
	manifest, err := os.ReadFile(filepath.Join(out, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Replace(string(manifest), `"max_tokens": 70`, `"max_tokens": 254`, 1)
	long = regexp.MustCompile(`"sequence_len": \d+`).ReplaceAllString(long, `"sequence_len": 4096`)
	if err := os.WriteFile("long.json", []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	verbFails(t, 2, "data.prompts: line 1: a prompt of", "", "train", "--dry-run", "--manifest", "long.json")
	verbFails(t, 2, "reward", "", append(args, "--reward", "nice")...)
	verbFails(t, 2, "group", "", append(args, "--group", "1")...)
	verbFails(t, 2, "max-tokens: 256 tokens leave no room", "", append(args, "--max-tokens", "256")...)
	// The context is 256, and a sequence has room for more than that.
	verbFails(t, 2, "unreadable: 2", "", append(args, "--max-tokens", "254", "--sequence-len", "4096", "--dry-run")...)
}

// Modules that are saved are trained whole beside the adapter. The folder has them, and what is merged with it has the
// loss of both.
func TestTune_ModulesToSave(t *testing.T) {
	base := sharedPath(t, "models", "tiny", "gpt2")
	dir := t.TempDir()
	data, out, whole := filepath.Join(dir, "rows.jsonl"), filepath.Join(dir, "run"), filepath.Join(dir, "whole")
	var rows []string
	for _, word := range []string{"blue", "green", "white", "black", "red", "grey"} {
		rows = append(rows, `{"prompt": "the colour is", "completion": " `+word+` indeed"}`)
	}
	if err := os.WriteFile(data, []byte(strings.Join(rows, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"tune", "-m", base, "--data", data, "--out", out, "--steps", "6", "--batch", "2", "--sequence-len",
		"64", "--validation", "0.3", "--learning-rate", "0.01", "--rank", "2", "--targets", "c_attn",
		"--modules-to-save", "wte,c_proj"}
	stdout := verbOK(t, "", append(args, "--stages", "2")...)
	if want := "serve it with: lamina up --model " + base + " --adapter tune-run="; !strings.Contains(stdout, want) {
		t.Errorf("no %q in %s", want, stdout)
	}
	trained := filepath.Join(out, "adapter")
	loss := func(args ...string) float64 {
		t.Helper()
		got := verbJSON[struct{ Loss float64 }](t, "", append([]string{"eval", "loss", "--data",
			filepath.Join(out, "examples.jsonl"), "--format", "json"}, args...)...)
		return got.Loss
	}
	before, beside := loss("-m", base), loss("-m", base, "--adapter", trained)
	if !(beside < 0.8*before) {
		t.Errorf("the loss is %v, that of the base %v", beside, before)
	}
	verbOK(t, "", "merge", "-m", base, "--adapter", trained, whole, "--type", "F32")
	if after := loss("-m", whole); math.Abs(after-beside) > 1e-4 {
		t.Errorf("the loss of the merged model is %v, that of the adapter %v", after, beside)
	}
	// A run may go on from it.
	again := filepath.Join(dir, "again")
	manifest, err := os.ReadFile(filepath.Join(out, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	next := regexp.MustCompile(`(?s)"adapter": \{.*?\}`).ReplaceAllString(string(manifest), `"adapter": {"from": "`+trained+`"}`)
	if err := os.WriteFile(filepath.Join(dir, "next.json"), []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	verbOK(t, "", "train", "--manifest", filepath.Join(dir, "next.json"), "--out", again)
	if further := loss("-m", base, "--adapter", filepath.Join(again, "adapter")); !(further < beside) {
		t.Errorf("the loss after a second run is %v, before it %v", further, beside)
	}
	verbFails(t, 2, "no module", "", append(args, "--modules-to-save", "classifier")...)
	verbFails(t, 2, "modules_to_save", "", append(args, "--objective", "grpo", "--reward", "exact", "--sequence-len",
		"2048", "--max-tokens", "2")...)
}

// What a newcomer gets wrong is said in words that help: why rows cannot be used, that so few of them make few steps,
// and which folder of a run is the adapter. A second run beside the first one's folder says nothing of it.
func TestTune_SaysWhatHelps(t *testing.T) {
	base, plain := sharedPath(t, "models", "tiny", "gpt2"), t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(plain, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := filepath.Join(plain, "first")
	with := func(data string, more ...string) []string {
		args := []string{"tune", "-m", base, "--sequence-len", "64", "--validation", "0.3", "--data", data}
		return append(args, more...)
	}
	chats := write("chats.jsonl", strings.Repeat(`{"messages": [{"role": "user", "content": "a"}, `+
		`{"role": "assistant", "content": "b"}]}`+"\n", 3))
	verbFails(t, 2, "has no chat template; --template names one", "", with(chats, "--out", run)...)
	verbFails(t, 2, "  read line 1: parse JSON: invalid character", "", with(write("a.txt", "a text"), "--out", run)...)
	verbFails(t, 2, "rank 0", "", with(chats, "--out", run, "--rank", "0")...)
	rows := write("rows.jsonl", strings.Repeat(`{"prompt": "the colour is", "completion": " blue"}`+"\n", 4))
	for _, out := range []string{run, filepath.Join(plain, "second")} {
		_, stderr, code := runVerb(t, "", with(rows, "--out", out)...)
		if code != 0 || !strings.Contains(stderr, "steps: 1, which is little; --epochs") ||
			strings.Contains(stderr, "record of a run") {
			t.Errorf("exit %d: %s", code, stderr)
		}
	}
	inside := filepath.Join(run, "adapter")
	verbFails(t, 1, "is a run, and its adapter is "+inside, "", "eval", "loss", "-m", base, "--adapter", run, "--data",
		rows)
	verbFails(t, 2, "lamina merge -m "+base+" --adapter "+inside+" out --type F32", "", "export", run, "out", "--type",
		"F32")
	verbFails(t, 2, "empty.txt is empty", "", "eval", "perplexity", "-m", base, "--data", write("empty.txt", ""))
}
