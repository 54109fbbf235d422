package app_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

const (
	weatherSchema = `{"type":"object","properties":{"city":{"type":"string","maxLength":12},"unit":{"enum":["C","F"]},"days":{"type":"integer","minimum":1,"maximum":9}},"required":["city","unit"],"additionalProperties":false}`
	nowSchema     = `{"type":"object","properties":{}}`
	chatTools     = `[{"type":"function","function":{"name":"get_weather","description":"Tells the weather of a city.","strict":true,"parameters":` + weatherSchema + `}},
		{"type":"function","function":{"name":"now","description":"Tells the time.","parameters":` + nowSchema + `}}]`
)

// chatMesh is a mesh with a chat model and its HTTP API.
func chatMesh(t *testing.T) (routerv1.RouterServiceClient, string) {
	t.Helper()
	t.Cleanup(func() { leak.Check(t) })
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	m, router := startMesh(t, ctx,
		app.MeshConfig{Model: shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"), Stages: 2,
			Kernels: app.Kernels{Set: set, Threads: 2}, HTTP: "127.0.0.1:0"})
	return router, "http://" + m.HTTPAddr() + "/v1/chat/completions"
}

// choice is one of the answers of a chat.
type choice struct {
	Content string
	Reason  string
	Calls   []calledFunction
}

type calledFunction struct{ Name, Arguments string }

// message is a complete message or a delta.
type message struct {
	Content *string `json:"content"`
	Calls   []struct {
		Index    int            `json:"index"`
		Function calledFunction `json:"function"`
	} `json:"tool_calls"`
}

func (c *choice) add(m message, streamed bool) {
	if m.Content != nil {
		c.Content += *m.Content
	}
	for i, call := range m.Calls {
		if streamed {
			i = call.Index
		}
		if i == len(c.Calls) {
			c.Calls = append(c.Calls, calledFunction{Name: call.Function.Name})
		}
		c.Calls[i].Arguments += call.Function.Arguments
	}
}

// askHTTP posts a chat about the weather, with more fields.
func askHTTP(t *testing.T, url, more string) (status int, choices []choice, text string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(url, "application/json",
		strings.NewReader(`{"messages":[{"role":"user","content":"What is the weather in Paris?"}],"max_tokens":300`+
			more+`}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	type chunk struct {
		Choices []struct {
			Index   int
			Reason  string `json:"finish_reason"`
			Message message
			Delta   message
		}
	}
	take := func(line []byte, streamed bool) {
		var c chunk
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for _, one := range c.Choices {
			for one.Index >= len(choices) {
				choices = append(choices, choice{})
			}
			m := one.Message
			if streamed {
				m = one.Delta
			}
			choices[one.Index].add(m, streamed)
			choices[one.Index].Reason = one.Reason
		}
	}
	body := bufio.NewReader(resp.Body)
	for {
		line, err := body.ReadString('\n')
		text += line
		data, streamed := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if data != "" && data != "[DONE]" {
			take([]byte(data), streamed)
		}
		if errors.Is(err, io.EOF) {
			return resp.StatusCode, choices, text
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// judged checks that the calls name tools that were offered and have valid arguments.
func judged(t *testing.T, c choice) {
	t.Helper()
	for _, call := range c.Calls {
		source := map[string]string{"get_weather": weatherSchema, "now": nowSchema}[call.Name]
		if source == "" {
			t.Errorf("no tool is named %q", call.Name)
			continue
		}
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(source))
		if err != nil {
			t.Fatal(err)
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource("s.json", doc); err != nil {
			t.Fatal(err)
		}
		schema, err := compiler.Compile("s.json")
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(call.Arguments))
		if err == nil {
			err = schema.Validate(v)
		}
		if err != nil {
			t.Errorf("%s(%s): %v", call.Name, call.Arguments, err)
		}
	}
}

func TestMesh_ToolChoiceOverHTTP(t *testing.T) {
	_, url := chatMesh(t)
	tools := `,"tools":` + chatTools
	one := tools + `,"parallel_tool_calls":false`
	_, plain, _ := askHTTP(t, url, `,"max_tokens":12,"temperature":0`)
	for _, c := range []struct {
		name, more string
		check      func(choice) string
	}{
		{"required", one + `,"tool_choice":"required","temperature":0`, func(c choice) string {
			if len(c.Calls) != 1 || c.Content != "" || c.Reason != "tool_calls" {
				return "want one call"
			}
			return ""
		}},
		{"required, drawn", one + `,"tool_choice":"required","temperature":1.3,"seed":5,"n":6`, func(c choice) string {
			if len(c.Calls) != 1 || c.Content != "" || c.Reason != "tool_calls" {
				return "want one call"
			}
			return ""
		}},
		{"named, with arguments",
			one + `,"tool_choice":{"type":"function","function":{"name":"get_weather"}},"temperature":0`,
			func(c choice) string {
				if len(c.Calls) != 1 || c.Calls[0].Name != "get_weather" ||
					!strings.Contains(c.Calls[0].Arguments, "Paris") || c.Reason != "tool_calls" {
					return "want one call of get_weather about Paris"
				}
				return ""
			}},
		{"named", one + `,"tool_choice":{"type":"function","function":{"name":"now"}},"temperature":1,"seed":6,"n":2`,
			func(c choice) string {
				if len(c.Calls) != 1 || c.Calls[0].Name != "now" || c.Reason != "tool_calls" {
					return "want one call of now"
				}
				return ""
			}},
		{"auto, by a model that calls nothing", tools + `,"max_tokens":12,"temperature":0`, func(c choice) string {
			if !reflect.DeepEqual(c, plain[0]) {
				return fmt.Sprintf("want %+v", plain[0])
			}
			return ""
		}},
		{"none", tools + `,"tool_choice":"none","max_tokens":12,"temperature":0`, func(c choice) string {
			if !reflect.DeepEqual(c, plain[0]) {
				return fmt.Sprintf("want %+v", plain[0])
			}
			return ""
		}},
	} {
		status, whole, text := askHTTP(t, url, c.more)
		if status != http.StatusOK || len(whole) == 0 {
			t.Fatalf("%s: %s", c.name, text)
		}
		for _, one := range whole {
			if why := c.check(one); why != "" {
				t.Errorf("%s: %+v: %s", c.name, one, why)
			}
			judged(t, one)
		}
		if _, streamed, _ := askHTTP(t, url, c.more+`,"stream":true`); !reflect.DeepEqual(streamed, whole) {
			t.Errorf("%s: the stream adds up to\n%+v\nwant\n%+v", c.name, streamed, whole)
		}
	}
	for more, want := range map[string]string{
		one + `,"tool_choice":{"type":"function","function":{"name":"nix"}}`: `"param":"tool_choice"`,
		`,"tool_choice":"required"`: `"param":"tool_choice"`,
		`,"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{"properties":{"a":{"pattern":"(?=x)"}}}}}]`: `"param":"tools[0].function.parameters"`,
		`,"tool_choice":"required","tools":[{"type":"function","function":{"name":"a b"}}]`:                                                                   `"param":"tools[0].function.name"`,
	} {
		if status, _, text := askHTTP(t, url, more); status != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %s", more, status, text, want)
		}
	}
}

