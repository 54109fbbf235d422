package ollama_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/ollama"
)

func TestMain(m *testing.M) { leak.Main(m) }

func routes(b *httpapitest.Backend) httpapi.API { return ollama.Routes(b, ollama.Options{}) }

func serve(t *testing.T, b *httpapitest.Backend) *httptest.Server {
	t.Helper()
	return httpapitest.Serve(t, routes(b))
}

// same compares JSON by value, after it sets the time of creation to T and drops durations that are measured.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	got = regexp.MustCompile(`"created_at":"20[^"]*Z"`).ReplaceAllString(got, `"created_at":"T"`)
	got = regexp.MustCompile(`"total_duration":[0-9]+,"prompt_eval_count"`).ReplaceAllString(got, `"prompt_eval_count"`)
	httpapitest.SameJSON(t, what, got, want)
}

const tools = `,"tools":[{"type":"function","function":{"name":"weather","description":"d","parameters":` +
	`{"type":"object","properties":{"city":{"type":"string"}}}}}]`

const hi = `{"model":"m:latest","messages":[{"role":"user","content":"hi"}]`

const counts = `"prompt_eval_count":5,"prompt_eval_duration":2000,"eval_duration":3000`

func TestChat_Whole(t *testing.T) {
	_, text := httpapitest.Call(t, "POST", serve(t, httpapitest.Talker()).URL+"/api/chat", hi+tools+`,"stream":false}`)
	id := regexp.MustCompile(`"id":"(\w{9})"`).FindStringSubmatch(text)
	if id == nil {
		t.Fatal(text)
	}
	same(t, "the answer", text, `{"model":"m","created_at":"T","message":{"role":"assistant","content":"I look.",
		"thinking":"hmm","tool_calls":[{"id":"`+id[1]+`","function":{"index":0,"name":"weather","arguments":{"city":"Rom"}}}]},
		"done":true,"done_reason":"stop","eval_count":8,`+counts+`}`)
}

func TestChat_StreamAddsUpToTheWholeAnswer(t *testing.T) {
	s := serve(t, httpapitest.Talker())
	_, whole := httpapitest.Call(t, "POST", s.URL+"/api/chat", hi+tools+`,"stream":false}`)
	_, text := httpapitest.Call(t, "POST", s.URL+"/api/chat", hi+tools+`}`)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	var sum map[string]any
	content, thinking := "", ""
	var calls []any
	for i, l := range lines {
		var v map[string]any
		if err := json.Unmarshal([]byte(l), &v); err != nil {
			t.Fatalf("%v in %s", err, l)
		}
		if v["done"] != (i == len(lines)-1) {
			t.Errorf("line %d of %d is %s", i, len(lines), l)
		}
		m := v["message"].(map[string]any)
		content += m["content"].(string)
		part, _ := m["thinking"].(string)
		thinking += part
		made, _ := m["tool_calls"].([]any)
		calls = append(calls, made...)
		sum = v
	}
	sum["message"] = map[string]any{"role": "assistant", "content": content, "thinking": thinking, "tool_calls": calls}
	sum["created_at"] = "T"
	got, err := json.Marshal(sum)
	if err != nil {
		t.Fatal(err)
	}
	whole = regexp.MustCompile(`"created_at":"[^"]*"`).ReplaceAllString(whole, `"created_at":"T"`)
	same(t, "the stream", string(got), whole)
}

// While its model is being loaded, a stream has lines without text that say how far that is. Whole answers have none.
func TestStreams_LoadingIsTold(t *testing.T) {
	b := httpapitest.Talker()
	b.Loading = []*routerv1.ModelLoading{{Model: "m", DoneBytes: 10, TotalBytes: 40, State: "no shard holds layers 2-4"}}
	s := serve(t, b)
	const progress = `"status":"loading: no shard holds layers 2-4","total":40,"completed":10}`
	for path, c := range map[string]struct{ body, want string }{
		"/api/chat":     {hi + `}`, `{"model":"m","created_at":"T","message":{"role":"assistant","content":""},"done":false,`},
		"/api/generate": {`{"model":"m","prompt":"hi"}`, `{"model":"m","created_at":"T","response":"","done":false,`},
	} {
		_, text := httpapitest.Call(t, "POST", s.URL+path, c.body)
		first, _, _ := strings.Cut(text, "\n")
		same(t, path, first, c.want+progress)
		_, text = httpapitest.Call(t, "POST", s.URL+path, strings.Replace(c.body, "{", `{"stream":false,`, 1))
		if strings.Contains(text, "loading") || !strings.Contains(text, `"done":true`) {
			t.Errorf("%s without a stream: %s", path, text)
		}
	}
}

