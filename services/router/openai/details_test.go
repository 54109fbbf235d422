package openai_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

func TestCompletion_EchoWithLogprobs(t *testing.T) {
	s := serve(t, &backend{words: []string{"c"}, failAt: -1})
	_, text := post(t, s.URL+"/v1/completions", `{"prompt":"éb","echo":true,"logprobs":1}`)
	same(
		t,
		"the answer",
		text,
		`{"id":"cmpl-r","object":"text_completion","created":1,"model":"m","system_fingerprint":"f",
		"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0}},
		"choices":[{"index":0,"finish_reason":"stop","text":"ébc!","logprobs":{"tokens":["é","b","c"],"token_logprobs":[null,-1,-1],
		"text_offset":[0,1,2],"top_logprobs":[null,{"z":-0.5,"b":-1},{"c":-1}]}}]}`,
	)
}

func TestCompletion_EchoWithLogprobsInAStream(t *testing.T) {
	s := serve(t, &backend{words: []string{"c"}, failAt: -1})
	_, text := post(t, s.URL+"/v1/completions", `{"prompt":"éb","echo":true,"logprobs":0,"stream":true}`)
	head := `{"id":"cmpl-r","object":"text_completion","created":1,"model":"m","system_fingerprint":"f","choices":[{"index":0,`
	want := []string{
		head + `"finish_reason":null,"text":"é","logprobs":{"tokens":["é"],"token_logprobs":[null],"text_offset":[0],"top_logprobs":[null]}}]}`,
		head + `"finish_reason":null,"text":"b","logprobs":{"tokens":["b"],"token_logprobs":[-1],"text_offset":[1],"top_logprobs":[{"b":-1}]}}]}`,
		head + `"finish_reason":null,"text":"c","logprobs":{"tokens":["c"],"token_logprobs":[-1],"text_offset":[2],"top_logprobs":[{"c":-1}]}}]}`,
		head + `"finish_reason":"stop","text":"!","logprobs":null}]}`,
	}
	got := events(t, text)
	if len(got) != len(want)+1 {
		t.Fatalf("the stream is\n%s", text)
	}
	for i := range want {
		same(t, "an event", got[i], want[i])
	}
}

func TestCompletion_EchoOfIdsAndOfThePromptAlone(t *testing.T) {
	b := &backend{failAt: -1}
	s := serve(t, b)
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":[[5,6],[7]],"echo":true}`); !strings.Contains(text,
		`"text":"\u003c5\u003e\u003c6\u003e!"`) || !strings.Contains(text, `"text":"\u003c7\u003e!"`) {
		t.Errorf("ids: %s", text)
	}
	post(t, s.URL+"/v1/completions", `{"prompt":"x","echo":true,"max_tokens":0,"logprobs":3}`)
	if r := b.generations[len(b.generations)-1]; !r.GetPromptOnly() || !r.GetPromptLogprobs() ||
		r.GetTopLogprobs() != 3 {
		t.Errorf("no tokens: %v", r)
	}
}

func TestCompletion_LogprobsZero_ReportsTheTokenItself(t *testing.T) {
	s := serve(t, &backend{words: []string{"a"}, failAt: -1})
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","logprobs":0}`); !strings.Contains(text,
		`"token_logprobs":[-1]`) || !strings.Contains(text, `"top_logprobs":[{"a":-1}]`) {
		t.Errorf("logprobs 0: %s", text)
	}
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x"}`); !strings.Contains(text, `"logprobs":null`) {
		t.Errorf("no logprobs: %s", text)
	}
}

func TestRequests_EmptyStopIsAbsent(t *testing.T) {
	b := &backend{failAt: -1}
	s := serve(t, b)
	for body, want := range map[string]int{`"stop":""`: 0, `"stop":[]`: 0, `"stop":null`: 0, `"stop":["","a"]`: 1,
		`"stop":"a"`: 1} {
		if resp, text := post(t, s.URL+"/v1/completions", `{"prompt":"x",`+body+`}`); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", body, text)
		}
		if got := b.generations[len(b.generations)-1].GetStop(); len(got) != want {
			t.Errorf("%s: stop strings %q", body, got)
		}
	}
}

