package tokenizer_test

import (
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

func TestService_ChatWithNamedTemplatesDocumentsAndVariables(t *testing.T) {
	s, _ := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t), Chat: tokenizer.Chat{
		Templates: map[string]string{
			"default":  "{{ x }}{{ bos_token }}<tool_call><think>",
			"tool_use": "tools {{ tools|length }}",
			"rag":      "{% for d in documents %}{{ d.title }}{% endfor %}",
		},
		Special: map[string]string{"bos_token": "<|im_start|>"},
	}})
	user := []*tokenizerv1.Message{{Role: "user", Content: "x"}}
	for want, r := range map[string]*tokenizerv1.ApplyChatTemplateRequest{
		"7<|im_start|><tool_call><think>": {VariablesJson: `{"x":7}`},
		"tools 1":                         {ToolsJson: `[{}]`},
		"ab":                              {Template: "rag", DocumentsJson: `[{"title":"a"},{"title":"b"}]`},
	} {
		r.Messages = user
		got, err := s.ApplyChatTemplate(t.Context(), r)
		if err != nil || got.GetText() != want {
			t.Errorf("%q, %v; want %q", got.GetText(), err, want)
		}
		if f := got.GetFormat(); (f.GetCalls() == "hermes" && f.GetReasoning() == "think") != strings.HasPrefix(want,
			"7") {
			t.Errorf("%q: %v", want, f)
		}
	}
	for field, r := range map[string]*tokenizerv1.ApplyChatTemplateRequest{
		"template":               {Template: "none"},
		"documents":              {DocumentsJson: `{}`},
		"continue_final_message": {ContinueFinalMessage: true},
	} {
		r.Messages = user
		_, err := s.ApplyChatTemplate(t.Context(), r)
		var f *fault.Error
		if !asFault(err, &f) || f.Field != field || f.Code != fault.Invalid {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestService_ChatContinuesTheLastMessage(t *testing.T) {
	s, _ := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t), ChatTemplate: chatML})
	for content, want := range map[string]string{"Once upon ": "Once upon ", "the": "the", "the\n": "the\n"} {
		r, err := s.ApplyChatTemplate(t.Context(), &tokenizerv1.ApplyChatTemplateRequest{
			Messages: []*tokenizerv1.Message{{Role: "user", Content: "the"},
				{Role: "assistant", Content: content}},
			NoGenerationPrompt: true, ContinueFinalMessage: true,
		})
		if err != nil || r.GetText() != "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"+want {
			t.Errorf("%q, %v", r.GetText(), err)
		}
	}
	_, err := s.ApplyChatTemplate(t.Context(), &tokenizerv1.ApplyChatTemplateRequest{
		Messages:           []*tokenizerv1.Message{{Json: `{"role":"assistant","content":null,"tool_calls":[]}`}},
		NoGenerationPrompt: true, ContinueFinalMessage: true,
	})
	if fault.CodeOf(err) != fault.Invalid {
		t.Errorf("no text: %v", err)
	}
}

// OpenAI's messages hold arguments as text. Each template gets them in the form that it expects.
func TestService_ChatPassesArgumentsInTheTemplatesForm(t *testing.T) {
	each := func(body string) string {
		return "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set f = c.function %}" + body +
			"{% endfor %}{% endfor %}"
	}
	given := map[string]string{"text": `"{\"b\": 1, \"a\": [true]}"`, "object": `{"b": 1, "a": [true]}`, "empty": `""`}
	for template, want := range map[string]map[string]string{
		each("{{ {'name': f.name, 'arguments': f.arguments}|tojson }}"): {
			"text":   `{"name": "f", "arguments": {"b": 1, "a": [true]}}`,
			"object": `{"name": "f", "arguments": {"b": 1, "a": [true]}}`, "empty": `{"name": "f", "arguments": {}}`},
		each("{% for k, v in f.arguments.items() %}{{ k }}={{ v }};{% endfor %}"): {"text": "b=1;a=[True];",
			"object": "b=1;a=[True];", "empty": ""},
		each("{{ f.name + ' ' + f.arguments }}"): {"text": `f {"b": 1, "a": [true]}`,
			"object": `f {"b": 1, "a": [true]}`, "empty": "f "},
		each("{{ f.name }} {{ f.arguments }}"): {"text": `f {"b": 1, "a": [true]}`,
			"object": `f {"b": 1, "a": [true]}`, "empty": "f "},
	} {
		s, _ := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t), ChatTemplate: template})
		for way, arguments := range given {
			r, err := s.ApplyChatTemplate(t.Context(),
				&tokenizerv1.ApplyChatTemplateRequest{Messages: []*tokenizerv1.Message{
					{
						Json: `{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":` + arguments + `}}]}`,
					},
				}})
			if err != nil || r.GetText() != want[way] {
				t.Errorf("%s, %s: %q, %v; want %q", template, way, r.GetText(), err, want[way])
			}
		}
	}
}

// Messages with calls have null content. A template that accepts only text gets an empty text.
func TestService_ChatPassesContentInTheTemplatesForm(t *testing.T) {
	for template, want := range map[string]string{
		"{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}":                                          "<>",
		"{% for m in messages %}{% if m.content is none %}none{% else %}<{{ m.content }}>{% endif %}{% endfor %}": "none",
	} {
		s, _ := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t), ChatTemplate: template})
		r, err := s.ApplyChatTemplate(t.Context(),
			&tokenizerv1.ApplyChatTemplateRequest{Messages: []*tokenizerv1.Message{
				{
					Json: `{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}`,
				},
			}})
		if err != nil || r.GetText() != want {
			t.Errorf("%s: %q, %v; want %q", template, r.GetText(), err, want)
		}
	}
}
