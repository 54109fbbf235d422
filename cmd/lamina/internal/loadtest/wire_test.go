package loadtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// serve runs a handler on a real HTTP server.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func parse(t *testing.T, file string) []loadtest.Prompt {
	t.Helper()
	p, err := loadtest.ParsePrompts(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRun_RequestsHaveTheFormOfTheAPI(t *testing.T) {
	var mu sync.Mutex
	got := map[string]map[string]any{}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		body["path"], body["tenant"], body["auth"] = r.URL.Path, r.Header.Get(loadtest.TenantHeader),
			r.Header.Get("Authorization")
		mu.Lock()
		got[fmt.Sprint(body["seed"])] = body
		mu.Unlock()
		begin(w)
		piece(w, "x", "stop")
		done(w)
	})
	heat := 0.5
	r := run(t, loadtest.Config{
		URLs: []string{url}, Key: "secret", Requests: 3, MaxTokens: 7, Temperature: &heat, Seed: 10,
		Tenants: []loadtest.Tenant{{Name: "common", Weight: 1}},
		Prompts: parse(t, "plain text\n"+
			`{"messages":[{"role":"user","content":"hi"}],"tenant":"own","seed":99,"max_tokens":3,"temperature":0}`+
			"\n"+
			`{"prompt":"p","n":1,"model":"named","response_format":{"type":"json_object"}}`),
	})
	if r.All.OK != 3 {
		t.Fatalf("got %+v", r.All)
	}
	plain, chat, extra := got["10"], got["99"], got["12"]
	if plain["path"] != "/v1/completions" || plain["prompt"] != "plain text" || plain["tenant"] != "common" ||
		plain["max_tokens"] != 7. || plain["temperature"] != 0.5 || plain["auth"] != "Bearer secret" ||
		plain["stream"] != true ||
		fmt.Sprint(plain["stream_options"]) != "map[include_usage:true]" {
		t.Errorf("the plain prompt was sent as %v", plain)
	}
	if chat["path"] != "/v1/chat/completions" || chat["tenant"] != "own" || chat["max_tokens"] != 3. ||
		chat["temperature"] != 0. || fmt.Sprint(chat["messages"]) != "[map[content:hi role:user]]" {
		t.Errorf("the chat was sent as %v", chat)
	}
	if extra["model"] != "named" || fmt.Sprint(extra["response_format"]) != "map[type:json_object]" {
		t.Errorf("the prompt with other fields was sent as %v", extra)
	}
}

func TestRun_AsksForTheFirstModel(t *testing.T) {
	var model any
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/own/path/models" {
			io.WriteString(w, `{"data":[{"id":"the-model"},{"id":"other"}]}`)
			return
		}
		var body map[string]any
		json.NewDecoder(r.Body).Decode(&body)
		model = body["model"]
		begin(w)
		piece(w, "x", "stop")
		done(w)
	})
	c := loadtest.Config{URLs: []string{url + "/own/path/"}, Requests: 1, Prompts: prompts(t, 1)}
	if _, err := loadtest.Run(t.Context(), c); err != nil || model != "the-model" {
		t.Errorf("asked for model %v; %v", model, err)
	}
}

func TestRun_EveryFailureHasItsClass(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + closed.Addr().String()
	closed.Close()
	for _, test := range []struct {
		name    string
		url     string
		handler http.HandlerFunc
		class   loadtest.Outcome
		status  int
		message string
	}{
		{name: "nobody listens", url: nobody, class: loadtest.Connect, message: "refused"},
		{name: "internal error", class: loadtest.Status, status: 500, message: "boom",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "boom", http.StatusInternalServerError)
			}},
		{name: "bad request", class: loadtest.Status, status: 400, message: "prompt: too long",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				io.WriteString(w, `{"error":{"message":"prompt: too long"}}`)
			}},
		{name: "redirect", class: loadtest.Status, status: 302,
			handler: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/elsewhere", http.StatusFound)
			}},
		{name: "cut", class: loadtest.Cut, status: 200, message: "after 2 events",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				piece(w, "x", "")
				piece(w, "y", "")
			}},
		{name: "connection reset", class: loadtest.Cut, status: 200, message: "after 1 events",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				piece(w, "x", "")
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}},
		{name: "one of two choices is not finished", class: loadtest.Cut, status: 200,
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				piece(w, "x", "stop")
				io.WriteString(w, `data: {"choices":[{"index":1,"text":"y"}]}`+"\n\n")
			}},
		{name: "error event", class: loadtest.ErrorEvent, status: 200, message: "no pipeline",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				piece(w, "x", "")
				io.WriteString(w, `data: {"error":{"message":"no pipeline","code":14}}`+"\n\n")
			}},
		{name: "error field", class: loadtest.ErrorEvent, status: 200, message: "slot unavailable",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				io.WriteString(w, `error: {"message":"slot unavailable","code":500}`+"\n\n")
			}},
		{name: "done without a finish reason", class: loadtest.Malformed, status: 200, message: "[DONE]",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				piece(w, "x", "")
				done(w)
			}},
		{name: "not JSON", class: loadtest.Malformed, status: 200, message: "parse event",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				begin(w)
				io.WriteString(w, "data: hello\n\n")
			}},
		{name: "not events", class: loadtest.Malformed, status: 200, message: "text/event-stream",
			handler: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }},
		{name: "hangs", class: loadtest.Timeout, status: 200, message: "within",
			handler: func(w http.ResponseWriter, r *http.Request) {
				begin(w)
				piece(w, "x", "")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			url := test.url
			if url == "" {
				url = serve(t, test.handler)
			}
			var sample loadtest.Sample
			limit := time.Minute
			if test.class == loadtest.Timeout {
				limit = 3 * time.Second
			}
			r := run(t, loadtest.Config{URLs: []string{url}, Prompts: prompts(t, 1), Requests: 1,
				Timeout: limit, Observe: func(s loadtest.Sample) { sample = s }})
			if r.All.Failed != 1 || len(r.All.Errors) != 1 || r.All.OK != 0 {
				t.Fatalf("got %+v", r.All)
			}
			e := r.All.Errors[0]
			if e.Class != test.class || e.Status != test.status || e.Count != 1 ||
				!strings.Contains(e.Message, test.message) {
				t.Errorf("got %+v, want class %q, status %d, message %q", e, test.class, test.status, test.message)
			}
			if sample.Outcome != test.class || !sample.Outcome.Failed() || sample.End.Before(sample.Sent) {
				t.Errorf("the sample is %+v", sample)
			}
		})
	}
}