func TestChat_ThinkFalseHasNoReasoning(t *testing.T) {
	b := httpapitest.Talker()
	_, text := httpapitest.Call(t, "POST", serve(t, b).URL+"/api/chat", hi+`,"stream":false,"think":false}`)
	if strings.Contains(text, "thinking") ||
		b.Last().GetVariablesJson() != `{"enable_thinking":false,"thinking":false}` {
		t.Errorf("%s with %s", text, b.Last().GetVariablesJson())
	}
}

func TestChat_BecomesARequest(t *testing.T) {
	b := &httpapitest.Backend{}
	status, text := httpapitest.Call(t, "POST", serve(t, b).URL+"/api/chat", `{"model":"m","stream":false,"keep_alive":"5m",
		"format":{"type":"object"},"think":"low","options":{"num_predict":7,"temperature":0.5,"top_k":3,"seed":9,"num_ctx":4096,
		"stop":["X",""],"repeat_penalty":1.5,"repeat_last_n":-1,"mirostat":2,"mirostat_tau":4},"messages":[
		{"role":"system","content":"S"},{"role":"user","content":"a"},{"role":"assistant","content":"","thinking":"hm",
		"tool_calls":[{"function":{"name":"f","arguments":{"x":1}}},{"id":"given","function":{"name":"g","arguments":{}}}]},
		{"role":"tool","tool_name":"g","content":"G"},{"role":"tool","content":"F"}]}`)
	if status != 200 {
		t.Fatal(text)
	}
	r := b.Last()
	var call struct {
		Calls []struct {
			ID string
		} `json:"tool_calls"`
	}
	if err := json.Unmarshal([]byte(r.GetMessages()[2].GetJson()), &call); err != nil || len(call.Calls) != 2 {
		t.Fatalf("%v in %s", err, r.GetMessages()[2].GetJson())
	}
	same(t, "a result", r.GetMessages()[3].GetJson(), `{"role":"tool","content":"G","tool_call_id":"given","name":"g"}`)
	same(t, "the other result", r.GetMessages()[4].GetJson(),
		`{"role":"tool","content":"F","tool_call_id":"`+call.Calls[0].ID+`","name":"f"}`)
	s := r.GetSampling()
	if r.GetMaxTokens() != 7 || s.GetTemperature() != 0.5 || s.GetTopK() != 3 || s.GetSeed() != 9 ||
		!reflect.DeepEqual(r.GetStop(), []string{"X"}) || s.GetRepetitionPenalty() != 1.5 ||
		s.GetAdvanced().GetMirostat() != 2 || s.GetAdvanced().GetMirostatTau() != 4 ||
		s.GetGrammar().GetSource() != `{"type":"object"}` {
		t.Errorf("the request is %v", r)
	}
	same(t, "the variables", r.GetVariablesJson(),
		`{"enable_thinking":true,"thinking":true,"reasoning_effort":"low"}`)
}

func TestGenerate_UsesTheTemplateUnlessRaw(t *testing.T) {
	b := &httpapitest.Backend{Pieces: []string{"a"}, Rest: "!", Length: true}
	s := serve(t, b)
	_, text := httpapitest.Call(t, "POST", s.URL+"/api/generate", `{"model":"m","prompt":"p","system":"S","stream":false}`)
	same(t, "the answer", text, `{"model":"m","created_at":"T","response":"a!","done":true,"done_reason":"length",
		"eval_count":1,`+counts+`}`)
	if m := b.Last().GetMessages(); len(m) != 2 || m[0].GetContent() != "S" || m[1].GetContent() != "p" {
		t.Errorf("the messages are %v", m)
	}
	if _, text := httpapitest.Call(t, "POST", s.URL+"/api/generate", `{"prompt":"p","raw":true}`); strings.Count(text, "\n") != 3 {
		t.Errorf("the stream is %s", text)
	}
	httpapitest.Call(t, "POST", s.URL+"/api/generate", `{"prompt":"p","suffix":"q"}`)
	plain := &httpapitest.Backend{Plain: true}
	httpapitest.Call(t, "POST", serve(t, plain).URL+"/api/generate", `{"prompt":"p"}`)
	got := append(b.Generations(), plain.Generations()...)
	if len(got) != 3 || got[0].GetText() != "p" || got[0].Suffix != nil || got[1].GetSuffix() != "q" ||
		got[2].GetText() != "p" {
		t.Errorf("the generations are %v", got)
	}
}

