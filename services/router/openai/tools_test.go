package openai_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// caller is a backend whose chats are a text in a tool call format, with a few bytes per token.
type caller struct {
	*backend
	calls, reasoning, prompt, text string
	reason                         samplerv1.FinishReason
	width                          int
}

func (b caller) Chat(_ context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	b.mu.Lock()
	b.chats = append(b.chats, r)
	b.mu.Unlock()
	started := &routerv1.Started{RequestId: "r", Model: "m", PromptEnd: b.prompt,
		Format: &tokenizerv1.ChatFormat{Calls: b.calls, Reasoning: b.reasoning}}
	if err := send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: started}}); err != nil {
		return err
	}
	runes, index := []rune(b.text), uint32(0)
	for len(runes) > 0 {
		n := min(b.width, len(runes))
		if err := send(
			&routerv1.ChatResponse{
				Event: &routerv1.ChatResponse_Token{Token: &routerv1.TokenEvent{Text: string(runes[:n]), Index: index}},
			},
		); err != nil {
			return err
		}
		runes, index = runes[n:], index+1
	}
	return send(
		&routerv1.ChatResponse{
			Event: &routerv1.ChatResponse_Finished{
				Finished: &routerv1.Finished{FinishReason: b.reason, Usage: &routerv1.Usage{CompletionTokens: index}},
			},
		},
	)
}

// said is an answer: a complete one, or the sum of a stream's events.
type said struct {
	Content, Reasoning, Reason string
	Calls                      []function
}

type function struct{ Name, Arguments string }

type part struct {
	Content   *string `json:"content"`
	Reasoning string  `json:"reasoning_content"`
	Calls     []struct {
		Index    *int
		ID, Type string
		Function function
	} `json:"tool_calls"`
}

func (s *said) add(t *testing.T, p part, streamed bool) {
	t.Helper()
	if p.Content != nil {
		s.Content += *p.Content
	}
	s.Reasoning += p.Reasoning
	for i, c := range p.Calls {
		index := i
		if streamed {
			if c.Index == nil {
				t.Fatal("a call without an index")
			}
			index = *c.Index
		}
		if index == len(s.Calls) {
			if len(c.ID) != 9 || c.Type != "function" || c.Function.Name == "" {
				t.Errorf("a call begins with %+v", c)
			}
			s.Calls = append(s.Calls, function{Name: c.Function.Name})
		} else if c.ID != "" || c.Function.Name != "" {
			t.Errorf("a call goes on with %+v", c)
		}
		s.Calls[index].Arguments += c.Function.Arguments
	}
}

const callTools = `,"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]`

// ask returns the answer of a chat, streamed or not.
func ask(t *testing.T, b caller, more string, stream bool) said {
	t.Helper()
	b.backend = &backend{}
	s := httptest.NewServer(openai.New(b, openai.Options{}))
	defer s.Close()
	if !stream {
		_, text := post(t, s.URL+"/v1/chat/completions", hello+more+`}`)
		var whole struct {
			Choices []struct {
				Message part
				Reason  string `json:"finish_reason"`
			}
		}
		if err := json.Unmarshal([]byte(text), &whole); err != nil || len(whole.Choices) != 1 {
			t.Fatalf("%s: %v", text, err)
		}
		c := whole.Choices[0]
		if len(c.Message.Calls) > 0 && c.Message.Content != nil && *c.Message.Content == "" {
			t.Errorf("a message with calls has empty content: %s", text)
		}
		out := said{Reason: c.Reason}
		out.add(t, c.Message, false)
		return out
	}
	_, text := post(t, s.URL+"/v1/chat/completions", hello+more+`,"stream":true}`)
	var out said
	for _, e := range events(t, text) {
		if e == "[DONE]" {
			return out
		}
		var chunk struct {
			Choices []struct {
				Delta  part
				Reason string `json:"finish_reason"`
			}
		}
		if err := json.Unmarshal([]byte(e), &chunk); err != nil {
			t.Fatal(err)
		}
		for _, c := range chunk.Choices {
			if strings.Contains(e, "call>") {
				t.Errorf("part of a marker is visible: %s", e)
			}
			out.add(t, c.Delta, true)
			out.Reason = c.Reason
		}
	}
	t.Fatalf("the stream has no end: %s", text)
	return out
}

