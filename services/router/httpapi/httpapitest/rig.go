package httpapitest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Talker returns a backend that writes reasoning, text and a call of the tool "weather".
func Talker() *Backend {
	return &Backend{
		Pieces: []string{"<think>", "hm", "m</think>", "I ", "look.", "\n<tool_call>\n{\"name\": \"weather\", ",
			"\"arguments\": {\"city\"", ": \"Rom\"}}\n</tool_call>"},
		Format: &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"},
	}
}

// Serve serves an API on loopback until the test ends.
func Serve(t testing.TB, api httpapi.API) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(httpapi.Mux(api))
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s
}

// Call sends a request and returns the status and the text of the answer. header has names and values in turn.
func Call(t testing.TB, method, url, body string, header ...string) (status int, text string) {
	t.Helper()
	resp := open(t, t.Context(), method, url, body, header...)
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(all)
}

func open(t testing.TB, ctx context.Context, method, url, body string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// Record answers a request without a server.
func Record(h http.Handler, method, path, body string) (status int, text string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

// SameJSON compares JSON by value.
func SameJSON(t testing.TB, what, got, want string) {
	t.Helper()
	var a, b any
	if err := json.Unmarshal([]byte(got), &a); err != nil {
		t.Fatalf("%s: %v in %s", what, err, got)
	}
	if err := json.Unmarshal([]byte(want), &b); err != nil {
		t.Fatalf("%s: the golden text: %v", what, err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

// CancelsChat asks for a stream at a path, disconnects after its first line, and fails the test unless the backend's
// chat is canceled.
func CancelsChat(t testing.TB, routes func(*Backend) httpapi.API, path, body string) {
	t.Helper()
	b := &Backend{Pieces: []string{"a"}, Hang: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp := open(t, ctx, http.MethodPost, Serve(t, routes(b)).URL+path, body)
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-b.Hang:
	case <-time.After(time.Minute):
		t.Error("the chat goes on after its reader has gone")
	}
}