func TestModels_ListShowAndPull(t *testing.T) {
	s := serve(t, &httpapitest.Backend{Format: &tokenizerv1.ChatFormat{Calls: "hermes"}})
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/api/tags", "", `{"models":[{"name":"m","model":"m","size":0,"digest":"1","details":{"parent_model":"",
			"format":"","family":"llama","families":["llama"],"parameter_size":"","quantization_level":""}}]}`},
		{"GET", "/api/ps", "", `{"models":[{"name":"m","model":"m","size":0,"digest":"1","size_vram":0,"context_length":60,
			"details":{"parent_model":"","format":"","family":"llama","families":["llama"],"parameter_size":"",
			"quantization_level":""}}]}`},
		{"POST", "/api/show", `{"model":"m"}`, `{"modelfile":"","parameters":"","template":"","capabilities":["completion",
			"tools"],"details":{"parent_model":"","format":"","family":"llama","families":["llama"],"parameter_size":"",
			"quantization_level":""},"model_info":{"general.architecture":"llama","llama.block_count":2,
			"llama.context_length":64,"llama.vocab_size":99}}`},
		{"POST", "/api/embed", `{"model":"m","input":["ab","c"]}`, `{"model":"m","embeddings":[[2,0],[1,1]],
			"prompt_eval_count":3}`},
		{"POST", "/api/embed", `{"model":"m","input":"ab","truncate":true,"keep_alive":0}`, `{"model":"m","embeddings":[[2,0]],
			"prompt_eval_count":2}`},
		{"POST", "/api/embeddings", `{"model":"m","prompt":"ab"}`, `{"embedding":[2,0]}`},
		{"POST", "/api/pull", `{"model":"m:latest"}`, `{"status":"success"}`},
		{"POST", "/api/pull", `{"name":"m","stream":false}`, `{"status":"success"}`},
		{"POST", "/api/chat", `{"model":"m","messages":[]}`, `{"model":"m","created_at":"T","message":{"role":"assistant",
			"content":""},"done":true,"done_reason":"load"}`},
		{"POST", "/api/generate", `{"model":"m"}`, `{"model":"m","created_at":"T","response":"","done":true,
			"done_reason":"load"}`},
	} {
		_, text := httpapitest.Call(t, c.method, s.URL+c.path, c.body)
		same(t, c.path, text, c.want)
	}
	if _, text := httpapitest.Call(t, "GET", s.URL+"/api/version", ""); !strings.Contains(text, `"version":"0.`) {
		t.Errorf("the version is %s", text)
	}
}

