package anthropic_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/anthropic"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func routes(b *httpapitest.Backend) httpapi.API { return anthropic.Routes(b, anthropic.Options{}) }

func serve(t *testing.T, b *httpapitest.Backend) *httptest.Server {
	t.Helper()
	return httpapitest.Serve(t, routes(b))
}

func post(t *testing.T, url, body string) (int, string) {
	t.Helper()
	return httpapitest.Call(t, http.MethodPost, url, body)
}

// sse is one event of a stream.
type sse struct{ name, data string }

func readEvents(t *testing.T, text string) (out []sse) {
	t.Helper()
	for _, e := range strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(e, "\n")
		name, named := strings.CutPrefix(name, "event: ")
		data, has := strings.CutPrefix(data, "data: ")
		if !ok || !named || !has {
			t.Fatalf("not an event: %q in\n%s", e, text)
		}
		out = append(out, sse{name, data})
	}
	return out
}

const weather = `,"tools":[{"name":"weather","description":"d","input_schema":{"type":"object",` +
	`"properties":{"city":{"type":"string"}}}}]`

const body = `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]`

func TestMessages_Whole(t *testing.T) {
	s := serve(t, httpapitest.Talker())
	_, text := post(t, s.URL+"/v1/messages", body+weather+`,"thinking":{"type":"enabled","budget_tokens":5}}`)
	var got struct {
		Content []struct {
			ID        string
			Signature string
		}
	}
	if err := json.Unmarshal(
		[]byte(text),
		&got,
	); err != nil || len(got.Content) != 3 ||
		got.Content[0].Signature == "" {
		t.Fatalf("%v in %s", err, text)
	}
	httpapitest.SameJSON(t, "the answer", text, `{"id":"msg_r","type":"message","role":"assistant","model":"m","content":[
		{"type":"thinking","thinking":"hmm","signature":"`+got.Content[0].Signature+`"},{"type":"text","text":"I look."},
		{"type":"tool_use","id":"`+got.Content[2].ID+`","name":"weather","input":{"city":"Rom"}}],
		"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":3,"cache_read_input_tokens":2,
		"cache_creation_input_tokens":0,"output_tokens":8}}`)
	if !strings.HasPrefix(got.Content[2].ID, "toolu_") {
		t.Errorf("the call has the id %q", got.Content[2].ID)
	}
}

func TestMessages_StreamAddsUpToTheWholeAnswer(t *testing.T) {
	s := serve(t, httpapitest.Talker())
	more := weather + `,"thinking":{"type":"adaptive"}`
	_, whole := post(t, s.URL+"/v1/messages", body+more+`}`)
	_, text := post(t, s.URL+"/v1/messages", body+more+`,"stream":true}`)
	events := readEvents(t, text)
	type object = map[string]any
	var message object
	var blocks []any
	var open object
	var names []string
	input := ""
	for _, e := range events {
		var v object
		if err := json.Unmarshal([]byte(e.data), &v); err != nil || v["type"] != e.name {
			t.Fatalf("event %s has %s (%v)", e.name, e.data, err)
		}
		if len(names) == 0 || names[len(names)-1] != e.name {
			names = append(names, e.name)
		}
		switch e.name {
		case "message_start":
			message = v["message"].(object)
		case "content_block_start":
			open, input = v["content_block"].(object), ""
			if v["index"] != float64(len(blocks)) {
				t.Errorf("block %v begins after %d blocks", v["index"], len(blocks))
			}
		case "content_block_delta":
			for key, part := range v["delta"].(object) {
				switch key {
				case "text", "thinking", "signature":
					open[key] = open[key].(string) + part.(string)
				case "partial_json":
					input += part.(string)
				}
			}
		case "content_block_stop":
			if open["type"] == "tool_use" {
				var parsed any
				if err := json.Unmarshal([]byte(input), &parsed); err != nil {
					t.Fatalf("input %q: %v", input, err)
				}
				open["input"] = parsed
			}
			blocks = append(blocks, open)
		case "message_delta":
			for key, part := range v["delta"].(object) {
				message[key] = part
			}
			message["usage"] = v["usage"]
		}
	}
	message["content"] = blocks
	got, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	httpapitest.SameJSON(t, "the stream", string(got), whole)
	if want := "message_start ping content_block_start content_block_delta content_block_stop content_block_start " +
		"content_block_delta content_block_stop content_block_start content_block_delta content_block_stop " +
		"message_delta message_stop"; strings.Join(names, " ") != want {
		t.Errorf("the events are %v", names)
	}
}

