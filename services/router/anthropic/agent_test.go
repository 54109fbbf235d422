package anthropic_test

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/anthropic"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
)

// library finds one page, can read it, and has a server with one tool, which fails.
type library struct{}

func (library) Do(_ context.Context, query string, _ int) ([]webtools.Result, string, error) {
	return []webtools.Result{{URL: "http://a.test/", Title: "A", Text: query}}, "", nil
}

func (library) Read(_ context.Context, address string) (*webtools.Page, error) {
	return &webtools.Page{URL: address, Title: "A", Text: "all of it"}, nil
}

func (library) Tools(context.Context, string) ([]toolloop.Definition, error) {
	return []toolloop.Definition{{Name: "find", Parameters: json.RawMessage(`{"type":"object"}`)}}, nil
}

func (library) Call(context.Context, string, string, json.RawMessage) (string, bool, error) {
	return "broken", true, nil
}

// searcher is a model that uses each tool of the server, and then cites what it has found.
func searcher() *httpapitest.Backend {
	call := func(name, arguments string) string {
		return "<tool_call>\n{\"name\": \"" + name + "\", \"arguments\": " + arguments + "}\n</tool_call>"
	}
	return &httpapitest.Backend{
		Turns: [][]string{
			{"Wait", ".", call("web_search", `{"query": "cats"}`)},
			{call("read_page", `{"url": "http://a.test/"}`)},
			{call("lib__find", `{}`)},
			{"Yes ", "[1]."},
		},
		Format: &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"},
	}
}

func everything() anthropic.Options {
	return anthropic.Options{Tools: agent.New(agent.Config{Search: library{}, Pages: library{}, Servers: library{}})}
}

const hosted = body + `,"tools":[{"type":"web_search_20250305","name":"web_search","max_uses":2},` +
	`{"type":"web_fetch_20250910","name":"web_fetch","max_uses":2},` +
	`{"type":"mcp","server_label":"lib","max_uses":2}`

// shape is a block without the ids and texts that depend on the loop.
type shape struct {
	Type, ID, Name, Text string
	Server               string `json:"server_name"`
	ToolUseID            string `json:"tool_use_id"`
	Input                json.RawMessage
	Content              json.RawMessage
	IsError              bool `json:"is_error"`
	Citations            []struct{ Type, URL string }
}

// check checks the blocks of an answer of searcher.
func check(t *testing.T, blocks []shape) {
	t.Helper()
	var kinds []string
	for i, b := range blocks {
		kinds = append(kinds, b.Type)
		if strings.HasSuffix(b.Type, "_result") && (i == 0 || blocks[i-1].ID == "" || b.ToolUseID != blocks[i-1].ID) {
			t.Errorf("block %d is the result of %q, not of the call before it", i, b.ToolUseID)
		}
	}
	if want := []string{"text", "server_tool_use", "web_search_tool_result", "server_tool_use", "web_fetch_tool_result",
		"mcp_tool_use", "mcp_tool_result", "text"}; !reflect.DeepEqual(kinds, want) {
		t.Fatalf("the blocks are %q", kinds)
	}
	if blocks[0].Text != "Wait." || len(blocks[0].Citations) != 0 || blocks[7].Text != "Yes [1]." ||
		len(blocks[7].Citations) != 1 || blocks[7].Citations[0].URL != "http://a.test/" {
		t.Errorf("the texts are %+v and %+v", blocks[0], blocks[7])
	}
	httpapitest.SameJSON(t, "the search", string(blocks[1].Input), `{"query":"cats"}`)
	httpapitest.SameJSON(t, "what it found", string(blocks[2].Content), `[{"type":"web_search_result",
		"url":"http://a.test/","title":"A","encrypted_content":"","page_age":null}]`)
	if blocks[1].Name != "web_search" || blocks[3].Name != "web_fetch" ||
		!strings.Contains(string(blocks[4].Content), `"type":"web_fetch_result"`) {
		t.Errorf("the page is %+v, read by %+v", blocks[4], blocks[3])
	}
	if blocks[5].Name != "find" || blocks[5].Server != "lib" || !blocks[6].IsError ||
		!strings.Contains(string(blocks[6].Content), "broken") {
		t.Errorf("the tool of the server is %+v, and gave %+v", blocks[5], blocks[6])
	}
}