// TestModels_Adapters names a model with one of its adapters wherever a model is named.
func TestModels_Adapters(t *testing.T) {
	b := &httpapitest.Backend{Pieces: []string{"x"}, Adapters: []*routerv1.Adapter{{Name: "sql", Digest: "sha256:2"}}}
	s := serve(t, b)
	_, text := httpapitest.Call(t, "GET", s.URL+"/api/tags", "")
	const details = `"family":"llama","families":["llama"],"format":"","parameter_size":"","quantization_level":""`
	same(t, "the list", text, `{"models":[
		{"name":"m","model":"m","size":0,"digest":"1","details":{"parent_model":"",`+details+`}},
		{"name":"m:sql","model":"m:sql","size":0,"digest":"2","details":{"parent_model":"m",`+details+`}}]}`)
	for path, body := range map[string]string{
		"/api/generate": `{"model":"m:sql","prompt":"x","stream":false}`, "/api/show": `{"model":"m:sql"}`,
		"/api/pull": `{"model":"m:sql"}`,
	} {
		if status, text := httpapitest.Call(t, "POST", s.URL+path, body); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if last := b.Last(); last.GetModel() != "m:sql" {
		t.Errorf("the backend was asked for %q", last.GetModel())
	}
}

func TestErrors_AreTexts(t *testing.T) {
	full := fault.New(fault.Unavailable, "full").After(time.Second)
	for _, c := range []struct {
		path, body string
		fail       error
		status     int
		want       string
	}{
		{"/api/chat", hi + `}`, full, 503, `{"error":"full"}`},
		{"/api/chat", hi + `}`, fault.Field("sampling.top_p", "bad"), 400, `{"error":"options.top_p: bad"}`},
		{"/api/chat", hi + `}`, fault.Field("sampling.grammar.source", "bad"), 400, `{"error":"format: bad"}`},
		{"/api/chat", hi + `}`, fault.Field("stop[3]", "bad"), 400, `{"error":"options.stop[3]: bad"}`},
		{"/api/chat", hi + `}`, fault.Field("max_tokens", "bad"), 400, `{"error":"options.num_predict: bad"}`},
		{"/api/chat", `{`, nil, 400, `body: read JSON at byte`},
		{"/api/chat", `{"messages":[{"content":"x"}]}`, nil, 400, `messages[0].role: is missing`},
		{"/api/chat", `{"messages":[{"role":"user","images":["x"]}]}`, nil, 400, `messages[0].images: are not supported`},
		{"/api/chat", `{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]}`, nil, 400,
			`messages[0].tool_calls[0].function.arguments: want an object`},
		{"/api/chat", hi + `,"options":{"tfs_z":1}}`, nil, 400, `options.tfs_z: is not supported`},
		{"/api/chat", hi + `,"options":{"top_k":"x"}}`, nil, 400, `options.top_k: want a whole number`},
		{"/api/chat", hi + `,"options":{"num_predict":99999999}}`, nil, 400, `options.num_predict: 99999999 is more than`},
		{"/api/chat", hi + `,"options":[]}`, nil, 400, `options: want an object`},
		{"/api/chat", hi + `,"format":"xml"}`, nil, 400, `format: want `},
		{"/api/chat", hi + `,"think":7}`, nil, 400, `think: want `},
		{"/api/chat", hi + `,"tools":[{"type":"x"}]}`, nil, 400, `tools[0].type: `},
		{"/api/chat", `{"model":"other","messages":[]}`, nil, 404, `not found`},
		{"/api/generate", `{"model":"other","prompt":"x"}`, nil, 404, `model \"other\" not found`},
		{"/api/generate", `{"prompt":"x","context":[1]}`, nil, 400, `context: is not supported`},
		{"/api/generate", `{"prompt":"x","template":"t"}`, nil, 400, `template: is not supported`},
		{"/api/show", `{"model":"other"}`, nil, 404, `not found`},
		{"/api/pull", `{"model":"other"}`, nil, 404, `this API loads no models`},
		{"/api/embed", `{"model":"m"}`, nil, 400, `input: is missing`},
		{"/api/embed", `{"input":7}`, nil, 400, `input: want a string or a list of strings`},
		{"/api/embed", `{"input":"x","dimensions":3}`, nil, 400, `dimensions: is not supported`},
		{"/api/embed", `{"input":"x"}`, fault.Field("inputs[0]", "bad"), 400, `input[0]: bad`},
		{"/api/pull", `{}`, nil, 400, `model: is missing`},
	} {
		status, text := httpapitest.Call(t, "POST", serve(t, &httpapitest.Backend{Fail: c.fail}).URL+c.path, c.body)
		if status != c.status || !strings.Contains(text, c.want) || !strings.HasPrefix(text, `{"error":"`) {
			t.Errorf("%s %s: %d %s, want %d and %s", c.path, c.body, status, text, c.status, c.want)
		}
	}
}

func TestStream_InterruptedAnswerNeverLooksFinished(t *testing.T) {
	for path, body := range map[string]string{"/api/chat": hi + `}`, "/api/generate": `{"prompt":"x"}`} {
		s := serve(t, &httpapitest.Backend{Pieces: []string{"a", "b"}, FailAt: 1,
			Fail: fault.New(fault.Unavailable, "lost")})
		_, text := httpapitest.Call(t, "POST", s.URL+path, body)
		if !strings.HasSuffix(text, "{\"error\":\"lost\"}\n") || strings.Contains(text, `"done":true`) {
			t.Errorf("%s: a cut stream is\n%s", path, text)
		}
	}
}

func TestStream_DisconnectedReaderCancelsTheChat(t *testing.T) {
	httpapitest.CancelsChat(t, routes, "/api/chat", hi+`}`)
}

func FuzzRequests(f *testing.F) {
	for i, body := range []string{hi + tools + `,"options":{"top_k":1,"mirostat":1},"format":"json","think":true}`,
		`{"prompt":"x","system":"S","raw":false,"stream":false}`, `{"name":"m","stream":false}`, `{"model":"m"}`} {
		f.Add(uint8(i), body)
	}
	h := httpapi.Mux(routes(&httpapitest.Backend{Pieces: []string{"a"}}))
	paths := []string{"/api/chat", "/api/generate", "/api/pull", "/api/show", "/api/embed", "/api/embeddings"}
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		path := paths[int(which)%len(paths)]
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
		if w.Code >= 500 {
			t.Errorf("%s answers %d %s to %q", path, w.Code, w.Body, body)
		}
	})
}