func TestRun_TextsAreComparedWithTheRecord(t *testing.T) {
	var wrong, cut bool
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Prompt string }
		json.NewDecoder(r.Body).Decode(&body)
		begin(w)
		text := "answer to " + body.Prompt
		if wrong && body.Prompt == "prompt 1" {
			text = "ANSWER"
		}
		if cut {
			piece(w, text[:4], "")
			return
		}
		piece(w, text, "stop")
		done(w)
	})
	c := loadtest.Config{URLs: []string{url}, Prompts: prompts(t, 4), Requests: 8, Record: true}
	first := run(t, c)
	if first.Texts.Len() != 4 || first.All.Identity.Compared != 4 {
		t.Fatalf("recorded %d texts, compared %+v", first.Texts.Len(), first.All.Identity)
	}
	var file bytes.Buffer
	if err := first.Texts.Write(&file); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.Expect, err = loadtest.ReadTexts(&file); err != nil {
		t.Fatal(err)
	}
	if got := run(t, c).All.Identity; got.Compared != 8 || got.Identical != 8 {
		t.Errorf("undisturbed: %+v", got)
	}
	wrong = true
	got := run(t, c)
	if id := got.All.Identity; id.Compared != 8 || id.Identical != 6 || id.Share != 0.75 {
		t.Errorf("one of four prompts gets another answer: %+v", id)
	}
	if d := got.Differences; len(d) != 2 || d[0].Line != 2 || d[0].Byte != 0 ||
		!strings.HasPrefix(d[0].Want, "answer") {
		t.Errorf("differences are %+v", d)
	}
	cut = true
	if id := run(t, c).All.Identity; id.Compared != 0 || id.Diverged != 2 {
		t.Errorf("cut streams, 2 of them wrong: %+v", id)
	}
}

func TestRun_ChoicesReasoningAndToolCallsAreText(t *testing.T) {
	ids := 0
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		ids++
		begin(w)
		for _, event := range []string{
			`{"index":0,"delta":{"role":"assistant","content":null}}`,
			`{"index":1,"delta":{"reasoning_content":"think "}}`,
			`{"index":1,"delta":{"content":"b"},"finish_reason":"stop"}`,
			fmt.Sprintf(`{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call-%d","function":{"name":"f","arguments":""}}]}}`,
				ids),
			`{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}`,
			`{"index":0,"delta":{},"finish_reason":"tool_calls"}`,
		} {
			fmt.Fprintf(w, "event: message\r\nid: 7\r\n: comment\r\ndata: {\"choices\":[%s]}\r\n\r\n", event)
		}
		done(w)
	})
	var last loadtest.Sample
	r := run(t, loadtest.Config{URLs: []string{url}, Streams: 1, Requests: 2,
		Observe: func(s loadtest.Sample) { last = s },
		Prompts: parse(t, `{"messages":[{}],"n":2}`)})
	if r.All.OK != 2 || r.All.Identity.Identical != 1 || r.All.Identity.Compared != 1 {
		t.Errorf("got %+v", r.All)
	}
	want := []string{"\n[call 0: f] {}", "think b"}
	if fmt.Sprintf("%q", last.Text.Choices) != fmt.Sprintf("%q", want) {
		t.Errorf("choices are %q, want %q", last.Text.Choices, want)
	}
}

func TestRun_RefusesBadSettings(t *testing.T) {
	good := func() loadtest.Config {
		return loadtest.Config{URLs: []string{"http://h"}, Prompts: prompts(t, 1), Requests: 1, Model: "m"}
	}
	for field, change := range map[string]func(*loadtest.Config){
		"url":         func(c *loadtest.Config) { c.URLs = []string{"localhost:8080"} },
		"prompts":     func(c *loadtest.Config) { c.Prompts = nil },
		"rate":        func(c *loadtest.Config) { c.Rate = -1 },
		"streams":     func(c *loadtest.Config) { c.Streams = 1e6 },
		"requests":    func(c *loadtest.Config) { c.Requests = 0 },
		"max-tokens":  func(c *loadtest.Config) { c.MaxTokens = -1 },
		"timeout":     func(c *loadtest.Config) { c.Timeout = -1 },
		"stall":       func(c *loadtest.Config) { c.Stall = -1 },
		"ttft-limit":  func(c *loadtest.Config) { c.TTFTLimit = -1 },
		"endpoint":    func(c *loadtest.Config) { c.Endpoint = "embeddings" },
		"endpoint: p": func(c *loadtest.Config) { c.Endpoint, c.Prompts = "completions", parse(t, `{"messages":[1]}`) },
		"n":           func(c *loadtest.Config) { c.Prompts = parse(t, `{"prompt":"x","n":0}`) },
	} {
		c := good()
		change(&c)
		_, err := loadtest.Run(t.Context(), c)
		if fault.CodeOf(err) != fault.Invalid || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}
