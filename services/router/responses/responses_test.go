package responses_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/openai"
	"github.com/lamina-mesh/lamina/services/router/responses"
)

func TestMain(m *testing.M) { leak.Main(m) }

func options() responses.Options {
	return responses.Options{Fail: openai.Fail(openai.Options{}), Error: openai.ErrorObject,
		Now: func() time.Time { return time.Unix(1000, 0) }}
}

func serve(t *testing.T, b *httpapitest.Backend, o responses.Options) *httptest.Server {
	t.Helper()
	return httpapitest.Serve(t, responses.Routes(b, o))
}

func call(t *testing.T, method, url, tenant, body string) (int, string) {
	t.Helper()
	if tenant == "" {
		return httpapitest.Call(t, method, url, body)
	}
	return httpapitest.Call(t, method, url, body, "Lamina-Tenant", tenant)
}

// masked replaces what is random: the ids of responses, of items and of calls.
func masked(text string) string {
	text = regexp.MustCompile(`(resp|msg|rs|fc|ws|mcp)_[0-9a-f]{32}`).ReplaceAllString(text, "${1}_X")
	return regexp.MustCompile(`"call_id":"\w{9}"`).ReplaceAllString(text, `"call_id":"C"`)
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	httpapitest.SameJSON(t, what, masked(got), masked(want))
}

const weather = `,"tools":[{"type":"function","name":"weather","description":"d","parameters":{"type":"object",` +
	`"properties":{"city":{"type":"string"}}}}]`

const created = `{"id":"resp_00000000000000000000000000000000","object":"response","created_at":1000,"model":"m",
	"error":null,"instructions":"I","previous_response_id":null,"max_output_tokens":null,"max_tool_calls":null,
	"temperature":1,"top_p":1,"top_logprobs":0,"presence_penalty":0,"frequency_penalty":0,"store":true,"background":false,
	"service_tier":"default","truncation":"disabled","tool_choice":"auto","parallel_tool_calls":true,
	"text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"metadata":{},"user":null,
	"safety_identifier":null,"prompt_cache_key":null,"tools":[{"type":"function","name":"weather","description":"d",
	"strict":null,"parameters":{"type":"object","properties":{"city":{"type":"string"}}}}],`

func TestResponses_Whole(t *testing.T) {
	s := serve(t, httpapitest.Talker(), options())
	_, text := call(t, "POST", s.URL+"/v1/responses", "", `{"model":"m","input":"hi","instructions":"I"`+weather+`}`)
	want := created + `"status":"completed","completed_at":1000,"incomplete_details":null,"output":[
		{"type":"reasoning","id":"rs_X_0","status":"completed","summary":[],"content":[{"type":"reasoning_text","text":"hmm"}]},
		{"type":"message","id":"msg_X_1","status":"completed","role":"assistant","content":[{"type":"output_text",
		"text":"I look.","annotations":[],"logprobs":[]}]},{"type":"function_call","id":"fc_X_2","status":"completed",
		"call_id":"C","name":"weather","arguments":"{\"city\": \"Rom\"}"}],
		"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":2},"output_tokens":8,
		"output_tokens_details":{"reasoning_tokens":2},"total_tokens":13}}`
	same(t, "the response", text, want)
	var got struct{ ID string }
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	_, stored := call(t, "GET", s.URL+"/v1/responses/"+got.ID, "", "")
	same(t, "the stored response", stored, text)
}

