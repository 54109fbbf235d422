package openai_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// scripted is a model that says a text of a script in each turn, a few bytes per token.
type scripted struct {
	*backend
	turns []string // a turn that begins with ! ends with that error
}

func (b *scripted) Chat(_ context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	b.mu.Lock()
	text := b.turns[min(len(b.chats), len(b.turns)-1)]
	b.chats = append(b.chats, r)
	b.mu.Unlock()
	if err := send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: &routerv1.Started{
		RequestId: "r", Model: "m", Fingerprint: "f", Format: &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"},
	}}}); err != nil {
		return err
	}
	if broken, ok := strings.CutPrefix(text, "!"); ok {
		return fault.New(fault.Unavailable, "%s", broken)
	}
	text, cut := strings.CutSuffix(text, "✂")
	n := uint32(0)
	for runes := []rune(text); len(runes) > 0; n++ {
		size := min(3, len(runes))
		if err := send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Token{
			Token: &routerv1.TokenEvent{Text: string(runes[:size]), Index: n},
		}}); err != nil {
			return err
		}
		runes = runes[size:]
	}
	reason := samplerv1.FinishReason_FINISH_REASON_STOP
	if cut {
		reason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: &routerv1.Finished{
		FinishReason: reason, Usage: &routerv1.Usage{PromptTokens: 10, CompletionTokens: n},
	}}})
}

// library finds two pages for each query, and has a server with one tool.
type library struct{}

func (library) Do(_ context.Context, query string, _ int) ([]webtools.Result, string, error) {
	return []webtools.Result{
		{URL: "http://a.test/", Title: "A", Text: query}, {URL: "http://b.test/", Title: "B"},
	}, "", nil
}

func (library) Tools(context.Context, string) ([]toolloop.Definition, error) {
	return []toolloop.Definition{{Name: "find", Parameters: json.RawMessage(`{"type":"object"}`)}}, nil
}

func (library) Call(_ context.Context, server, tool string, arguments json.RawMessage) (string, bool, error) {
	return fmt.Sprintf("%s %s %s", server, tool, arguments), false, nil
}

// answered is an answer with tools of the server, complete or the sum of a stream.
type answered struct {
	said
	Annotations []struct {
		Citation struct {
			Start int    `json:"start_index"`
			End   int    `json:"end_index"`
			URL   string `json:"url"`
		} `json:"url_citation"`
	}
	Executed []struct {
		Type, Name, Arguments, Output string
		Failed                        bool
	} `json:"executed_tools"`
	Usage usageSum
}

type usageSum struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
}

