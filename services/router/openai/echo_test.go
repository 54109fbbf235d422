package openai_test

import (
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// TestCompletions_EchoOfALongPromptTakesLinearMemory echoes a prompt of many tokens, which costs nothing to compute.
func TestCompletions_EchoOfALongPromptTakesLinearMemory(t *testing.T) {
	const tokens, most = 60_000, 1 << 30 // quadratic would be 1.8 GB
	s := serve(t, &backend{words: []string{"a"}, failAt: -1})
	prompt := strings.Repeat("x", tokens)
	for _, stream := range []string{"false", "true"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		resp, text := post(t, s.URL+"/v1/completions",
			`{"model":"m","prompt":"`+prompt+`","echo":true,"max_tokens":4,"stream":`+stream+`}`)
		runtime.ReadMemStats(&after)
		if resp.StatusCode != http.StatusOK || strings.Count(text, "x") < tokens {
			t.Fatalf("%s with %d bytes", resp.Status, len(text))
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > most {
			t.Errorf("stream %s: %d MB are allocated for an answer of %d KB", stream, n>>20, len(text)>>10)
		} else {
			t.Logf("stream %s: %d MB", stream, n>>20)
		}
	}
}