func TestMessages_ReasonsToStop(t *testing.T) {
	for _, c := range []struct {
		name string
		b    *httpapitest.Backend
		more string
		want string
	}{
		{"end", &httpapitest.Backend{Pieces: []string{"a"}, Rest: "!"}, "",
			`"content":[{"type":"text","text":"a!"}],"stop_reason":"end_turn","stop_sequence":null`},
		{"limit", &httpapitest.Backend{Pieces: []string{"a"}, Length: true}, "",
			`"stop_reason":"max_tokens","stop_sequence":null`},
		{"stop string", &httpapitest.Backend{Pieces: []string{"a"}, Stop: "END"}, `,"stop_sequences":["END"]`,
			`"stop_reason":"stop_sequence","stop_sequence":"END"`},
		{"nothing", &httpapitest.Backend{}, "", `"content":[],"stop_reason":"end_turn"`},
		{"thoughts that nobody asked for", &httpapitest.Backend{Pieces: []string{"<think>hm</think>a"},
			Format: &tokenizerv1.ChatFormat{Reasoning: "think"}}, "", `"content":[{"type":"text","text":"a"}]`},
		{"a call that is cut off", &httpapitest.Backend{Length: true,
			Pieces: []string{"<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"ci"},
			Format: &tokenizerv1.ChatFormat{Calls: "hermes"}}, weather, `"input":{}}],"stop_reason":"max_tokens"`},
	} {
		status, text := post(t, serve(t, c.b).URL+"/v1/messages", body+c.more+`}`)
		if status != 200 || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s, want %s", c.name, status, text, c.want)
		}
	}
}

func TestMessages_BecomeAChat(t *testing.T) {
	b := &httpapitest.Backend{}
	s := serve(t, b)
	status, text := post(t, s.URL+"/v1/messages", `{"model":"m","max_tokens":64,"system":[{"type":"text","text":"S"},
		{"type":"text","text":"T","cache_control":{"type":"ephemeral"}}],"stop_sequences":["X"],"temperature":0.5,"top_k":4,
		"top_p":0.25,"tool_choice":{"type":"tool","name":"weather","disable_parallel_tool_use":true},
		"thinking":{"type":"enabled","budget_tokens":32},"output_config":{"effort":"low"},"metadata":{"user_id":"u"},
		"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"document","title":"D",
		"source":{"type":"text","media_type":"text/plain","data":"doc"}}]},
		{"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"redacted_thinking","data":"x"},
		{"type":"tool_use","id":"toolu_1","name":"weather","input":{"city":"Rom"}}]},
		{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"sun"}]},
		{"type":"text","text":"and?"}]},{"role":"assistant","content":"It"}]`+weather+`}`)
	if status != 200 {
		t.Fatal(text)
	}
	r := b.Last()
	var got []string
	for _, m := range r.GetMessages() {
		got = append(got, m.GetRole()+":"+m.GetContent())
	}
	want := []string{"system:S\nT", "user:a\nD\n\ndoc", "assistant:", "tool:sun", "user:and?", "assistant:It"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the messages are %q", got)
	}
	httpapitest.SameJSON(t, "the call", r.GetMessages()[2].GetJson(), `{"role":"assistant","content":null,"reasoning_content":"hm",
		"reasoning":"hm","thinking":"hm","tool_calls":[{"id":"1","type":"function",
		"function":{"name":"weather","arguments":"{\"city\":\"Rom\"}"}}]}`)
	httpapitest.SameJSON(t, "the result", r.GetMessages()[3].GetJson(),
		`{"role":"tool","content":"sun","tool_call_id":"1","name":"weather"}`)
	httpapitest.SameJSON(t, "the tools", r.GetToolsJson(), `[{"type":"function","function":{"name":"weather","description":"d",
		"parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]`)
	httpapitest.SameJSON(t, "the variables", r.GetVariablesJson(),
		`{"enable_thinking":true,"thinking":true,"reasoning_effort":"low"}`)
	if !r.GetNoGenerationPrompt() || !r.GetContinueFinalMessage() || r.GetMaxTokens() != 64 || r.GetStop()[0] != "X" ||
		r.GetSampling().
			GetTopK() !=
			4 || r.GetSampling().GetTopP() != 0.25 || r.GetSampling().GetTemperature() != 0.5 ||
		r.GetToolChoice().GetMode() != routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION ||
		r.GetToolChoice().GetFunction() != "weather" || r.ParallelToolCalls == nil || r.GetParallelToolCalls() {
		t.Errorf("the request is %v", r)
	}
}

