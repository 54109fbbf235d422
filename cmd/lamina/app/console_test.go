package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestMesh_ConsolePullsAndLoadsAModel fetches a model over HTTP, loads it beside the one that is served, and generates
// with it.
func TestMesh_ConsolePullsAndLoadsAModel(t *testing.T) {
	first, second := shared(t, "models/tiny/llama"), shared(t, "models/stories260K/stories260K-Q8_0.gguf")
	files := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(second))))
	t.Cleanup(files.Close)
	set := cpu.New(1)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	var log logtest.Buffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	m, _ := startMesh(t, ctx, app.MeshConfig{
		Log: slog.New(slog.NewTextHandler(&log, nil)), Model: first,
		Kernels: app.Kernels{Set: set, Threads: 1}, HTTP: "127.0.0.1:0",
		Auto: []app.AutoShard{{Memory: 1 << 30}}, Store: app.StoreConfig{Dir: t.TempDir()},
	})
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+m.HTTPAddr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	until := func(path, want string) {
		t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			_, text := call(http.MethodGet, path, "")
			if strings.Contains(text, want) {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%s has no %s: %s", path, want, text)
			}
		}
	}
	if status, text := call(http.MethodPost, "/api/pulls", `{"source":"/etc/passwd"}`); status != 400 {
		t.Errorf("a path of the machine: %d %s", status, text)
	}
	source, err := json.Marshal(files.URL + "/" + filepath.Base(second))
	if err != nil {
		t.Fatal(err)
	}
	status, text := call(http.MethodPost, "/api/pulls", fmt.Sprintf(`{"source":%s,"name":"stories"}`, source))
	if status != http.StatusAccepted {
		t.Fatalf("pull: %d %s", status, text)
	}
	until("/api/store", `"name":"stories"`)
	if status, text := call(http.MethodPost, "/api/store/none/load", `{}`); status != http.StatusNotFound {
		t.Errorf("load what is not there: %d %s", status, text)
	}
	if status, text := call(http.MethodPost, "/api/store/stories/load", `{}`); status != http.StatusOK {
		t.Fatalf("load: %d %s", status, text)
	}
	until("/v1/models", `"id":"stories"`)
	status, text = call(http.MethodPost, "/v1/completions",
		`{"model":"stories","prompt":"Once upon a time","max_tokens":8,"temperature":0}`)
	if status != http.StatusOK || !strings.Contains(text, "there was a") {
		t.Errorf("generate: %d %s", status, text)
	}
}
