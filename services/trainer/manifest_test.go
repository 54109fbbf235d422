package trainer_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/services/trainer"
)

const good = `{
	"name": "a", "data": {"text": "t.txt", "validation_fraction": 0.1}, "vocabulary": {"type": "char"},
	"model": {"architecture": "llama", "layers": 2, "width": 8, "heads": 2},
	"slots": 2, "slot_sequences": 1, "sequence_len": 4, "steps": 3, "learning_rate": {"max": 0.01, "min": 0.001, "warmup": 1}
}`

// with returns the valid manifest with one field replaced; path is dotted.
func with(t *testing.T, path string, value any) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(good), &m); err != nil {
		t.Fatal(err)
	}
	at, keys := m, strings.Split(path, ".")
	for _, k := range keys[:len(keys)-1] {
		at = at[k].(map[string]any)
	}
	at[keys[len(keys)-1]] = value
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestParseManifest_SetsDefaults(t *testing.T) {
	m, err := trainer.ParseManifest([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if m.Betas != [2]float64{0.9, 0.95} || m.Epsilon != 1e-8 || m.Schedule != "1f1b" || m.DType != "F32" ||
		m.Model.Context != 4 || m.Model.FF != 32 || m.CheckpointEvery != 500 {
		t.Errorf("defaults are %+v", m)
	}
}

func TestParseManifest_NamesTheFieldItRefuses(t *testing.T) {
	for _, c := range []struct {
		path  string
		value any
		want  string // what the error must contain; empty means the path
	}{
		{"name", "../x", ""},
		{"name", strings.Repeat("n", 65), ""},
		{"slots", 0, ""},
		{"slots", 5000, ""},
		{"slot_sequences", 1 << 17, ""},
		{"sequence_len", -1, ""},
		{"steps", 0, ""},
		{"learning_rate.max", -1, ""},
		{"learning_rate.min", 0.5, ""},
		{"learning_rate.warmup", -1, ""},
		{"betas", []float64{0.9, 1}, "betas[1]"},
		{"epsilon", 2, ""},
		{"decay", -0.1, ""},
		{"clip", -1, ""},
		{"z_loss", -1, ""},
		{"samples", map[string]any{"every": 1}, "samples.prompts"},
		{"samples", map[string]any{"every": -1}, "samples.every"},
		{"samples", map[string]any{"tokens": 5000}, "samples.tokens"},
		{"samples", map[string]any{"temperature": -1}, "samples.temperature"},
		{"data.tokens", []any{map[string]any{"path": "x"}}, "vocabulary.type"},
		{"data.packing", "best-fit", ""},
		{"data.isolate", true, ""},
		{"vocabulary.type", "tokens", ""},
		{"data", map[string]any{"tokens": []any{map[string]any{"weight": 1}}}, "vocabulary.type"},
		{"data.validation_fraction", 1, ""},
		{"data.text", "", ""},
		{"vocabulary.type", "words", ""},
		{"vocabulary", map[string]any{"type": "bpe", "size": 5}, "vocabulary.size"},
		{"model.architecture", "rnn", ""},
		{"model.layers", 0, "layers"},
		{"model.from", "/models/a", "model: its sizes"},
		{"model.config", map[string]any{}, "model: its sizes"},
		{"model", map[string]any{"from": "/models/a"}, "vocabulary.type"},
		{"model", map[string]any{"from": "/models/a", "config": "c.json"}, "model.from"},
		{"model", map[string]any{"config": 3}, "model.config"},
		{"model", map[string]any{"config": map[string]any{"model_type": "rnn"}}, "model.config"},
		{"model", map[string]any{"config": map[string]any{"model_type": "llama", "hidden_size": 8}}, "num_hidden_layers"},
		{"vocabulary", map[string]any{"type": "model"}, "vocabulary.path"},
		{"vocabulary", map[string]any{"type": "char", "path": "x"}, "vocabulary.path"},
		{"objective", "ppo", ""},
		{"objective", "dpo", "data.pairs"},
		{"dpo", map[string]any{"beta": 1}, "dpo"},
		{"data", map[string]any{"pairs": "p"}, "data.pairs"},
		{"data", map[string]any{"pairs": "p", "examples": "e"}, "data.examples"},
		{"recompute", "all", ""},
		{"dropout", map[string]any{"attention": 1}, "dropout.attention"},
		{"dropout", map[string]any{"residual": -0.1}, "dropout.residual"},
		{"dropout", map[string]any{"embedding": 2}, "dropout.embedding"},
		{"model.heads", 3, "heads"},
		{"model.context", 2, ""},
		{"schedule", "zigzag", ""},
		{"spans", 2, ""},
		{"spans", -1, ""},
		{"dtype", "F64", ""},
		{"precision", "F16", ""},
		{"chat_template", "{% for %}", ""},
		{"evaluate_every", -3, ""},
		{"stepz", 3, ""},
		{"learning_rate.type", "step", "type"},
		{"learning_rate.decay", 2, "learning_rate: decay"},
		{"learning_rate", map[string]any{"type": "wsd", "max": 1, "decay": 4}, "learning_rate: decay"},
		{"optimizer", map[string]any{"type": "lion"}, "optimizer.type"},
		{"optimizer", map[string]any{"type": "muon", "momentum": 1}, "optimizer.momentum"},
		{"optimizer", map[string]any{"type": "muon", "iterations": -1}, "optimizer.iterations"},
		{"optimizer", map[string]any{"type": "muon", "scale": "big"}, "optimizer.scale"},
		{"optimizer", map[string]any{"beta": 1}, "beta"},
		{"parameters", []any{map[string]any{"match": ""}}, "parameters[0]: match"},
		{"parameters", []any{map[string]any{"match": "*"}, map[string]any{"match": "*.w"}}, "parameters[1]"},
		{"parameters", []any{map[string]any{"match": "*", "decay": -1}}, "parameters[0]: decay"},
		{"parameters", []any{map[string]any{"match": "*", "learning_rate": -1}}, "parameters[0]: learning_rate"},
		{"parameters", []any{map[string]any{"match": "*", "optimizer": "x"}}, "parameters[0]: optimizer"},
		{"parameters", []any{map[string]any{"match": "*", "trainable": false}}, "no parameter is trainable"},
		{"steps", "many", ""},
	} {
		want := c.want
		if want == "" {
			want = c.path
		}
		_, err := trainer.ParseManifest(with(t, c.path, c.value))
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s = %v: %v", c.path, c.value, err)
		}
	}
}

// TestManifest_FilesAreCheckedBeforeARun reads what a manifest names. The rule for paths sees every path.
func TestManifest_FilesAreCheckedBeforeARun(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"model_type":"llama","hidden_size":8,"num_hidden_layers":2,
		"num_attention_heads":2,"intermediate_size":8,"vocab_size":9,"max_position_embeddings":3}`), 0o600); err != nil {
		t.Fatal(err)
	}
	model := func(kind string) map[string]any { return map[string]any{"type": "model", "path": kind} }
	for _, c := range []struct {
		model, vocabulary map[string]any
		want              string
		code              fault.Code
	}{
		{map[string]any{"config": config}, map[string]any{"type": "char"}, "sequence_len", fault.Invalid},
		{map[string]any{"config": dir + "/none"}, map[string]any{"type": "char"}, "model.config", fault.NotFound},
		{map[string]any{"from": dir + "/none"}, map[string]any{"type": "model"}, "model.from", fault.NotFound},
		{map[string]any{"from": "/etc/passwd"}, map[string]any{"type": "model"}, "model.from", fault.Invalid},
		{map[string]any{"config": "/etc/passwd"}, map[string]any{"type": "char"}, "model.config", fault.Invalid},
		{map[string]any{"config": config}, model("/etc/passwd"), "vocabulary.path", fault.Invalid},
		{map[string]any{"config": config}, model(dir), "vocabulary", fault.NotFound},
	} {
		raw := with(t, "model", c.model)
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		m["vocabulary"] = c.vocabulary
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		s := trainer.New(trainer.Config{Dir: dir, AllowPaths: []string{dir}})
		_, err = s.StartRun(context.Background(), &trainerv1.StartRunRequest{ManifestJson: raw})
		if fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v with %v: %v, want an error that names %s", c.model, c.vocabulary, err, c.want)
		}
	}
}

func TestParseManifest_SlotFitsAMessage(t *testing.T) {
	m := with(t, "slot_sequences", 1024)
	if _, err := trainer.ParseManifest([]byte(strings.Replace(string(m), `"sequence_len":4`, `"sequence_len":1024`,
		1))); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a slot of a million tokens: %v", err)
	}
}

// The two copies of a tied weight may be on different kernel classes, where Muon rounds differently.
func TestParseManifest_MixedClassesExcludeRulesWithMuon(t *testing.T) {
	m := string(with(t, "parameters", []any{map[string]any{"match": "*embed*", "optimizer": "muon"}}))
	if _, err := trainer.ParseManifest([]byte(m)); err != nil {
		t.Fatal(err)
	}
	_, err := trainer.ParseManifest([]byte(strings.Replace(m, "{", `{"mix_classes": true, `, 1)))
	if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "parameters[0].optimizer") {
		t.Errorf("a rule with muon in a run of several classes: %v", err)
	}
}

func TestParseManifest_AcceptsExactlyOneValue(t *testing.T) {
	for _, text := range []string{"", "null x", good + good, good + "}", "[1]"} {
		if _, err := trainer.ParseManifest([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestParseManifest_Preferences(t *testing.T) {
	for _, c := range []struct{ change, want string }{
		{``, ""},
		{`"dpo": {"beta": -1},`, "dpo.beta"},
		{`"dpo": {"label_smoothing": 0.5},`, "dpo.label_smoothing"},
		{`"z_loss": 0.1,`, "z_loss"},
		{`"diloco": {"workers": 2},`, "diloco"},
	} {
		m, err := trainer.ParseManifest([]byte(`{"name": "a", "objective": "dpo", "model": {"from": "m"}, ` + c.change + `
			"data": {"pairs": "p.jsonl"}, "slots": 2, "slot_sequences": 1, "sequence_len": 4, "steps": 3,
			"learning_rate": {"max": 0.01}}`))
		switch {
		case c.want == "" && (err != nil || m.DPO == nil || m.DPO.Beta != 0.1 || !m.Data.Isolate):
			t.Errorf("%+v, %v", m, err)
		case c.want != "" && (fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want one that names %s", c.change, err, c.want)
		}
	}
}

func TestParseManifest_ExamplesAreValid(t *testing.T) {
	paths, err := filepath.Glob("../../examples/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("find examples: %v, %v", paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trainer.ParseManifest(text); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"model":{"layers":-1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := trainer.ParseManifest(text)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trainer.ParseManifest(again); err != nil {
			t.Errorf("a good manifest, written out, is refused: %v\n%s", err, again)
		}
	})
}

func TestParseManifest_TokenData(t *testing.T) {
	data := func(more map[string]any) []byte {
		var m map[string]any
		if err := json.Unmarshal([]byte(good), &m); err != nil {
			t.Fatal(err)
		}
		d := map[string]any{"tokens": []any{map[string]any{"path": "a"}}}
		for k, v := range more {
			d[k] = v
		}
		m["data"], m["vocabulary"] = d, map[string]any{}
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	m, err := trainer.ParseManifest(data(nil))
	if err != nil || m.Vocabulary.Type != "tokens" || m.Data.Packing != "concat" {
		t.Errorf("%+v, %v", m, err)
	}
	for want, more := range map[string]map[string]any{
		"data.packing":        {"packing": "first-fit"},
		"data.tokens[1].path": {"tokens": []any{map[string]any{"path": "a"}, map[string]any{"weight": 2}}},
		"data.text":           {"more": []string{"a.txt"}},
		"data.tokens":         {"validation": make([]string, 1025)},
	} {
		if _, err := trainer.ParseManifest(data(more)); fault.CodeOf(err) != fault.Invalid ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", more, err)
		}
	}
}