func TestRequests_ManyChoices(t *testing.T) {
	b := &backend{words: []string{"a"}, failAt: -1}
	s := serve(t, b)
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","n":128}`); strings.Count(text,
		`"text":"a!"`) != 128 {
		t.Errorf("128 choices: %.300s", text)
	}
	for _, r := range b.generations {
		if r.GetSampling().GetChoices() != 128 {
			t.Fatalf("the backend is asked for %d choices", r.GetSampling().GetChoices())
		}
	}
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","n":2,"best_of":100}`); strings.Count(text,
		`"text":"a!"`) != 2 || !strings.Contains(text, `"completion_tokens":100`) {
		t.Errorf("the best 2 of 100: %.300s", text)
	}
}

func TestCompletion_SuffixReachesTheBackend(t *testing.T) {
	b := &backend{failAt: -1}
	s := serve(t, b)
	for body, want := range map[string]bool{`,"suffix":"return"`: true, `,"suffix":""`: false,
		`,"suffix":null`: false} {
		post(t, s.URL+"/v1/completions", `{"prompt":"x"`+body+`}`)
		if r := b.generations[len(b.generations)-1]; (r.Suffix != nil) != want {
			t.Errorf("%s: the backend is asked %v", body, r)
		}
	}
}

func TestErrors_ContextLengthExceeded(t *testing.T) {
	long := &fault.Error{Code: fault.OutOfRange, Field: "messages",
		Msg: "9031 tokens leave no room for an answer in the context length of 8192 tokens"}
	s := serve(t, &backend{failAt: 0, failWith: long})
	for _, body := range []string{hello + `}`, hello + `,"stream":true}`} {
		resp, text := post(t, s.URL+"/v1/chat/completions", body)
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("status %d", resp.StatusCode)
		}
		same(
			t,
			"the error",
			text,
			`{"error":{"message":"messages: 9031 tokens leave no room for an answer in the context length of 8192 tokens",
			"type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`,
		)
	}
}

// loggingBackend is a backend that logs each request.
type loggingBackend struct {
	backend
	log *slog.Logger
}

func (l *loggingBackend) Generate(
	ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error,
) error {
	l.log.InfoContext(ctx, "generate")
	return l.backend.Generate(ctx, r, send)
}

func TestRequestID_IsReusedOrGenerated(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(obs.LogRequestIDs(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	h := openai.New(&loggingBackend{backend{failAt: -1}, log}, openai.Options{Log: log})
	for _, c := range []struct{ path, sent, want string }{
		{"/v1/completions", "client-7", "client-7"}, {"/v1/completions", "", ""},
		{"/v1/completions", "bad id\twith blanks", ""},
		{"/v1/completions", strings.Repeat("x", 129), ""}, {"/v1/models", "a.b:c", "a.b:c"}, {"/v1/nothing", "n", "n"},
		{"/v1/models/none", "m", "m"},
	} {
		out.Reset()
		r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(`{"prompt":"x"}`))
		if c.path != "/v1/completions" {
			r = httptest.NewRequest(http.MethodGet, c.path, nil)
		}
		if c.sent != "" {
			r.Header.Set("X-Request-Id", c.sent)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Header().Get("X-Request-Id")
		if c.want != "" && got != c.want || c.want == "" && (!obs.ValidRequestID(got) || got == c.sent) {
			t.Errorf("%s %q: the response has %q", c.path, c.sent, got)
		}
		for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			if !strings.Contains(line, "request_id="+got) {
				t.Errorf("%s %q: a log line lacks the id: %s", c.path, c.sent, line)
			}
		}
	}
}
