package toolcall_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// recordedCase is a recorded output of a model with its right parse.
type recordedCase struct {
	ID               string
	Family           string
	Tools            json.RawMessage
	RawOutput        string `json:"raw_output"`
	GenerationPrompt string `json:"generation_prompt"`
	Expected         *struct {
		Content          string
		ReasoningContent string `json:"reasoning_content"`
		ToolCalls        []struct {
			Name      string
			Arguments json.RawMessage
		} `json:"tool_calls"`
	}
	ExpectedError *struct{ Accept []string } `json:"expected_error"`
}

func recordedCases(t *testing.T) []recordedCase {
	t.Helper()
	text, err := os.ReadFile(fixtures.Path(t, "vectors/toolcalls/cases.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var out []recordedCase
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c recordedCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// parse pushes the pieces of a text through a parser.
func parse(f toolcall.Format, o toolcall.Options, pieces ...string) toolcall.Result {
	p := toolcall.New(f, o)
	var r toolcall.Result
	for _, s := range pieces {
		r.Add(p.Push(s))
	}
	r.Add(p.Flush(false))
	r.Complete()
	return r
}

// TestParser_RecordedOutputs compares the parses of nine families' outputs, as a whole and one
// character at a time, with the right ones.
func TestParser_RecordedOutputs(t *testing.T) {
	cases := recordedCases(t)
	right := 0
	for _, c := range cases {
		f, ok := toolcall.Family(c.Family)
		if !ok {
			t.Fatalf("no family %s", c.Family)
		}
		o := toolcall.Options{Tools: c.Tools, Prompt: c.GenerationPrompt, Strict: true,
			NoPrompt: c.GenerationPrompt == ""}
		got := parse(f, o, c.RawOutput)
		var letters []string
		for _, r := range c.RawOutput {
			letters = append(letters, string(r))
		}
		if streamed := parse(f, o, letters...); !reflect.DeepEqual(streamed, got) {
			t.Errorf("%s: streamed %+v, whole %+v", c.ID, streamed, got)
		}
		for at := 1; at < min(len(letters), 400); at++ {
			two := parse(f, o, strings.Join(letters[:at], ""), strings.Join(letters[at:], ""))
			if !reflect.DeepEqual(two, got) {
				t.Errorf("%s: cut at %d %+v, whole %+v", c.ID, at, two, got)
				break
			}
		}
		if why := wrong(c, got); why != "" {
			t.Errorf("%s: %s\n raw  %q\n prompt %q\n got  %+v", c.ID, why, c.RawOutput, c.GenerationPrompt, got)
			continue
		}
		right++
	}
	if right < len(cases) {
		t.Errorf("%d of %d are right", right, len(cases))
	}
}

func wrong(c recordedCase, got toolcall.Result) string {
	if c.ExpectedError != nil {
		if len(got.Calls) > 0 {
			return "want no call"
		}
		return ""
	}
	e := c.Expected
	switch {
	case got.Content != e.Content:
		return "want content " + e.Content
	case got.Reasoning != e.ReasoningContent:
		return "want reasoning " + e.ReasoningContent
	case len(got.Calls) != len(e.ToolCalls):
		return "other number of calls"
	}
	for i, want := range e.ToolCalls {
		var a, b any
		if json.Unmarshal([]byte(got.Calls[i].Arguments), &a) != nil || json.Unmarshal(want.Arguments, &b) != nil ||
			got.Calls[i].Name != want.Name || !reflect.DeepEqual(a, b) {
			return "want call " + want.Name + string(want.Arguments)
		}
	}
	return ""
}
