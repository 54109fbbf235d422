package openai_test

import (
	"encoding/json"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
)

func TestMain(m *testing.M) { leak.Main(m) }

// same compares JSON by value, after it sets the time of creation to 1.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	got = regexp.MustCompile(`"created":[1-9][0-9]*`).ReplaceAllString(got, `"created":1`)
	httpapitest.SameJSON(t, what, got, want)
}

// events returns the data of a stream's events.
func events(t *testing.T, text string) []string {
	t.Helper()
	var out []string
	for _, e := range strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n") {
		d, ok := strings.CutPrefix(e, "data: ")
		if !ok || strings.Contains(d, "\n") {
			t.Fatalf("not an event: %q", e)
		}
		out = append(out, d)
	}
	return out
}

func best() []*routerv1.TopCandidate {
	return []*routerv1.TopCandidate{{Id: 1, Text: "a", Logprob: -1}, {Id: 2, Text: "é", Logprob: -2},
		{Id: 3, Text: "a", Logprob: -3}}
}

func TestChat_GoldenShape(t *testing.T) {
	s := serve(t, &backend{words: []string{"a"}, failAt: -1, top: best()[:2]})
	_, text := post(t, s.URL+"/v1/chat/completions", hello+`,"logprobs":true,"top_logprobs":2}`)
	same(
		t,
		"the answer",
		text,
		`{"id":"chatcmpl-r","object":"chat.completion","created":1,"model":"m","system_fingerprint":"f",
		"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0}},
		"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"a!","refusal":null},
		"logprobs":{"refusal":null,"content":[{"token":"a","logprob":-1,"bytes":[97],"top_logprobs":[
			{"token":"a","logprob":-1,"bytes":[97]},{"token":"é","logprob":-2,"bytes":[195,169]}]}]}}]}`,
	)
}

func TestChat_GoldenStream(t *testing.T) {
	s := serve(t, &backend{words: []string{"a", ""}, failAt: -1})
	_, text := post(t, s.URL+"/v1/chat/completions", hello+`,"stream":true,"stream_options":{"include_usage":true}}`)
	got := events(t, text)
	head := `"id":"chatcmpl-r","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"f"`
	want := []string{
		`{` + head + `,"usage":null,"choices":[{"index":0,"finish_reason":null,"logprobs":null,"delta":{"role":"assistant","content":""}}]}`,
		`{` + head + `,"usage":null,"choices":[{"index":0,"finish_reason":null,"logprobs":null,"delta":{"content":"a"}}]}`,
		`{` + head + `,"usage":null,"choices":[{"index":0,"finish_reason":"stop","logprobs":null,"delta":{"content":"!"}}]}`,
		`{` + head + `,"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0}},"choices":[]}`,
	}
	if len(got) != len(want)+1 || got[len(want)] != "[DONE]" {
		t.Fatalf("the stream is\n%s", text)
	}
	for i := range want {
		same(t, "an event", got[i], want[i])
	}
}

func TestCompletion_GoldenShape(t *testing.T) {
	s := serve(t, &backend{words: []string{"é", "b"}, failAt: -1, top: best()})
	_, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","logprobs":3}`)
	same(
		t,
		"the answer",
		text,
		`{"id":"cmpl-r","object":"text_completion","created":1,"model":"m","system_fingerprint":"f",
		"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0}},
		"choices":[{"index":0,"finish_reason":"stop","text":"éb!","logprobs":{"tokens":["é","b"],"token_logprobs":[-1,-1],
		"text_offset":[0,1],"top_logprobs":[{"a":-1,"é":-2},{"a":-1,"b":-1,"é":-2}]}}]}`,
	)
}