func TestMessages_RunsToolsOfTheServer(t *testing.T) {
	b := searcher()
	s := httpapitest.Serve(t, anthropic.Routes(b, everything()))
	status, text := post(t, s.URL+"/v1/messages", hosted+`]}`)
	var got struct {
		Content []shape
		Stop    string `json:"stop_reason"`
		Usage   struct {
			Server struct {
				Searches int `json:"web_search_requests"`
				Fetches  int `json:"web_fetch_requests"`
			} `json:"server_tool_use"`
		}
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, text, err)
	}
	check(t, got.Content)
	if got.Stop != "end_turn" || got.Usage.Server.Searches != 1 || got.Usage.Server.Fetches != 1 {
		t.Errorf("%s", text)
	}

	// A client sends the blocks back with its next message.
	var whole struct{ Content json.RawMessage }
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatal(err)
	}
	next := `{"max_tokens":9,"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":` +
		string(whole.Content) + `},{"role":"user","content":"go on"}]}`
	if status, text := post(t, s.URL+"/v1/messages", next); status != http.StatusOK {
		t.Fatalf("the next message: %d %s", status, text)
	}
	if m := b.Last().GetMessages(); len(m) != 3 || m[1].GetContent() != "Wait.\nYes [1]." {
		t.Errorf("the next chat has %v", m)
	}
}

func TestMessages_StreamsToolsOfTheServer(t *testing.T) {
	s := httpapitest.Serve(t, anthropic.Routes(searcher(), everything()))
	_, text := post(t, s.URL+"/v1/messages", hosted+`],"stream":true}`)
	var blocks []shape
	ended := 0
	for _, e := range readEvents(t, text) {
		var v struct {
			Index int
			Block *shape `json:"content_block"`
			Delta struct {
				Text     string
				JSON     string `json:"partial_json"`
				Citation *struct{ Type, URL string }
			}
		}
		if err := json.Unmarshal([]byte(e.data), &v); err != nil {
			t.Fatalf("%v in %s", err, e.data)
		}
		switch e.name {
		case "content_block_start":
			blocks = append(blocks, *v.Block)
			blocks[len(blocks)-1].Input = nil // it comes as deltas
		case "content_block_delta":
			b := &blocks[v.Index]
			b.Text += v.Delta.Text
			b.Input = append(b.Input, v.Delta.JSON...)
			if v.Delta.Citation != nil {
				b.Citations = append(b.Citations, *v.Delta.Citation)
			}
		case "content_block_stop":
			if ended++; v.Index != len(blocks)-1 {
				t.Errorf("block %d ends after %d have begun", v.Index, len(blocks))
			}
		}
	}
	check(t, blocks)
	if ended != len(blocks) || !strings.Contains(text, "event: message_stop") {
		t.Errorf("%d blocks have ended of %d", ended, len(blocks))
	}
}

func TestMessages_ToolsOfTheServerHaveLimits(t *testing.T) {
	b := searcher()
	s := httpapitest.Serve(t, anthropic.Routes(b, everything()))
	search := body + `,"tools":[{"type":"web_search_20250305","name":"web_search"`
	chosen := search + `}],"tool_choice":{"type":"tool","name":"web_search"}}`
	if status, text := post(t, s.URL+"/v1/messages", chosen); status != http.StatusOK ||
		b.Chats()[0].GetToolChoice().GetFunction() != "web_search" {
		t.Errorf("a chosen tool: %d %s", status, text)
	}
	for _, c := range [][2]string{{search + `,"max_uses":0}]}`, "tools[0].max_uses"},
		{search + `,"allowed_domains":["a.test"]}]}`, "tools[0].allowed_domains"},
		{search + `},{"name":"web_search","input_schema":{"type":"object"}}]}`, "tools[0]"},
		{search + `}],"tool_choice":{"type":"tool","name":"web_fetch"}}`, "tool_choice.name"},
		{`{"max_tokens":9,"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"I"}],` +
			`"tools":[{"type":"web_search"}]}`, "messages"}} {
		if status, text := post(t, s.URL+"/v1/messages", c[0]); status != http.StatusBadRequest ||
			!strings.Contains(text, c[1]) {
			t.Errorf("%s: %d %s", c[0], status, text)
		}
	}
	seen := len(b.Chats())
	if status, _ := post(t, s.URL+"/v1/messages", search+`}],"tool_choice":{"type":"none"}}`); status !=
		http.StatusOK || b.Chats()[seen].GetToolsJson() != "" {
		t.Errorf("tools that are not to be used: %d, %s", status, b.Chats()[seen].GetToolsJson())
	}
}