func TestChat_ToolCallsAndReasoning(t *testing.T) {
	const call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris <b>\"}}\n</tool_call>"
	paris := function{"weather", `{"city": "Paris <b>"}`}
	stop, length := samplerv1.FinishReason_FINISH_REASON_STOP, samplerv1.FinishReason_FINISH_REASON_LENGTH
	for name, c := range map[string]struct {
		b    caller
		more string
		want said
	}{
		"call": {caller{calls: "hermes", text: call}, callTools,
			said{"", "", "tool_calls", []function{paris}}},
		"text and call": {caller{calls: "hermes", text: "I look.\n" + call}, callTools,
			said{"I look.", "", "tool_calls", []function{paris}}},
		"two calls": {caller{calls: "hermes", text: call + "\n" + call}, callTools,
			said{"", "", "tool_calls", []function{paris, paris}}},
		"one at a time": {caller{calls: "hermes", text: call + "\n" + call}, callTools + `,"parallel_tool_calls":false`,
			said{"", "", "tool_calls", []function{paris}}},
		"no tools": {caller{calls: "hermes", text: "<b>x</b>"}, "", said{"<b>x</b>", "", "stop", nil}},
		"tools not now": {caller{calls: "hermes", text: "<b>x</b>"}, callTools + `,"tool_choice":"none"`,
			said{"<b>x</b>", "", "stop", nil}},
		"reasoning": {caller{reasoning: "think", text: "<think>\nhm\n</think>\n\nYes."}, "",
			said{"Yes.", "hm", "stop", nil}},
		"opened": {caller{reasoning: "think", prompt: "<think>\n", text: "hm</think>Yes."}, "",
			said{"Yes.", "hm", "stop", nil}},
		"not apart": {caller{reasoning: "think", text: "<think>hm</think>Yes."}, `,"reasoning_format":"none"`,
			said{"<think>hm</think>Yes.", "", "stop", nil}},
		"cut": {caller{calls: "hermes", text: call[:58], reason: length}, callTools,
			said{"", "", "length", []function{{"weather", `{"city": "Par`}}}},
		"harmony": {caller{calls: "harmony", prompt: "<|start|>assistant",
			text: "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{}<|call|>"},
			callTools, said{"", "hm", "tool_calls", []function{{"weather", "{}"}}}},
	} {
		if c.b.reason == 0 {
			c.b.reason = stop
		}
		for _, width := range []int{1, 7, 1000} {
			c.b.width = width
			for _, stream := range []bool{false, true} {
				if got := ask(t, c.b, c.more, stream); !reflect.DeepEqual(got, c.want) {
					t.Errorf("%s, %d bytes a token, streamed %v:\n%+v\nwant\n%+v", name, width, stream, got, c.want)
				}
			}
		}
	}
}

func TestChat_CallsHaveUniqueIDs(t *testing.T) {
	const call = "<tool_call>{\"name\": \"weather\"}</tool_call>"
	b := caller{backend: &backend{}, calls: "hermes", text: call + call, width: 9,
		reason: samplerv1.FinishReason_FINISH_REASON_STOP}
	s := httptest.NewServer(openai.New(b, openai.Options{}))
	defer s.Close()
	_, text := post(t, s.URL+"/v1/chat/completions", hello+callTools+`,"n":2}`)
	seen := map[string]bool{}
	for _, p := range strings.Split(text, `"id":"`)[2:] {
		seen[p[:9]] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d ids of 4 differ: %s", len(seen), text)
	}
}

func TestChat_ToolChoiceReachesTheBackend(t *testing.T) {
	for text, want := range map[string]*routerv1.ToolChoice{
		``:                      nil,
		`,"tool_choice":null`:   nil,
		`,"tool_choice":"auto"`: nil,
		`,"tool_choice":"none"`: {Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE},
		`,"tool_choice":"required","parallel_tool_calls":false`:                                       {Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED},
		`,"tool_choice":{"type":"function","function":{"name":"weather"}},"parallel_tool_calls":true`: {Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION, Function: "weather"},
	} {
		b := &backend{words: []string{"x"}}
		s := serve(t, b)
		if _, answer := post(t, s.URL+"/v1/chat/completions", hello+callTools+text+`}`); len(b.chats) != 1 {
			t.Errorf("%s: %s", text, answer)
			continue
		}
		got := b.chats[0]
		if !proto.Equal(got.GetToolChoice(), want) {
			t.Errorf("%s: %v, want %v", text, got.GetToolChoice(), want)
		}
		if none := strings.Contains(text, "none"); (got.GetToolsJson() == "") != none {
			t.Errorf("%s: tools are %q", text, got.GetToolsJson())
		}
		if p := got.ParallelToolCalls; (p != nil) != strings.Contains(text, "parallel") ||
			got.GetParallelToolCalls() != strings.Contains(text, "true") {
			t.Errorf("%s: parallel_tool_calls is %v", text, p)
		}
	}
}

func TestChat_StructuralTagsReachTheBackend(t *testing.T) {
	b := &backend{words: []string{"x"}}
	const format = `{"type":"structural_tag","triggers":["<f"],"structures":[{"begin":"<f>","schema":{"type":"integer"},"end":"</f>"}]}`
	_, text := post(t, serve(t, b).URL+"/v1/chat/completions", hello+`,"response_format":`+format+`}`)
	if len(b.chats) != 1 {
		t.Fatal(text)
	}
	if g := b.chats[0].GetSampling().GetGrammar(); g.GetKind() != samplerv1.GrammarKind_GRAMMAR_KIND_TAGS ||
		g.GetSource() != format {
		t.Errorf("the grammar is %v", g)
	}
}