func TestResponses_StreamAddsUpToTheWholeResponse(t *testing.T) {
	s := serve(t, httpapitest.Talker(), options())
	body := `{"model":"m","input":"hi","instructions":"I"` + weather
	_, whole := call(t, "POST", s.URL+"/v1/responses", "", body+`}`)
	_, text := call(t, "POST", s.URL+"/v1/responses", "", body+`,"stream":true}`)
	all := strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n")
	if all[len(all)-1] != "data: [DONE]" {
		t.Fatalf("the stream ends with %q", all[len(all)-1])
	}
	var names []string
	items := map[float64]any{}
	sums := map[string]string{}
	var last map[string]any
	for i, e := range all[:len(all)-1] {
		head, data, _ := strings.Cut(e, "\n")
		var v map[string]any
		if err := json.Unmarshal([]byte(strings.TrimPrefix(data, "data: ")), &v); err != nil {
			t.Fatalf("%v in %s", err, e)
		}
		name := v["type"].(string)
		if head != "event: "+name || v["sequence_number"] != float64(i) {
			t.Errorf("event %d is %s", i, e)
		}
		if len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
		id, _ := v["item_id"].(string)
		switch {
		case strings.HasSuffix(name, ".delta"):
			sums[id] += v["delta"].(string)
		case name == "response.output_item.done":
			items[v["output_index"].(float64)] = v["item"]
		case strings.HasSuffix(name, "_text.done"):
			if v["text"] != sums[id] {
				t.Errorf("%s has %v, the deltas %q", name, v["text"], sums[id])
			}
		case name == "response.function_call_arguments.done":
			if v["arguments"] != sums[id] {
				t.Errorf("%s has %v, the deltas %q", name, v["arguments"], sums[id])
			}
		}
		last, _ = v["response"].(map[string]any)
	}
	for i, item := range last["output"].([]any) {
		if !reflect.DeepEqual(item, items[float64(i)]) {
			t.Errorf("item %d is %v in the end, %v before", i, item, items[float64(i)])
		}
	}
	got, err := json.Marshal(last)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the last event", string(got), whole)
	if want := "created in_progress output_item.added content_part.added reasoning_text.delta reasoning_text.done " +
		"content_part.done output_item.done output_item.added content_part.added output_text.delta output_text.done " +
		"content_part.done output_item.done output_item.added function_call_arguments.delta function_call_arguments.done " +
		"output_item.done completed"; strings.ReplaceAll(strings.Join(names, " "), "response.", "") != want {
		t.Errorf("the events are %v", names)
	}
}

// roles returns the messages of a request in short.
func roles(r *routerv1.ChatRequest) (out []string) {
	for _, m := range r.GetMessages() {
		out = append(out, m.GetRole()+":"+m.GetContent())
	}
	return out
}

func TestResponses_ItemsBecomeTurns(t *testing.T) {
	b := &httpapitest.Backend{}
	status, text := call(
		t,
		"POST",
		serve(t, b, options()).URL+"/v1/responses",
		"",
		`{"model":"m","instructions":"I","input":[
		{"role":"developer","content":"D"},{"role":"user","content":[{"type":"input_text","text":"a"}]},
		{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]},
		{"type":"message","role":"assistant","content":[{"type":"output_text","text":"look"}]},
		{"type":"function_call","call_id":"c1","name":"f","arguments":"{}"},
		{"type":"function_call","call_id":"c2","name":"g","arguments":"{}"},
		{"type":"function_call_output","call_id":"c2","output":"G"},
		{"type":"function_call_output","call_id":"c1","output":[{"type":"input_text","text":"F"}]},
		{"type":"message","role":"assistant","content":"one"},{"type":"message","role":"assistant","content":"two"}]}`,
	)
	if status != 200 {
		t.Fatal(text)
	}
	want := []string{"system:I\n\nD", "user:a", "assistant:look", "tool:G", "tool:F", "assistant:one", "assistant:two"}
	if got := roles(b.Last()); !reflect.DeepEqual(got, want) {
		t.Errorf("the messages are %q", got)
	}
	same(t, "the calls", b.Last().GetMessages()[2].GetJson(), `{"role":"assistant","content":"look",
		"reasoning_content":"hm","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}},
		{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]}`)
	same(t, "a result", b.Last().GetMessages()[3].GetJson(),
		`{"role":"tool","content":"G","tool_call_id":"c2","name":"g"}`)
}

// create returns the id of a new response.
func create(t *testing.T, s *httptest.Server, tenant, body string) string {
	t.Helper()
	status, text := call(t, "POST", s.URL+"/v1/responses", tenant, body)
	var got struct{ ID string }
	if err := json.Unmarshal([]byte(text), &got); err != nil || status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	return got.ID
}

func TestResponses_PreviousOnesAreContinued(t *testing.T) {
	b := httpapitest.Talker()
	s := serve(t, b, options())
	first := create(t, s, "", `{"model":"m","input":"hi","instructions":"I"`+weather+`}`)
	var whole struct {
		Output []struct {
			CallID string `json:"call_id"`
		}
	}
	_, text := call(t, "GET", s.URL+"/v1/responses/"+first, "", "")
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatal(err)
	}
	second := create(t, s, "", `{"model":"m","previous_response_id":"`+first+`","input":[{"type":"function_call_output",
		"call_id":"`+whole.Output[2].CallID+`","output":"sun"}]}`)
	if got := roles(b.Last()); !reflect.DeepEqual(got, []string{"user:hi", "assistant:I look.", "tool:sun"}) {
		t.Errorf("the messages are %q", got)
	}
	create(t, s, "", `{"model":"m","previous_response_id":"`+second+`","input":"and?"}`)
	if got := roles(b.Last()); len(got) != 5 || got[4] != "user:and?" {
		t.Errorf("the messages are %q", got)
	}
	if _, text := call(t, "GET", s.URL+"/v1/responses/"+first+"/input_items", "", ""); !strings.Contains(text,
		`{"content":[{"text":"hi","type":"input_text"}],"id":"item_`+first+`_0","role":"user","type":"message"}`) {
		t.Errorf("the input is %s", text)
	}
}