func TestMessages_OutputFormatConstrains(t *testing.T) {
	for _, more := range []string{`"output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}`,
		`"output_format":{"type":"json_schema","schema":{"type":"object"}}`} {
		b := &httpapitest.Backend{}
		if status, text := post(t, serve(t, b).URL+"/v1/messages", body+","+more+`}`); status != 200 {
			t.Fatal(text)
		}
		if got := b.Last().GetSampling().GetGrammar().GetSource(); got != `{"type":"object"}` {
			t.Errorf("%s gives the grammar %q", more, got)
		}
	}
}

func TestCountTokens_CountsThePrompt(t *testing.T) {
	s := serve(t, &httpapitest.Backend{})
	if _, text := post(t, s.URL+"/v1/messages/count_tokens", `{"model":"m","system":"abc",
		"messages":[{"role":"user","content":"hi"}]}`); strings.TrimSpace(text) != `{"input_tokens":5}` {
		t.Errorf("the count is %s", text)
	}
	if status, text := post(t, s.URL+"/v1/messages/count_tokens", `{"model":"unknown",
		"messages":[{"role":"user","content":"hi"}]}`); status != 404 || !strings.Contains(text, "not_found_error") {
		t.Errorf("an unknown model: %d %s", status, text)
	}
}

func TestErrors_HaveAnthropicsShape(t *testing.T) {
	hi := `"messages":[{"role":"user","content":"hi"}]`
	for _, c := range []struct {
		name, body string
		fail       error
		status     int
		want       string
	}{
		{"full", body + `}`, fault.New(fault.Unavailable, "full").After(time.Second).Because("QUEUE_FULL"), 529,
			`{"type":"error","error":{"type":"overloaded_error","message":"full"}}`},
		{"quota", body + `,"stream":true}`, fault.New(fault.Exhausted, "x").Because("RATE_LIMIT_EXCEEDED"), 429,
			`"type":"rate_limit_error"`},
		{"bug", body + `}`, fault.New(fault.Internal, "x"), 500, `"type":"api_error"`},
		{"backend's field", body + `}`, fault.Field("sampling.top_p", "bad"), 400, `"message":"top_p: bad"`},
		{"backend's tools", body + `}`, fault.Field("tools_json[0]", "bad"), 400, `"message":"tools[0]: bad"`},
		{"long", body + `}`, fault.New(fault.OutOfRange, "prompt is too long"), 400, `"type":"invalid_request_error"`},
		{"syntax", `{`, nil, 400, `"message":"body: read JSON at byte 1`},
		{"tokens", `{` + hi + `}`, nil, 400, `max_tokens: is missing`},
		{"few tokens", `{"max_tokens":0,` + hi + `}`, nil, 400, `max_tokens: 0 is not within`},
		{"many tokens", `{"max_tokens":99999999999999999999,` + hi + `}`, nil, 400, `max_tokens: want a whole number`},
		{"messages", `{"max_tokens":1}`, nil, 400, `messages: want at least one`},
		{"role", `{"max_tokens":1,"messages":[{"role":"system","content":"x"}]}`, nil, 400, `messages[0].role: `},
		{"content", `{"max_tokens":1,"messages":[{"role":"user","content":7}]}`, nil, 400, `messages[0].content: `},
		{"no content", `{"max_tokens":1,"messages":[{"role":"user","content":null}]}`, nil, 400, `messages[0].content: `},
		{"image", `{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"image"}]}]}`, nil, 400,
			`messages[0].content[0].type: \"image\" is not supported`},
		{"result", `{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"q"}]}]}`, nil,
			400, `messages[0].content[0].tool_use_id: `},
		{"call at the end", `{"max_tokens":1,"messages":[{"role":"assistant","content":[
			{"type":"tool_use","id":"1","name":"n","input":{}}]}]}`, nil, 400, `messages[0].content: the results`},
		{"tool", body + `,"tools":[{"name":"x"}]}`, nil, 400, `tools[0].input_schema: is missing`},
		{"server tool", body + `,"tools":[{"name":"x","type":"web_search_20250305"}]}`, nil, 400, `tools[0].type: `},
		{"choice", body + `,"tool_choice":{"type":"tool","name":"z"}` + weather + `}`, nil, 400, `tool_choice.name: `},
		{"choice without tools", body + `,"tool_choice":{"type":"any"}}`, nil, 400, `tool_choice: requires tools`},
		{"budget", body + `,"thinking":{"type":"enabled","budget_tokens":9}}`, nil, 400,
			`thinking.budget_tokens: want at least 1 and less than max_tokens, got 9`},
		{"container", body + `,"container":"c"}`, nil, 400, `container: is not supported`},
		{"stop", body + `,"stop_sequences":[" "]}`, nil, 400, `stop_sequences[0]: `},
		{"format", body + `,"output_config":{"format":{"type":"xml"}}}`, nil, 400, `output_config.format.type: `},
	} {
		status, text := post(t, serve(t, &httpapitest.Backend{Fail: c.fail}).URL+"/v1/messages", c.body)
		if status != c.status || !strings.Contains(text, c.want) ||
			!strings.HasPrefix(text, `{"type":"error","error":{`) {
			t.Errorf("%s: %d %s, want %d and %s", c.name, status, text, c.status, c.want)
		}
	}
	resp, err := http.Get(serve(t, &httpapitest.Backend{}).URL + "/v1/messages")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(
		resp.Body,
	); resp.StatusCode != http.StatusMethodNotAllowed ||
		resp.Header.Get("Allow") != "POST" ||
		!strings.HasPrefix(string(text), `{"type":"error"`) {
		t.Errorf("GET: %d %s", resp.StatusCode, text)
	}
}

