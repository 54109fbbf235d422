package vllm_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/openai"
	"github.com/lamina-mesh/lamina/services/router/vllm"
)

func handler(b *httpapitest.Backend) http.Handler {
	return httpapi.Mux(vllm.Routes(b, vllm.Options{Fail: openai.Fail(openai.Options{})}))
}

func post(h http.Handler, path, body string) (int, string) {
	return httpapitest.Record(h, http.MethodPost, path, body)
}

func TestRoutes_Answers(t *testing.T) {
	// the embedding of the i-th text is its length and i
	for _, c := range []struct{ path, body, want string }{
		{"/tokenize", `{"prompt":"ab"}`, `{"count":2,"tokens":[97,98],"max_model_len":60,"token_strs":null}`},
		{"/tokenize", `{"model":"m:sql","prompt":"a"}`, `{"count":1,"tokens":[97],"max_model_len":60,"token_strs":null}`},
		{"/tokenize", `{"model":"m","prompt":""}`, `{"count":0,"tokens":[],"max_model_len":60,"token_strs":null}`},
		{"/tokenize", `{"model":"m","messages":[{"role":"user","content":"c"}]}`,
			`{"count":1,"tokens":[99],"max_model_len":60,"token_strs":null}`},
		{"/detokenize", `{"tokens":[97,98]}`, `{"prompt":"ab"}`},
		{"/score", `{"text_1":"a","text_2":["abcd","abcdefgh"]}`, `{"id":"score-","object":"list","created":1,"model":"m",
			"data":[{"index":0,"object":"score","score":0.9701425001453319},{"index":1,"object":"score",
			"score":0.9701425001453319}],"usage":{"prompt_tokens":13,"total_tokens":13}}`},
		{"/v1/score", `{"text_1":["a","b"],"text_2":["abcd","cd"]}`, `{"id":"score-","object":"list","created":1,"model":"m",
			"data":[{"index":0,"object":"score","score":0.8944271909999159},{"index":1,"object":"score",
			"score":0.9805806756909202}],"usage":{"prompt_tokens":8,"total_tokens":8}}`},
		{"/rerank", `{"query":"a","documents":["b",{"text":"cdefghi"}],"top_n":5}`, `{"id":"rerank-","model":"m",
			"usage":{"prompt_tokens":9,"total_tokens":9},"results":[{"index":1,"document":{"text":"cdefghi"},
			"relevance_score":0.9615239476408232},{"index":0,"document":{"text":"b"},"relevance_score":0.7071067811865475}]}`},
		{"/v1/rerank", `{"query":"a","documents":["b","cdefghi"],"top_n":1}`, `{"id":"rerank-","model":"m",
			"usage":{"prompt_tokens":9,"total_tokens":9},"results":[{"index":1,"document":{"text":"cdefghi"},
			"relevance_score":0.9615239476408232}]}`},
	} {
		b := &httpapitest.Backend{Adapters: []*routerv1.Adapter{{Name: "sql", Digest: "sha256:2"}}}
		status, text := post(handler(b), c.path, c.body)
		text = regexp.MustCompile(`(0\.\d{6})\d+`).ReplaceAllString(text, "$1")
		c.want = regexp.MustCompile(`(0\.\d{6})\d+`).ReplaceAllString(c.want, "$1")
		text = regexp.MustCompile(`"created":[1-9][0-9]*`).ReplaceAllString(text, `"created":1`)
		if status != 200 {
			t.Fatalf("%s %s: %d %s", c.path, c.body, status, text)
		}
		httpapitest.SameJSON(t, c.path+" "+c.body, text, c.want)
	}
}

func TestRoutes_Errors(t *testing.T) {
	for _, c := range []struct{ path, body, field string }{
		{"/tokenize", `{}`, "prompt"}, {"/tokenize", `{"prompt":7}`, "prompt"},
		{"/tokenize", `{"messages":[{"content":"x"}]}`, "messages[0].role"},
		{"/tokenize", `{"prompt":"x","return_token_strs":true}`, "return_token_strs"},
		{"/detokenize", `{}`, "tokens"}, {"/detokenize", `{"tokens":["x"]}`, "tokens"},
		{"/score", `{"text_2":"x"}`, "text_1"}, {"/score", `{"text_1":"x"}`, "text_2"},
		{"/score", `{"text_1":["x","y"],"text_2":["a","b","c"]}`, "text_1"},
		{"/rerank", `{"documents":["x"]}`, "query"}, {"/rerank", `{"query":"x"}`, "documents"},
		{"/rerank", `{"query":"x","documents":["y"],"top_n":-1}`, "top_n"},
	} {
		status, text := post(handler(&httpapitest.Backend{}), c.path, c.body)
		if status != 400 || !strings.Contains(text, `"param":"`+c.field+`"`) {
			t.Errorf("%s %s: %d %s", c.path, c.body, status, text)
		}
	}
	for _, c := range []struct{ path, body, backend, field string }{
		{"/score", `{"text_1":"a","text_2":["b","c"]}`, "inputs[0]", "text_1[0]"},
		{"/score", `{"text_1":"a","text_2":["b","c"]}`, "inputs[2]", "text_2[1]"},
		{"/score", `{"text_1":"a","text_2":["b","c"]}`, "inputs", "text_2"},
		{"/score", `{"model":"x","text_1":"a","text_2":"b"}`, "model", "model"},
		{"/rerank", `{"query":"a","documents":["b","c"]}`, "inputs[0]", "query"},
		{"/rerank", `{"query":"a","documents":["b","c"]}`, "inputs[2]", "documents[1]"},
		{"/rerank", `{"query":"a","documents":["b","c"]}`, "inputs", "documents"},
	} {
		status, text := post(handler(&httpapitest.Backend{Fail: fault.Field(c.backend, "bad")}), c.path, c.body)
		if status != 400 || !strings.Contains(text, `"message":"`+c.field+`: bad"`) ||
			!strings.Contains(text, `"param":"`+c.field+`"`) {
			t.Errorf("%s %s, %s: %d %s", c.path, c.body, c.backend, status, text)
		}
	}
	full := &httpapitest.Backend{Fail: fault.New(fault.Unavailable, "full")}
	if status, _ := post(handler(full), "/score", `{"text_1":"a","text_2":"b"}`); status != 503 {
		t.Errorf("a full router answers %d", status)
	}
}

func FuzzRequests(f *testing.F) {
	paths := []string{"/tokenize", "/detokenize", "/score", "/rerank"}
	for i, body := range []string{`{"messages":[{"role":"user","content":"x"}],"tools":[]}`, `{"tokens":[1]}`,
		`{"text_1":["a"],"text_2":["b"]}`, `{"query":"q","documents":[{"text":"d"}],"top_n":1}`} {
		f.Add(uint8(i), body)
	}
	h := handler(&httpapitest.Backend{})
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		path := paths[int(which)%len(paths)]
		if status, text := post(h, path, body); status >= 500 {
			t.Errorf("%s answers %d %s to %q", path, status, text, body)
		}
	})
}
