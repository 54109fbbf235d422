package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestGenerate_HeldToAGrammar(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	gbnf := filepath.Join(t.TempDir(), "g")
	if err := os.WriteFile(gbnf, []byte("root ::= \" \" [a-z]+ \" and \" [a-z]+ \".\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tags := grammarFile(t, `{"type":"tag","begin":" <","content":{"type":"regex","pattern":"[a-z]{2,6}"},"end":">"}`)
	for _, c := range []struct{ flag, value, want string }{
		{"--regex", ` [a-z]{3,5}( [a-z]{2}){2}!`, `^ [a-z]{3,5}( [a-z]{2}){2}!$`},
		{"--tags", tags, `^ <[a-z]{2,6}>$`},
		{"--gbnf", gbnf, `^ [a-z]+ and [a-z]+\.$`},
	} {
		got := strings.TrimSuffix(
			verbOK(t, "", "generate", "-m", model, "-p", "Lily had a", c.flag, c.value, "-n", "60"), "\n")
		if !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%s: %q is not %s", c.flag, got, c.want)
		}
	}
	verbFails(t, 2, "grammar.source", "", "generate", "-m", model, "-p", "x", "--regex", "(")
}

func TestGenerate_CallsTools(t *testing.T) {
	model := sharedPath(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
	messages := grammarFile(t, `[{"role":"user","content":"What is the weather in Paris?"}]`)
	tools := grammarFile(
		t,
		`[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}},{"type":"function","function":{"name":"now"}}]`,
	)
	for choice, want := range map[string]string{"required": "get_weather now", "get_weather": "get_weather",
		"now": "now"} {
		got := verbJSON[generated](t, "", "generate", "-m", model, "--messages", messages, "--tools", tools,
			"--tool-choice", choice, "--no-parallel-tool-calls", "--format", "json")
		if len(got.ToolCalls) != 1 || !strings.Contains(want, got.ToolCalls[0].Name) ||
			!json.Valid([]byte(got.ToolCalls[0].Arguments)) {
			t.Errorf("%s: %+v in %q", choice, got.ToolCalls, got.Text)
		}
	}
	verbFails(t, 2, "tool_choice.function", "", "generate", "-m", model, "--messages", messages, "--tools", tools,
		"--tool-choice", "nix")
	verbFails(t, 2, "give --messages", "", "generate", "-m", model, "-p", "x", "--tools", tools)
}