func TestResponses_InputItemsHaveIdsAndPages(t *testing.T) {
	s := serve(t, &httpapitest.Backend{}, options())
	id := create(t, s, "", `{"input":[{"role":"user","content":"one"},`+
		`{"role":"assistant","content":"two","id":"msg_own"},{"role":"user","content":"three"}]}`)
	type list struct {
		Data []struct {
			ID      string
			Content json.RawMessage
		}
		First string `json:"first_id"`
		Last  string `json:"last_id"`
		More  bool   `json:"has_more"`
	}
	own := "item_" + id
	for query, want := range map[string]string{
		"":                                       own + "_2 msg_own " + own + "_0 false",
		"?order=desc":                            own + "_2 msg_own " + own + "_0 false",
		"?order=asc":                             own + "_0 msg_own " + own + "_2 false",
		"?order=asc&limit=2":                     own + "_0 msg_own true",
		"?limit=1&after=msg_own":                 own + "_0 false",
		"?order=asc&after=" + own + "_2":         "false",
		"?order=asc&limit=1&after=" + own + "_0": "msg_own true",
	} {
		_, text := call(t, "GET", s.URL+"/v1/responses/"+id+"/input_items"+query, "", "")
		var got list
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%s: %s: %v", query, text, err)
		}
		shown := ""
		for _, item := range got.Data {
			shown += item.ID + " "
		}
		if shown += strconv.FormatBool(got.More); shown != want || len(got.Data) > 0 &&
			(got.First != got.Data[0].ID || got.Last != got.Data[len(got.Data)-1].ID) {
			t.Errorf("%q gives %s (%s to %s), want %s", query, shown, got.First, got.Last, want)
		}
	}
	for _, query := range []string{"?order=up", "?limit=0", "?limit=101", "?limit=x", "?after=nothing"} {
		if status, text := call(t, "GET", s.URL+"/v1/responses/"+id+"/input_items"+query, "", ""); status != 400 {
			t.Errorf("%s: %d %s", query, status, text)
		}
	}
}

func TestResponses_StoredOnesBelongToTheirTenant(t *testing.T) {
	s := serve(t, &httpapitest.Backend{}, options())
	id := create(t, s, "a", `{"input":"hi"}`)
	url := s.URL + "/v1/responses/" + id
	for _, c := range []struct {
		method, tenant string
		status         int
	}{
		{"GET", "b", 404}, {"GET", "", 404}, {"DELETE", "b", 404}, {"GET", "a", 200}, {"DELETE", "a", 200},
		{"GET", "a", 404}, {"DELETE", "a", 404},
	} {
		if status, text := call(t, c.method, url, c.tenant, ""); status != c.status {
			t.Errorf("%s of tenant %q: %d %s, want %d", c.method, c.tenant, status, text, c.status)
		}
	}
	status, text := call(t, "POST", s.URL+"/v1/responses", "b",
		`{"input":"x","previous_response_id":"`+create(t, s, "a", `{"input":"hi"}`)+`"}`)
	if status != 400 || !strings.Contains(text, `"param":"previous_response_id"`) {
		t.Errorf("to continue the response of another tenant: %d %s", status, text)
	}
	id = create(t, s, "", `{"input":"hi","store":false}`)
	if status, _ := call(t, "GET", s.URL+"/v1/responses/"+id, "", ""); status != 404 {
		t.Errorf("a response with store false is stored: %d", status)
	}
}

