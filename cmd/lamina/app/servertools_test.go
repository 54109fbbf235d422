package app_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// writeTools writes a file of tools.
func writeTools(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tools.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMesh_RunsASearchForAChat has a real model search a web of one page.
func TestMesh_RunsASearchForAChat(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	var queries atomic.Value
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries.Store(r.URL.Query().Get("q"))
		_, _ = w.Write([]byte(
			`{"results":[{"url":"http://weather.test/","title":"Weather","content":"Paris: sunny, 21 C."}]}`))
	}))
	defer engine.Close()
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	m, _ := startMesh(t, ctx, app.MeshConfig{
		Model:   shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"),
		Kernels: app.Kernels{Set: set, Threads: 2}, HTTP: "127.0.0.1:0",
		Tools: writeTools(t, "rounds: 1\nweb_search:\n  providers:\n    - {kind: searxng, url: \""+engine.URL+"\"}\n"),
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+m.HTTPAddr()+"/v1/chat/completions", "application/json", strings.NewReader(
		`{"messages":[{"role":"user","content":"What is the weather in Paris?"}],"tools":[{"type":"web_search"}],`+
			`"tool_choice":"required","parallel_tool_calls":false,"temperature":0,"max_tokens":150,`+
			`"wait_for_capacity":200}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		Choices []struct {
			Message struct {
				Content  string
				Executed []struct{ Name string } `json:"executed_tools"`
			}
		}
	}
	if err := json.Unmarshal(text, &out); err != nil || len(out.Choices) != 1 {
		t.Fatalf("got %s: %v", text, err)
	}
	said := out.Choices[0].Message
	if query, _ := queries.Load().(string); query == "" || len(said.Executed) != 1 || said.Content == "" ||
		said.Executed[0].Name != "web_search" {
		t.Errorf("it searched for %q, and got %s", query, text)
	}
}

func TestStart_NamesWhatIsWrongWithTheTools(t *testing.T) {
	for want, text := range map[string]string{
		"unknown: line 1: there":    "unknown: 1",
		"rounds: 1000":              "rounds: 1000",
		"read_page.redirects: -1":   "read_page: {redirects: -1}",
		"read_page.allow: ":         "read_page: {allow: [10.0.0.1]}",
		"providers: want":           "web_search: {}",
		"providers[0].kind: ":       "web_search: {providers: [{kind: x, url: 'http://x'}]}",
		"mcp.a: want either":        "mcp: {a: {}}",
		"timeout: line 1: want a t": "timeout: soon",
		"mcp: line 2: want a map":   "rounds: 1\nmcp: [a]",
		"web_search.results: 1000":  "web_search: {results: 1000}",
	} {
		_, err := app.Start(t.Context(), app.MeshConfig{HTTP: "127.0.0.1:0", Tools: writeTools(t, text)})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	_, err := app.Start(t.Context(), app.MeshConfig{HTTP: "127.0.0.1:0", Tools: filepath.Join(t.TempDir(), "missing")})
	if fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a file that is missing: got %v", err)
	}
}

// FuzzParseTools reads files of tools. Numbers that are accepted are within their bounds; errors are about the file.
func FuzzParseTools(f *testing.F) {
	for _, seed := range []string{
		"", "rounds: 3\ncalls: 4\nresult_bytes: 1\nbytes: 2\ncall_timeout: 1s\ntimeout: 2m\n",
		"web_search: {results: 3, timeout: 5s, providers: [{kind: brave, key_file: /x}]}",
		"read_page: {bytes: 7, allow: [x], any_address: true}",
		"mcp: {a: {command: [x, y], env: {A: b}, dir: /, tools: [z]}, b: {url: 'http://x', token_file: y}}",
		"read_page: {redirects: -1, ports: [0, 65536]}", "rounds: -1", "a: &a [*a]", "a: &a [1]\nb: [*a, *a]",
		"\t", "---\n---\n",
		"rounds: 1e99", "timeout: 99999999h", "? {}", "!!binary x",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		rounds, bytes, err := app.ParseTools(text)
		if err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: got %v", text, err)
		}
		if rounds < 0 || rounds > 100 || bytes < 0 || bytes > 64<<20 {
			t.Errorf("%q: got %d rounds and pages of %d bytes", text, rounds, bytes)
		}
	})
}

// TestWanted_AModelThatWasPulledAgainIsAnotherOne has a model replaced and removed.
func TestWanted_AModelThatWasPulledAgainIsAnotherOne(t *testing.T) {
	w := app.NewWanted()
	w.Add("m", "one")
	if !w.Has("m", "one") || w.Has("m", "two") || w.Has("other", "one") || w.Has("other", "") {
		t.Error("a model is wanted that nobody has loaded, or not the one that was")
	}
	w.Add("m", "two")
	if w.Has("m", "one") || !w.Has("m", "two") {
		t.Error("the model from before is wanted, or not the new one")
	}
	w.Remove("m")
	if w.Has("m", "two") || w.Has("m", "") {
		t.Error("a model is wanted that was removed")
	}
}
