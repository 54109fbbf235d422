package main

import (
	"slices"
	"testing"
)

func TestGenerate_DraftGivesTheSameIDs(t *testing.T) {
	model, draft := sharedPath(t, "models/stories260K/stories260K-f32.gguf"),
		sharedPath(t, "models/stories260K/stories260K-Q8_0.gguf")
	for _, rules := range [][]string{{"--temp", "0"}, {"--temp", "0.9", "--seed", "4"},
		{"--temp", "0", "--regex", `( [a-z]+){12}\.`}} {
		ask := append([]string{"generate", "-m", model, "-p", "Lily had a", "-n", "60", "--format", "json", "--stages",
			"2"}, rules...)
		want := verbJSON[generated](t, "", ask...)
		for _, flags := range [][]string{{"--draft", draft},
			{"--draft", model, "--speculate", "3", "--draft-least", "0"}} {
			if got := verbJSON[generated](t, "", append(ask, flags...)...); len(got.TokenIDs) < 10 ||
				!slices.Equal(got.TokenIDs, want.TokenIDs) {
				t.Errorf("%v %v: %v, want %v", rules, flags, got.TokenIDs, want.TokenIDs)
			}
		}
	}
	verbFails(t, 1, "vocabularies differ: 512 tokens and 320", "", "generate", "-m", model, "-p", "x", "--draft",
		sharedPath(t, "models/tiny/llama"))
	verbFails(t, 1, "open model", "", "generate", "-m", model, "-p", "x", "--draft", "nothing.gguf")
	verbFails(t, 2, "draft-least", "", "generate", "-m", model, "-p", "x", "--draft", model, "--draft-least", "2")
	verbFails(t, 2, "draft", "", "generate", "--router", "127.0.0.1:1", "-p", "x", "--draft", model)
}