func TestStore_IsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	o := options()
	o.MaxResponses, o.MaxBytes, o.MaxAge = 3, 16<<10, time.Minute
	o.Now = func() time.Time { return now }
	s := serve(t, &httpapitest.Backend{}, o)
	has := func(tenant, id string) bool {
		status, _ := call(t, "GET", s.URL+"/v1/responses/"+id, tenant, "")
		return status == 200
	}
	a, b := create(t, s, "a", `{"input":"1"}`), create(t, s, "b", `{"input":"2"}`)
	c := create(t, s, "b", `{"input":"3"}`)
	if !has("a", a) { // now the most recently used one
		t.Fatal("a response is not stored")
	}
	d := create(t, s, "b", `{"input":"4"}`)
	if has("b", b) || !has("a", a) || !has("b", c) || !has("b", d) {
		t.Error("the least recently used response is not the one that was dropped")
	}
	now = now.Add(2 * time.Minute)
	if has("a", a) || has("b", d) {
		t.Error("responses outlive their age")
	}
	a = create(t, s, "a", `{"input":"1"}`)
	large := `{"input":"` + strings.Repeat("x", 1500) + `"}`
	first := create(t, s, "b", large)
	last := create(t, s, "b", large)
	if has("b", first) || !has("b", last) || !has("a", a) {
		t.Error("a tenant has more than half of the room")
	}
	if huge := create(t, s, "b", `{"input":"`+strings.Repeat("x", 9000)+`"}`); has("b", huge) || !has("a", a) {
		t.Error("a response larger than the room is stored")
	}
}

// TestStore_OneTenantDoesNotEvictTheOthers floods the store with small responses of one tenant.
func TestStore_OneTenantDoesNotEvictTheOthers(t *testing.T) {
	o := options()
	o.MaxResponses = 6
	s := serve(t, &httpapitest.Backend{}, o)
	quiet := create(t, s, "quiet", `{"input":"1"}`)
	var flood []string
	for range 12 {
		flood = append(flood, create(t, s, "flood", `{"input":"2"}`))
	}
	has := func(tenant, id string) bool {
		status, _ := call(t, "GET", s.URL+"/v1/responses/"+id, tenant, "")
		return status == 200
	}
	if !has("quiet", quiet) {
		t.Error("the responses of a tenant have evicted that of another one")
	}
	for i, id := range flood {
		if has("flood", id) != (i >= 9) {
			t.Errorf("response %d of 12 is stored: %v, want the last 3", i, i < 9)
		}
	}
}

func TestResponses_TruncatedOnesAreIncomplete(t *testing.T) {
	s := serve(t, &httpapitest.Backend{Pieces: []string{"a"}, Length: true}, options())
	_, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"x","max_output_tokens":1}`)
	if !strings.Contains(text, `"status":"incomplete"`) ||
		!strings.Contains(text, `"incomplete_details":{"reason":"max_output_tokens"}`) {
		t.Errorf("the response is %s", text)
	}
	if _, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"x","stream":true}`); !strings.Contains(text,
		"event: response.incomplete\n") {
		t.Errorf("the stream is %s", text)
	}
}

func TestResponses_ParametersReachTheBackend(t *testing.T) {
	b := &httpapitest.Backend{}
	status, text := call(t, "POST", serve(t, b, options()).URL+"/v1/responses", "", `{"model":"m","input":"x",
		"max_output_tokens":7,"temperature":0.5,"top_p":0.25,"truncation":"auto","parallel_tool_calls":false,
		"reasoning":{"effort":"low"},"metadata":{"a":"b"},"text":{"format":{"type":"json_schema","name":"n",
		"schema":{"type":"object"}}},"tool_choice":{"type":"allowed_tools","mode":"required","tools":[{"type":"function",
		"name":"weather"}]},"tools":[{"type":"function","name":"weather","strict":true},{"type":"function","name":"other"}]}`)
	if status != 200 {
		t.Fatal(text)
	}
	r := b.Last()
	if r.GetMaxTokens() != 7 || r.GetSampling().GetTemperature() != 0.5 || r.GetSampling().GetTopP() != 0.25 ||
		r.GetContextPolicy().GetMode() != routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE ||
		r.ParallelToolCalls == nil || r.GetParallelToolCalls() || r.GetVariablesJson() != `{"reasoning_effort":"low"}` ||
		r.GetSampling().GetGrammar().GetSource() != `{"type":"object"}` ||
		r.GetToolChoice().GetMode() != routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED {
		t.Errorf("the request is %v", r)
	}
	same(t, "the tools", r.GetToolsJson(), `[{"type":"function","function":{"name":"weather","strict":true}}]`)
}

