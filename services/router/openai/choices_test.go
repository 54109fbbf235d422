package openai_test

import (
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// TestChoices_DoNotMultiplyWhatARequestTakes asks for many choices with long lists and prompts.
func TestChoices_DoNotMultiplyWhatARequestTakes(t *testing.T) {
	const most = 200 << 20 // bytes that may be allocated
	lists := strings.Repeat("[1],", 50_000)
	texts := strings.Repeat(`"a",`, 50_000)
	long := strings.Repeat("x", 1<<20)
	for _, c := range []struct{ name, path, body, field string }{
		{"bad words", "/v1/completions", `"prompt":"a","n":128,"bad_words_ids":[` + lists + `[2]]`, "bad_words_ids"},
		{"bad texts", "/v1/completions", `"prompt":"a","n":128,"bad_words":[` + texts + `"b"]`, "bad_words"},
		{"breakers", "/v1/completions", `"prompt":"a","n":128,"dry_sequence_breakers":[` + lists + `[2]]`,
			"dry_sequence_breakers"},
		{"a prompt", "/v1/completions", `"prompt":"` + long + `","n":128`, "n"},
		{"candidates", "/v1/completions", `"prompt":"` + long + `","best_of":128`, "n"},
		{"a message", "/v1/chat/completions", `"messages":[{"role":"user","content":"` + long + `"}],"n":128`, "n"},
		{"messages", "/v1/chat/completions", `"messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 30_000) +
			`{"role":"user","content":"b"}],"n":128`, "n"},
	} {
		b := &backend{words: []string{"a"}, failAt: -1}
		s := serve(t, b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		resp, text := post(t, s.URL+c.path, `{"model":"m",`+c.body+`}`)
		runtime.ReadMemStats(&after)
		if resp.StatusCode != http.StatusBadRequest || b.started > 0 ||
			!strings.Contains(text, `"param":"`+c.field+`"`) {
			t.Errorf("%s: %s after %d choices: %.300s", c.name, resp.Status, b.started, text)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > most {
			t.Errorf("%s: %d MB are allocated", c.name, n>>20)
		}
	}
	b := &backend{words: []string{"a"}, failAt: -1}
	s := serve(t, b)
	if resp, text := post(t, s.URL+"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"`+long+
		`"}],"n":8,"bad_words_ids":[[7]],"logit_bias":{"5":1},"seed":3}`); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %.300s", resp.Status, text)
	}
	seen := map[uint32]bool{}
	for _, r := range b.chats {
		p := r.GetSampling()
		seen[p.GetChoice()] = true
		if p.GetChoices() != 8 || p.GetSeed() != 3 || p.GetLogitBias()[5] != 1 ||
			len(p.GetAdvanced().GetBadWords()) != 1 || len(r.GetMessages()) != 1 {
			t.Errorf("choice %d has %v", p.GetChoice(), p)
		}
	}
	if len(seen) != 8 {
		t.Errorf("the choices are %v", seen)
	}
}
