package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// grammarFile writes a grammar and returns its path.
func grammarFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "grammar")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGrammar_ExitCodes(t *testing.T) {
	path := grammarFile(t, `root ::= "a"+`)
	verbOK(t, "aaa", "grammar", "--gbnf", path)
	verbFails(t, 1, "byte 2 does not fit", "aab", "grammar", "--gbnf", path)
	verbFails(t, 1, "ends too early", "", "grammar", "--gbnf", path)
	verbFails(t, 2, "find rule a", "a", "grammar", "--gbnf", grammarFile(t, "root ::= a"))
	verbFails(t, 2, "left recursion", "a", "grammar", "--gbnf", grammarFile(t, `root ::= root "a" | "b"`))
	schema := grammarFile(t, `{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}`)
	verbOK(t, `{"a": 1}`, "grammar", "--schema", schema)
	verbFails(t, 1, "byte 6", `{"a": "x"}`, "grammar", "--schema", schema)
	verbFails(t, 2, `compile schema: pattern "(?=x)" at ""`, `1`, "grammar", "--schema",
		grammarFile(t, `{"pattern":"(?=x)"}`))
	verbOK(t, "ABC-12", "grammar", "--regex", `^[A-Z]{3}-\d+$`)
	verbFails(t, 1, "byte 3", "ABC:12", "grammar", "--regex", `[A-Z]{3}-\d+`)
	verbFails(t, 2, "lookahead", "ab", "grammar", "--regex", `a(?=b)b`)
	tags := grammarFile(
		t,
		`{"triggers":["<f"],"tags":[{"begin":"<f>","schema":{"type":"integer"},"end":"</f>"}],"at_least_one":true}`,
	)
	verbOK(t, "so: <f>12</f>.", "grammar", "--tags", tags)
	verbFails(t, 1, "byte 7", "so: <f>x</f>.", "grammar", "--tags", tags)
	verbFails(t, 1, "ends too early", "so", "grammar", "--tags", tags)
	verbFails(t, 2, "compile tags: y is not supported: tags[0]", "a", "grammar", "--tags",
		grammarFile(t, `{"tags":[{"begin":"<","schema":{},"y":1}]}`))
	verbFails(t, 2, "give --gbnf", "a", "grammar")
	verbFails(t, 2, "no such file", "a", "grammar", "--gbnf", "nowhere")
}

func TestGrammar_Many(t *testing.T) {
	var in strings.Builder
	for _, line := range []map[string]any{
		{"grammar": `root ::= "a"+`, "kind": "gbnf", "text": "aa"},
		{"grammar": `root ::= "a"+`, "kind": "gbnf", "text": "ab"},
		{"grammar": map[string]any{"type": "null"}, "kind": "schema", "text": "null"},
		{"grammar": `{"type":"null"}`, "kind": "schema", "text": "true"},
		{"grammar": `root ::= b`, "kind": "gbnf", "text": "ab"},
		{"grammar": `root ::= "a"`, "kind": "ebnf", "text": "ab"},
		{"grammar": `root ::= "a"`, "kind": "gbnf"},
		{"grammar": map[string]any{"type": "const_string", "value": "x"}, "kind": "tags", "text": "x"},
	} {
		text, err := json.Marshal(line)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(text)
		in.WriteByte('\n')
	}
	in.WriteString("{")
	out := strings.Split(strings.TrimSpace(verbOK(t, in.String(), "grammar", "--many")), "\n")
	for i, want := range []string{"accept", "reject", "accept", "reject", "refused: parse gbnf: line 1: find rule b",
		"refused: kind", "refused: parse the line", "accept", "refused: parse the line"} {
		if i >= len(out) || !strings.HasPrefix(out[i], want) {
			t.Errorf("line %d: %q, want %q", i, out, want)
		}
	}
}

func TestGrammar_ReadsTokensOfAModel(t *testing.T) {
	model := sharedPath(t, "vectors/tokenizer/qwen3-hf")
	verbOK(t, `{"name": "Ada", "age": 36}`, "grammar", "-m", model, "--schema",
		grammarFile(t, `{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}}}`))
	control := grammarFile(
		t,
		`{"type":"sequence","elements":[{"type":"any_text"},{"type":"token","token":"<|im_start|>"},{"type":"any_text"}]}`,
	)
	verbOK(t, "a<|im_start|>b", "grammar", "-m", model, "--tags", control)
	verbFails(t, 1, "does not fit", "a<|im_start|>b<|im_start|>", "grammar", "-m", model, "--tags", control)
	verbFails(t, 1, "does not fit", `{"name": 36}`, "grammar", "-m", model, "--schema",
		grammarFile(t, `{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}}}`))
}