// chatText returns the text of a chat and the format of tool calls in it.
func chatText(t *testing.T, router routerv1.RouterServiceClient, r *routerv1.ChatRequest) (string,
	*tokenizerv1.ChatFormat, error) {
	t.Helper()
	zero := float32(0)
	r.Messages, r.MaxTokens, r.KeepMarkers = []*tokenizerv1.Message{{Role: "user",
		Content: "What is the weather in Paris?"}}, 200, true
	if r.Sampling == nil {
		r.Sampling = &routerv1.Sampling{}
	}
	r.Sampling.Temperature = &zero
	stream, err := router.Chat(t.Context(), r)
	if err != nil {
		return "", nil, err
	}
	var text string
	var format *tokenizerv1.ChatFormat
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text, format, nil
		}
		if err != nil {
			return text, format, err
		}
		if s := e.GetStarted(); s != nil {
			format = s.GetFormat()
		}
		text += e.GetToken().GetText() + e.GetFinished().GetText()
	}
}

func TestMesh_ToolChoiceOverGRPC(t *testing.T) {
	router, _ := chatMesh(t)
	no := false
	required := &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED}
	text, format, err := chatText(t, router,
		&routerv1.ChatRequest{ToolsJson: chatTools, ToolChoice: required, ParallelToolCalls: &no})
	if err != nil || !strings.HasPrefix(strings.TrimSpace(text), "<tool_call>") ||
		!strings.HasSuffix(text, "</tool_call>") || format.GetCalls() != "hermes" {
		t.Errorf("%q %v %v", text, format, err)
	}
	// The client may also send structural tags of its own.
	tags := &samplerv1.Grammar{
		Kind:   samplerv1.GrammarKind_GRAMMAR_KIND_TAGS,
		Source: `{"triggers":["<f"],"at_least_one":true,"stop_after_first":true,"not_first":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","tags":[{"begin":"<f=w>","schema":` + weatherSchema + `,"end":"</f>"}]}`,
	}
	only := &samplerv1.Grammar{
		Kind:   tags.GetKind(),
		Source: `{"type":"tags_with_separator","at_least_one":true,"stop_after_first":true,"tags":[{"begin":"<f=w>","schema":` + weatherSchema + `,"end":"</f>"}]}`,
	}
	text, _, err = chatText(t, router, &routerv1.ChatRequest{Sampling: &routerv1.Sampling{Grammar: only}})
	if err != nil || !strings.HasPrefix(text, "<f=w>{") || !strings.HasSuffix(text, "}</f>") {
		t.Errorf("%q %v", text, err)
	}
	if text, _, err = chatText(t, router,
		&routerv1.ChatRequest{Sampling: &routerv1.Sampling{Grammar: tags}}); err != nil || text == "" ||
		text[0] >= 'A' && text[0] <= 'Z' {
		t.Errorf("%q %v", text, err)
	}
	for field, r := range map[string]*routerv1.ChatRequest{
		"tool_choice.function: no tool of tools_json is named \"nix\"": {ToolsJson: chatTools,
			ToolChoice: &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION, Function: "nix"}},
		"tool_choice.function: name one": {ToolsJson: chatTools,
			ToolChoice: &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION}},
		"tool_choice.function: requires TOOL_CHOICE": {ToolsJson: chatTools,
			ToolChoice: &routerv1.ToolChoice{Function: "now"}},
		"tool_choice.mode": {ToolsJson: chatTools,
			ToolChoice: &routerv1.ToolChoice{Mode: 17}},
		"tool_choice: requires tools": {ToolChoice: required},
		"tools_json":                  {ToolsJson: `{}`},
		"sampling.grammar.source": {Sampling: &routerv1.Sampling{Grammar: &samplerv1.Grammar{Kind: tags.GetKind(),
			Source: `{"tags":[{"begin":"a","schema":{},"until":"b"}]}`}}},
	} {
		if _, _, err := chatText(t, router, r); status.Code(err) != codes.InvalidArgument ||
			!strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