func TestStream_InterruptedAnswerNeverLooksFinished(t *testing.T) {
	s := serve(
		t,
		&httpapitest.Backend{Pieces: []string{"a", "b"}, FailAt: 1, Fail: fault.New(fault.Unavailable, "lost")},
	)
	_, text := post(t, s.URL+"/v1/messages", body+`,"stream":true}`)
	events := readEvents(t, text)
	if last := events[len(events)-1]; last.name != "error" || !strings.Contains(last.data, "overloaded_error") ||
		strings.Contains(text, "message_stop") {
		t.Errorf("the stream is\n%s", text)
	}
}

func TestStream_DisconnectedReaderCancelsTheChat(t *testing.T) {
	httpapitest.CancelsChat(t, routes, "/v1/messages", body+`,"stream":true}`)
}

func FuzzMessages(f *testing.F) {
	f.Add(body + weather + `,"tool_choice":{"type":"any"},"thinking":{"type":"enabled","budget_tokens":1}}`)
	f.Add(`{"max_tokens":1,"system":[{"type":"text","text":"x"}],"messages":[{"role":"assistant","content":[
		{"type":"tool_use","id":"1","name":"n","input":{}}]},{"role":"user","content":[{"type":"tool_result",
		"tool_use_id":"1","content":"x"}]}],"output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}}`)
	h := httpapi.Mux(routes(&httpapitest.Backend{Pieces: []string{"a"}}))
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/v1/messages", "/v1/messages/count_tokens"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
			if w.Code >= 500 || !json.Valid(w.Body.Bytes()) && w.Header().Get("Content-Type") == "application/json" {
				t.Errorf("%s answers %d %s to %q", path, w.Code, w.Body, body)
			}
		}
	})
}
