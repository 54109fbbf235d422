package toolcall_test

import (
	"reflect"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

const xtmlTools = `[{"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}]`

// TestFamily_KimiK3 checks the frames of Kimi K3: channels of reasoning, answer and calls between
// three control tokens.
func TestFamily_KimiK3(t *testing.T) {
	const (
		thinking = `<|open|>message role="assistant"<|sep|><|open|>think<|sep|>`
		answer   = `<|open|>message role="assistant"<|sep|><|open|>response<|sep|>`
		end      = `<|close|>message<|sep|><|end_of_msg|>`
	)
	f, _ := toolcall.Family("kimi")
	for name, c := range map[string]struct {
		prompt, text string
		want         toolcall.Result
	}{
		"reasoning and answer": {thinking,
			"Two.\n<|close|>think<|sep|><|open|>response<|sep|>It is 2.\n<|close|>response<|sep|>" + end,
			toolcall.Result{Reasoning: "Two.", Content: "It is 2.\n"}},
		"calls": {thinking, `Sum.<|close|>think<|sep|><|open|>response<|sep|>I add.<|close|>response<|sep|>` +
			`<|open|>tools<|sep|><|open|>call tool="calc" index="1"<|sep|>` +
			`<|open|>argument key="a" type="number"<|sep|>1<|close|>argument<|sep|>` +
			`<|open|>argument key="&quot;b&quot;" type="string"<|sep|> 2 "x"<|close|>argument<|sep|><|close|>call<|sep|>` +
			`<|open|>call tool="calc" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>` + end,
			toolcall.Result{Reasoning: "Sum.", Content: "I add.", Calls: []toolcall.Call{
				{ID: "call_0", Name: "calc", Arguments: `{"a": 1, "\"b\"": " 2 \"x\""}`},
				{ID: "call_1", Name: "calc", Arguments: `{}`}}}},
		"one object": {answer, `<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="calc" index="1"<|sep|>` +
			`<|open|>json<|sep|>{"a": [1]}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>` + end,
			toolcall.Result{Calls: []toolcall.Call{{ID: "call_0", Name: "calc", Arguments: `{"a": [1]}`}}}},
	} {
		o := toolcall.Options{Tools: []byte(xtmlTools), Prompt: c.prompt, Strict: true}
		for at := range c.text {
			got := parse(f, o, c.text[:at], c.text[at:])
			if len(got.Calls) == 0 {
				got.Calls = nil
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Fatalf("%s, cut at %d:\n got %+v\nwant %+v", name, at, got, c.want)
			}
		}
	}
}

// TestParser_NoPrompt_WaitsForTheFirstMarker checks that a marker that closes the reasoning says what
// the text before it was, but not if the marker stands in an argument.
func TestParser_NoPrompt_WaitsForTheFirstMarker(t *testing.T) {
	f, _ := toolcall.Family("qwen3-hermes")
	o := toolcall.Options{Tools: []byte(xtmlTools), NoPrompt: true, Strict: true}
	for text, want := range map[string]toolcall.Result{
		"Hm.</think>\n\nYes.":          {Reasoning: "Hm.", Content: "Yes."},
		"<think>Hm.</think>\n\nYes.":   {Reasoning: "Hm.", Content: "Yes."},
		"Yes.":                         {Content: "Yes."},
		"No more than 3 < 4 <":         {Content: "No more than 3 < 4 <"},
		"Hm. <think>Yes.</think> True": {Content: "Hm. <think>Yes.</think> True"},
		"So:\n<tool_call>\n{\"name\": \"calc\", \"arguments\": {\"s\": \"</think>\"}}\n</tool_call>": {
			Content: "So:", Calls: []toolcall.Call{{ID: "call_0", Name: "calc", Arguments: `{"s": "</think>"}`}}},
	} {
		got := parse(f, o, text)
		if len(got.Calls) == 0 {
			got.Calls = nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v\nwant %+v", text, got, want)
		}
	}
}