func TestErrors_HaveOpenAIsShape(t *testing.T) {
	for _, c := range []struct {
		body   string
		fail   error
		status int
		want   string
	}{
		{`{"input":"x"}`, fault.New(fault.Unavailable, "x").Because("QUEUE_FULL"), 503, `"code":"queue_full"`},
		{`{"input":"x"}`, fault.Field("sampling.grammar.source", "bad"), 400, `"param":"text.format.schema"`},
		{`{"input":"x"}`, fault.New(fault.NotFound, "who"), 404, `"code":"model_not_found"`},
		{`{"input":"x","stream":true}`, fault.Field("messages", "bad"), 400, `"param":"input"`},
		{`{`, nil, 400, `"param":"body"`},
		{`{}`, nil, 400, `"param":"input"`},
		{`{"input":[]}`, nil, 400, `"param":"input"`},
		{`{"input":7}`, nil, 400, `"param":"input"`},
		{`{"input":[{"type":"message","role":"x","content":"y"}]}`, nil, 400, `"param":"input[0].role"`},
		{`{"input":[{"role":"user","content":[{"type":"input_image"}]}]}`, nil, 400, `"param":"input[0].content[0].type"`},
		{`{"input":[{"type":"function_call_output","call_id":"c","output":"y"}]}`, nil, 400, `"param":"input[0].call_id"`},
		{`{"input":[{"type":"function_call","call_id":"c","name":"n","arguments":"7"}]}`, nil, 400,
			`"param":"input[0].arguments"`},
		{`{"input":[{"type":"item_reference","id":"i"}]}`, nil, 400, `"param":"input[0].type"`},
		{`{"input":"x","background":true}`, nil, 400, `"param":"background"`},
		{`{"input":"x","conversation":"c"}`, nil, 400, `"param":"conversation"`},
		{`{"input":"x","tools":[{"type":"web_search"}]}`, nil, 400, `"param":"tools[0].type"`},
		{`{"input":"x","tool_choice":"required"}`, nil, 400, `"param":"tool_choice"`},
		{`{"input":"x","tool_choice":{"type":"function","name":"z"}}`, nil, 400, `"param":"tool_choice.name"`},
		{`{"input":"x","text":{"format":{"type":"json_schema"}}}`, nil, 400, `"param":"text.format.schema"`},
		{`{"input":"x","truncation":"some"}`, nil, 400, `"param":"truncation"`},
		{`{"input":"x","max_output_tokens":0}`, nil, 400, `"param":"max_output_tokens"`},
		{`{"input":"x","previous_response_id":"resp_1"}`, nil, 400, `"param":"previous_response_id"`},
	} {
		status, text := call(t, "POST", serve(t, &httpapitest.Backend{Fail: c.fail}, options()).URL+"/v1/responses", "",
			c.body)
		if status != c.status || !strings.Contains(text, c.want) || !strings.HasPrefix(text, `{"error":{"message":`) {
			t.Errorf("%s: %d %s, want %d and %s", c.body, status, text, c.status, c.want)
		}
	}
}

func TestStream_InterruptedResponseNeverLooksFinished(t *testing.T) {
	s := serve(
		t,
		&httpapitest.Backend{Pieces: []string{"a", "b"}, FailAt: 1, Fail: fault.New(fault.Unavailable, "lost")},
		options(),
	)
	_, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"x","stream":true}`)
	if !strings.Contains(text, "event: response.failed\n") || !strings.Contains(text, `"message":"lost"`) ||
		strings.Contains(text, "[DONE]") || strings.Contains(text, "completed\n") {
		t.Errorf("a cut stream is\n%s", text)
	}
}

func TestStream_DisconnectedReaderCancelsTheChat(t *testing.T) {
	httpapitest.CancelsChat(t, func(b *httpapitest.Backend) httpapi.API { return responses.Routes(b, options()) },
		"/v1/responses", `{"input":"x","stream":true}`)
}

func FuzzResponses(f *testing.F) {
	f.Add(
		`{"input":"x","instructions":"I"` + weather + `,"tool_choice":"required","text":{"format":{"type":"json_object"}}}`,
	)
	f.Add(`{"input":[{"role":"user","content":"x"},{"type":"function_call","call_id":"c","name":"n","arguments":"{}"},
		{"type":"function_call_output","call_id":"c","output":"y"},{"type":"reasoning","summary":[]}],"stream":true}`)
	o := options()
	o.MaxResponses = 4
	h := httpapi.Mux(responses.Routes(&httpapitest.Backend{Pieces: []string{"a"}}, o))
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/responses", strings.NewReader(body)))
		if w.Code >= 500 {
			t.Errorf("answers %d %s to %q", w.Code, w.Body, body)
		}
	})
}
