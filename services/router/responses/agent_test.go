package responses_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/responses"
)

// library finds one page, and has a server with one tool, which fails.
type library struct{}

func (library) Do(_ context.Context, query string, _ int) ([]webtools.Result, string, error) {
	return []webtools.Result{{URL: "http://a.test/", Title: "A", Text: query}}, "", nil
}

func (library) Tools(context.Context, string) ([]toolloop.Definition, error) {
	return []toolloop.Definition{{Name: "find", Parameters: json.RawMessage(`{"type":"object"}`)}}, nil
}

func (library) Call(context.Context, string, string, json.RawMessage) (string, bool, error) {
	return "broken", true, nil
}

func withTools() responses.Options {
	o := options()
	o.Tools = agent.New(agent.Config{Search: library{}, Servers: library{}})
	return o
}

// searcher is a model that searches, calls a server's tool, and answers with a citation.
func searcher() *httpapitest.Backend {
	return &httpapitest.Backend{
		Turns: [][]string{
			{"Wait", ".", "<tool_call>\n{\"name\": \"web_search\", \"arguments\": {\"query\": \"cats\"}}\n</tool_call>"},
			{"<tool_call>\n{\"name\": \"lib__find\", \"arguments\": {}}\n</tool_call>"},
			{"Yes ", "[1]."},
		},
		Format: &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"},
	}
}

const hosted = `,"tools":[{"type":"web_search"},{"type":"mcp","server_label":"lib"}]`

// output returns the output of a response.
func output(t *testing.T, text string) string {
	t.Helper()
	var r struct{ Output json.RawMessage }
	if err := json.Unmarshal([]byte(text), &r); err != nil || r.Output == nil {
		t.Fatalf("%s: %v", text, err)
	}
	return string(r.Output)
}

func TestResponses_RunsToolsOfTheServer(t *testing.T) {
	b := searcher()
	s := serve(t, b, withTools())
	status, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"hi"`+hosted+`}`)
	if status != 200 {
		t.Fatalf("got %d %s", status, text)
	}
	const want = `[{"type":"message","id":"msg_X_0","status":"completed","role":"assistant","content":[{"type":"output_text",
		"text":"Wait.","annotations":[],"logprobs":[]}]},
		{"type":"web_search_call","id":"ws_X_1","status":"completed","action":{"type":"search","query":"cats",
		"sources":[{"type":"url","url":"http://a.test/"}]}},
		{"type":"mcp_call","id":"mcp_X_2","status":"failed","server_label":"lib","name":"find","arguments":"{}","output":null,
		"error":"broken"},
		{"type":"message","id":"msg_X_3","status":"completed","role":"assistant","content":[{"type":"output_text",
		"text":"Yes [1].","annotations":[{"type":"url_citation","start_index":4,"end_index":7,"url":"http://a.test/",
		"title":"A"}],"logprobs":[]}]}]`
	same(t, "the output", output(t, text), want)
	var got struct {
		ID    string
		Tools []map[string]any
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Tools) != 2 || len(got.Tools[0]) != 1 {
		t.Errorf("the tools are %v, %v", got.Tools, err)
	}
	// A response that continues this one sees what the tools returned.
	if status, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"more","previous_response_id":"`+got.ID+
		`"}`); status != 200 {
		t.Fatalf("got %d %s", status, text)
	}
	var roles []string
	for _, m := range b.Last().GetMessages() {
		roles = append(roles, m.GetRole())
	}
	if got := strings.Join(roles, " "); got != "user assistant tool assistant tool assistant user" {
		t.Errorf("the next request has the messages %s", got)
	}
	// A client that keeps the conversation itself sends the items back.
	items, err := json.Marshal([]any{json.RawMessage(`{"role":"user","content":"hi"}`),
		json.RawMessage(`{"type":"web_search_call","id":"x","status":"completed"}`), json.RawMessage(`{"type":"mcp_call"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if status, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":`+string(items)+`}`); status != 200 {
		t.Errorf("got %d %s", status, text)
	}
}

func TestResponses_StreamsToolsOfTheServer(t *testing.T) {
	s := serve(t, searcher(), withTools())
	_, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"hi","stream":true`+hosted+`}`)
	var names []string
	whole := ""
	for _, line := range strings.Split(text, "\n") {
		if name, ok := strings.CutPrefix(line, "event: response."); ok && !strings.HasSuffix(name, ".delta") {
			names = append(names, name)
		}
		if data, ok := strings.CutPrefix(line, `data: `); ok && strings.Contains(data, `"type":"response.completed"`) {
			var e struct{ Response json.RawMessage }
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			whole = string(e.Response)
		}
	}
	const message = "output_item.added content_part.added output_text.done content_part.done output_item.done "
	want := "created in_progress " + message + "output_item.added web_search_call.completed output_item.done " +
		"output_item.added mcp_call.failed output_item.done output_item.added content_part.added " +
		"output_text.annotation.added output_text.done content_part.done output_item.done completed"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got the events\n%s\nwant\n%s", got, want)
	}
	_, other := call(t, "POST", serve(t, searcher(), withTools()).URL+"/v1/responses", "", `{"input":"hi"`+hosted+`}`)
	same(t, "the streamed output", output(t, whole), output(t, other))
}

func TestResponses_ToolsOfTheServerHaveLimitsAndChoices(t *testing.T) {
	b := searcher()
	s := serve(t, b, withTools())
	call(t, "POST", s.URL+"/v1/responses", "", `{"input":"hi","max_tool_calls":1,"tool_choice":{"type":"web_search"}`+hosted+`}`)
	all := b.Chats()
	if len(all) != 2 || all[0].GetToolChoice().GetFunction() != "web_search" || all[1].GetToolsJson() != "" {
		t.Errorf("the requests are %v", all)
	}
	b = searcher()
	s = serve(t, b, withTools())
	call(t, "POST", s.URL+"/v1/responses", "", `{"input":"hi","tool_choice":"none"`+hosted+`}`)
	if all := b.Chats(); len(all) != 1 || all[0].GetToolsJson() != "" {
		t.Errorf("without tools the requests are %v", all)
	}
	for more, want := range map[string]string{
		hosted + `,"max_tool_calls":0`:                                           "max_tool_calls",
		`,"tools":[{"type":"mcp","server_label":"lib","server_url":"http://x"}]`: "tools[0].server_url",
		`,"tools":[{"type":"read_page"}]`:                                        "tools[0].type",
		`,"tools":[{"type":"code_interpreter"}]`:                                 "tools[0].type",
		hosted + `,"tool_choice":{"type":"read_page"}`:                           "tool_choice.type",
		hosted + `,"tool_choice":{"type":"allowed_tools","mode":"auto"}`:         "tool_choice.type",
	} {
		status, text := call(t, "POST", s.URL+"/v1/responses", "", `{"input":"hi"`+more+`}`)
		if status != 400 || !strings.Contains(text, `"param":"`+want+`"`) {
			t.Errorf("%s: got %d %s, want %s", more, status, text, want)
		}
	}
}