// converse asks a scripted model, streamed or not, and returns the status and the text too.
func converse(t *testing.T, b *scripted, box *agent.Box, more string, stream bool) (answered, int, string) {
	t.Helper()
	b.backend = &backend{}
	s := httptest.NewServer(openai.New(b, openai.Options{Tools: box}))
	defer s.Close()
	if stream {
		more += `,"stream":true,"stream_options":{"include_usage":true}`
	}
	resp, text := post(t, s.URL+"/v1/chat/completions", hello+more+`}`)
	var out answered
	for _, line := range strings.Split(text, "\n") {
		line, streamed := strings.CutPrefix(line, "data: ")
		if line == "" || line == "[DONE]" {
			continue
		}
		var e struct {
			Choices []struct {
				Message, Delta json.RawMessage
				Reason         string `json:"finish_reason"`
			}
			Usage *usageSum
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.Usage != nil {
			out.Usage = *e.Usage
		}
		for _, c := range e.Choices {
			raw := c.Message
			if streamed {
				raw = c.Delta
			}
			var p part
			if err := json.Unmarshal(raw, &p); err != nil {
				t.Fatal(err)
			}
			out.add(t, p, streamed)
			var one answered
			if err := json.Unmarshal(raw, &struct {
				A any `json:"annotations"`
				E any `json:"executed_tools"`
			}{&one.Annotations, &one.Executed}); err != nil {
				t.Fatal(err)
			}
			out.Annotations = append(out.Annotations, one.Annotations...)
			out.Executed = append(out.Executed, one.Executed...)
			if c.Reason != "" {
				out.Reason = c.Reason
			}
		}
	}
	return out, resp.StatusCode, text
}

const (
	searchCall = "<tool_call>\n{\"name\": \"web_search\", \"arguments\": {\"query\": \"cats\"}}\n</tool_call>"
	findCall   = "<tool_call>\n{\"name\": \"lib__find\", \"arguments\": {\"n\": 1}}\n</tool_call>"
	mineCall   = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"x\"}}\n</tool_call>"
	ownTools   = `,"tools":[{"type":"web_search"},{"type":"mcp","server_label":"lib"}]`
	mixedTools = `,"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}},{"type":"web_search"}]`
)

func libraryBox(l toolloop.Limits) *agent.Box {
	return agent.New(agent.Config{Limits: l, Search: library{}, Servers: library{}})
}

func TestAgent_RunsToolsUntilTheModelAnswers(t *testing.T) {
	for _, stream := range []bool{false, true} {
		b := &scripted{turns: []string{
			"<think>look</think>Wait." + searchCall + "\n" + findCall, "It is so [2], and http://a.test/.",
		}}
		got, status, text := converse(t, b, libraryBox(toolloop.Limits{}), ownTools, stream)
		if status != 200 || got.Content != "Wait.\n\nIt is so [2], and http://a.test/." || got.Reason != "stop" ||
			got.Reasoning != "look" || len(got.Calls) != 0 {
			t.Fatalf("streamed %v: got %+v\n%s", stream, got, text)
		}
		if len(got.Executed) != 2 || got.Executed[0].Name != "web_search" || got.Executed[1].Type != "mcp" ||
			got.Executed[1].Output != `lib find {"n": 1}` || got.Executed[0].Arguments != `{"query": "cats"}` {
			t.Errorf("streamed %v: it ran %+v", stream, got.Executed)
		}
		if len(got.Annotations) != 2 || got.Annotations[0].Citation.URL != "http://b.test/" ||
			got.Annotations[1].Citation.URL != "http://a.test/" {
			t.Fatalf("streamed %v: it cites %+v", stream, got.Annotations)
		}
		c := got.Annotations[0].Citation
		if cited := string([]rune(got.Content)[c.Start:c.End]); cited != "[2]" {
			t.Errorf("streamed %v: the citation is %q", stream, cited)
		}
		if got.Usage.Prompt != 20 || got.Usage.Completion < 20 {
			t.Errorf("streamed %v: the usage is %+v", stream, got.Usage)
		}
		if strings.Contains(text, "tool_calls") || stream != strings.HasSuffix(text, "data: [DONE]\n\n") {
			t.Errorf("streamed %v: %s", stream, text)
		}
		if len(b.chats) != 2 {
			t.Fatalf("%d turns", len(b.chats))
		}
		second := b.chats[1].GetMessages()
		first := b.chats[0].GetMessages()
		if len(second) != len(first)+3 {
			t.Fatalf("the second turn has the messages %v", second)
		}
		said, found, called := second[len(first)], second[len(first)+1], second[len(first)+2]
		if said.GetRole() != "assistant" || said.GetContent() != "Wait." || !strings.Contains(said.GetJson(), `"lib__find"`) {
			t.Errorf("the model has said %v", said)
		}
		if found.GetRole() != "tool" || !strings.Contains(found.GetContent(), "data from outside") ||
			!strings.Contains(found.GetContent(), "[1] A\nhttp://a.test/\ncats") {
			t.Errorf("the search returned %v", found)
		}
		if !strings.Contains(called.GetContent(), `lib find {"n": 1}`) || !strings.Contains(called.GetJson(), "tool_call_id") {
			t.Errorf("the server returned %v", called)
		}
	}
}

func TestAgent_LeavesTheClientsToolsToTheClient(t *testing.T) {
	for _, stream := range []bool{false, true} {
		b := &scripted{turns: []string{searchCall, searchCall + "\n" + mineCall}}
		got, _, text := converse(t, b, libraryBox(toolloop.Limits{}), mixedTools, stream)
		want := []function{{"weather", `{"city": "x"}`}}
		if !reflect.DeepEqual(got.Calls, want) || got.Reason != "tool_calls" || len(got.Executed) != 1 {
			t.Errorf("streamed %v: got %+v\n%s", stream, got, text)
		}
		if tools := b.chats[0].GetToolsJson(); !strings.Contains(tools, `"weather"`) || !strings.Contains(tools, `"query"`) {
			t.Errorf("the tools are %s", tools)
		}
	}
}

func TestAgent_EndsAtItsLimits(t *testing.T) {
	b := &scripted{turns: []string{searchCall}}
	got, _, _ := converse(t, b, libraryBox(toolloop.Limits{Rounds: 2}), mixedTools+`,"tool_choice":"required"`, false)
	if got.Reason != "stop" || len(got.Executed) != 2 || len(b.chats) != 3 {
		t.Fatalf("got %+v in %d turns", got, len(b.chats))
	}
	for i, want := range []bool{true, true, false} {
		tools := b.chats[i].GetToolsJson()
		if strings.Contains(tools, "web_search") != want || !strings.Contains(tools, "weather") {
			t.Errorf("turn %d has the tools %s", i+1, tools)
		}
		required := b.chats[i].GetToolChoice().GetMode() == routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED
		if required != (i == 0) {
			t.Errorf("turn %d requires calls: %v", i+1, required)
		}
	}
	b = &scripted{turns: []string{searchCall, "Yes."}}
	if got, _, _ := converse(t, b, libraryBox(toolloop.Limits{}), ownTools+`,"max_tokens":100`, false); got.Content !=
		"Yes." || b.chats[1].GetMaxTokens() >= 100 || b.chats[1].GetMaxTokens() < 50 {
		t.Errorf("got %+v, and the second turn has %d tokens", got, b.chats[1].GetMaxTokens())
	}
	b = &scripted{turns: []string{searchCall, "Yes."}}
	if got, _, _ := converse(t, b, libraryBox(toolloop.Limits{}), ownTools+`,"max_tokens":5`, false); got.Reason !=
		"length" || len(b.chats) != 1 {
		t.Errorf("no tokens are left: got %+v in %d turns", got, len(b.chats))
	}
	b = &scripted{turns: []string{searchCall + "✂"}}
	if got, _, _ := converse(t, b, libraryBox(toolloop.Limits{}), ownTools, false); got.Reason != "length" ||
		len(got.Executed) != 0 {
		t.Errorf("a turn that is cut off: got %+v", got)
	}
}

func TestAgent_AnErrorNeverLooksLikeAnEnd(t *testing.T) {
	b := &scripted{turns: []string{"Wait." + searchCall, "!gone"}}
	if _, status, text := converse(t, b, libraryBox(toolloop.Limits{}), ownTools, false); status != 503 {
		t.Errorf("got %d %s", status, text)
	}
	b = &scripted{turns: []string{"Wait." + searchCall, "!gone"}}
	_, _, text := converse(t, b, libraryBox(toolloop.Limits{}), ownTools, true)
	if strings.Contains(text, "[DONE]") || !strings.Contains(text, `"error":{"message":"gone"`) ||
		strings.Contains(text, `"finish_reason":"`) {
		t.Errorf("got %s", text)
	}
}

func TestAgent_RefusesByName(t *testing.T) {
	for more, want := range map[string]string{
		ownTools + `,"n":2`:                                                     "n",
		ownTools + `,"logprobs":true`:                                           "logprobs",
		ownTools + `,"resumable":true`:                                          "resumable",
		ownTools + `,"continue_final_message":true`:                             "continue_final_message",
		ownTools + `,"add_generation_prompt":false`:                             "add_generation_prompt",
		ownTools + `,"temperature":"x"`:                                         "temperature",
		ownTools + `,"max_tokens":0`:                                            "max_tokens",
		`,"web_search_options":{"user_location":{}}`:                            "web_search_options.user_location",
		`,"web_search_options":7`:                                               "web_search_options",
		`,"tools":[{"type":"read_page"}]`:                                       "tools[0].type",
		`,"tools":[{"type":"mcp","server_label":"lib","headers":1}]`:            "tools[0].headers",
		`,"tools":[{"type":"code_interpreter"}]`:                                "tools[0].type",
		ownTools + `,"tool_choice":{"type":"function","function":{"name":"x"}}`: "tool_choice",
	} {
		_, status, text := converse(t, &scripted{turns: []string{"x"}}, libraryBox(toolloop.Limits{}), more, false)
		if status != 400 || !strings.Contains(text, `"param":"`+want+`"`) {
			t.Errorf("%s: got %d %s", more, status, text)
		}
	}
	_, status, text := converse(t, &scripted{turns: []string{"x"}}, nil, `,"tools":[{"type":"web_search"}]`, false)
	if status != 400 || !strings.Contains(text, "not turned it on") {
		t.Errorf("without a configuration: got %d %s", status, text)
	}
	b := &scripted{turns: []string{"x"}}
	if got, _, text := converse(t, b, libraryBox(toolloop.Limits{}), ownTools+`,"tool_choice":"none"`, false); got.Content !=
		"x" || b.chats[0].GetToolsJson() != "" {
		t.Errorf("no tools are wanted: got %s, offered %s", text, b.chats[0].GetToolsJson())
	}
	b = &scripted{turns: []string{searchCall, "x"}}
	if got, _, text := converse(t, b, libraryBox(toolloop.Limits{}), `,"web_search_options":{}`, false); len(got.Executed) !=
		1 || got.Content != "x" {
		t.Errorf("web_search_options: got %s", text)
	}
}