func TestCompletion_StreamEqualsTheCompleteResponse(t *testing.T) {
	s := serve(t, &backend{words: []string{"é", "b"}, failAt: -1, top: best()})
	body := `{"prompt":["x","y"],"n":2,"logprobs":1`
	_, whole := post(t, s.URL+"/v1/completions", body+`}`)
	_, text := post(t, s.URL+"/v1/completions", body+`,"stream":true,"stream_options":{"include_usage":true}}`)
	type lists struct {
		Tokens  []string  `json:"tokens"`
		Values  []float64 `json:"token_logprobs"`
		Offsets []int     `json:"text_offset"`
	}
	type choice struct {
		Index    int
		Text     string
		Reason   string `json:"finish_reason"`
		Logprobs lists
	}
	type tokenCounts struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
	}
	type object struct {
		ID      string `json:"id"`
		Usage   *tokenCounts
		Choices []choice
	}
	var want object
	if err := json.Unmarshal([]byte(whole), &want); err != nil || len(want.Choices) != 4 {
		t.Fatalf("%v in %s", err, whole)
	}
	if *want.Usage != (tokenCounts{6, 8, 14}) {
		t.Errorf("usage of two prompts of 3 tokens with two choices of 2 tokens each: %+v", *want.Usage)
	}
	got := object{Choices: make([]choice, 4)}
	all := events(t, text)
	for _, e := range all[:len(all)-1] {
		var part object
		if err := json.Unmarshal([]byte(e), &part); err != nil {
			t.Fatalf("%v in %s", err, e)
		}
		if got.ID == "" {
			got.ID = part.ID
		}
		if part.ID != got.ID {
			t.Errorf("an event has id %q, earlier ones have %q", part.ID, got.ID)
		}
		if part.Usage != nil {
			got.Usage = part.Usage
		}
		for _, c := range part.Choices {
			g := &got.Choices[c.Index]
			if g.Reason != "" {
				t.Errorf("choice %d goes on after its finish reason: %s", c.Index, e)
			}
			g.Index, g.Reason = c.Index, c.Reason
			g.Text += c.Text
			g.Logprobs.Tokens = append(g.Logprobs.Tokens, c.Logprobs.Tokens...)
			g.Logprobs.Values = append(g.Logprobs.Values, c.Logprobs.Values...)
			g.Logprobs.Offsets = append(g.Logprobs.Offsets, c.Logprobs.Offsets...)
		}
	}
	if want.ID = got.ID; !reflect.DeepEqual(got, want) {
		t.Errorf("the stream adds up to\n%+v\nwant\n%+v", got, want)
	}
}

func TestModels_GoldenShape(t *testing.T) {
	s := serve(t, &backend{})
	model := `{"id":"m","object":"model","created":0,"owned_by":"lamina","digest":"sha256:1","context_length":64,"chat":true,
		"max_model_len":60,"eos_token_ids":[2,7],"default_sampling_params":{"temperature":0.5,"top_k":20}}`
	same(t, "the list", get(t, s.URL+"/v1/models"), `{"object":"list","data":[`+model+`]}`)
	same(t, "the model by name", get(t, s.URL+"/v1/models/m"), model)
	same(t, "the model by digest", get(t, s.URL+"/v1/models/sha256:1"), model)
	same(
		t,
		"an unknown model",
		get(t, s.URL+"/v1/models/a/b"),
		`{"error":{"message":"find model \"a/b\": no pipeline serves it",
		"type":"invalid_request_error","param":"model","code":"model_not_found"}}`,
	)
}

func TestEmbeddings_GoldenShapes(t *testing.T) {
	s := serve(t, &backend{failAt: -1})
	const tail = `"model":"m","system_fingerprint":"f","usage":{"prompt_tokens":%,"total_tokens":%}}`
	for _, c := range []struct{ body, tokens, want string }{
		{`{"input":"abc"}`, "3", `[{"object":"embedding","index":0,"embedding":[3,0]}]`},
		{`{"input":["abc","d"],"encoding_format":"float"}`, "4",
			`[{"object":"embedding","index":0,"embedding":[3,0]},{"object":"embedding","index":1,"embedding":[1,1]}]`},
		{`{"input":[7,8]}`, "2", `[{"object":"embedding","index":0,"embedding":[2,0]}]`},
		{`{"input":[[7,8],[9]],"encoding_format":"base64"}`, "3", `[{"object":"embedding","index":0,
			"embedding":"AAAAQAAAAAA="},{"object":"embedding","index":1,"embedding":"AACAPwAAgD8="}]`},
	} {
		_, text := post(t, s.URL+"/v1/embeddings", c.body)
		same(t, c.body, text, `{"object":"list","data":`+c.want+","+strings.ReplaceAll(tail, "%", c.tokens))
	}
	for body, want := range map[string]string{`{}`: `"param":"input"`, `{"input":[]}`: `"param":"input"`,
		`{"input":"x","encoding_format":"hex"}`: `"param":"encoding_format"`, `{"input":"x","dimensions":8}`: `"param":"dimensions"`,
	} {
		resp, text := post(t, s.URL+"/v1/embeddings", body)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %s", body, resp.StatusCode, text, want)
		}
	}
	failing := serve(t, &backend{failAt: 0, failWith: fault.Field("inputs[3]", "bad")})
	if _, text := post(t, failing.URL+"/v1/embeddings", `{"input":"x"}`); !strings.Contains(text, `"param":"input[3]"`) {
		t.Errorf("the backend's field is %s", text)
	}
}
