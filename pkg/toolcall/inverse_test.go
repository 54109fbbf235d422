package toolcall_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

const ownTools = `[{"type":"function","function":{"name":"weather","description":"Tells it.","parameters":{"type":"object","properties":{
	"city":{"type":"string","description":"Where."},"days":{"type":"integer","description":"How many."},"ok":{"type":"boolean","description":"Is it?"},
	"o":{"type":"object","description":"More.","properties":{},"additionalProperties":true}},"required":["city"]}}},
	{"type":"function","function":{"name":"code_interpreter","description":"Runs it.","parameters":{"type":"object","properties":{},"required":[]}}}]`

// turn is an assistant's turn that a template writes and the parser reads back.
type turn struct{ content, reasoning, message string }

func turns() []turn {
	calls := `"tool_calls":[{"id":"abcdef123","type":"function","function":{"name":"weather","arguments":{"city":"Zürich \"x\" <b>","days":2}}}]`
	many := `"tool_calls":[{"id":"abcdef123","type":"function","function":{"name":"weather","arguments":{"city":"P","ok":true,"o":{"a":[null,1.5,"]}"]}}}},` +
		`{"id":"abcdef124","type":"function","function":{"name":"code_interpreter","arguments":{}}}]`
	return []turn{
		{"Hello there.", "", `{"role":"assistant","content":"Hello there."}`},
		{"", "", `{"role":"assistant","content":"",` + calls + `}`},
		{"", "", `{"role":"assistant","content":"",` + many + `}`},
		{"Let me see.", "", `{"role":"assistant","content":"Let me see.",` + calls + `}`},
		{
			"",
			"I wonder.\nYes.",
			`{"role":"assistant","content":"","reasoning_content":"I wonder.\nYes.","reasoning":"I wonder.\nYes.","thinking":"I wonder.\nYes.",` + calls + `}`,
		},
	}
}

// written is a turn as a template writes it after a prompt.
type written struct {
	turn
	prompt, text string
}

// write renders each turn by a template and reports the turns that the template cannot write.
func write(t *testing.T, source string) (out []written, others []string) {
	t.Helper()
	tmpl, err := template.Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	render := func(generation bool, messages ...string) (string, error) {
		in := template.ChatInput{BOS: "<s>", EOS: "</s>", Tools: []byte(ownTools), AddGenerationPrompt: generation}
		for _, m := range messages {
			in.Messages = append(in.Messages, template.Message{JSON: []byte(m)})
		}
		r, err := tmpl.Chat(t.Context(), in, template.Options{Now: time.Now})
		return r.Text, err
	}
	const user = `{"role":"user","content":"How is the weather?"}`
	format := toolcall.Detect(source)
	for _, turn := range turns() {
		if format.Calls == "kimi" { // its ids are names
			turn.message = strings.NewReplacer("abcdef123", "functions.weather:0", "abcdef124",
				"functions.code_interpreter:1").Replace(turn.message)
		}
		prompt, err := render(true, user)
		if err != nil {
			others = append(others, "prompt: "+err.Error())
			continue
		}
		whole, err := render(false, user, turn.message)
		if err != nil {
			others = append(others, "turn: "+err.Error())
			continue
		}
		text, ok := strings.CutPrefix(whole, prompt)
		if !ok {
			n := 0
			for n < min(len(whole), len(prompt)) && whole[n] == prompt[n] {
				n++
			}
			if tag := strings.LastIndexByte(whole[:n], '<'); tag > strings.LastIndexByte(whole[:n], '>') {
				n = tag // within a marker
			}
			text, prompt = whole[n:], whole[:n]
		}
		out = append(out, written{turn, prompt, untilEnd(text)})
	}
	return out, others
}

// inverse renders each turn by a template and reads it back. It returns the number of turns
// that came back unchanged, and why the others did not.
func inverse(t *testing.T, source string) (same int, others []string) {
	t.Helper()
	all, others := write(t, source)
	for _, one := range all {
		got := read(t, toolcall.Detect(source), toolcall.Options{Tools: []byte(ownTools), Prompt: one.prompt}, false,
			one.text)
		if why := differs(got, one.turn); why != "" {
			others = append(others, why+" in "+one.text)
			continue
		}
		same++
	}
	return same, others
}

// fits counts the turns that the structure of a template's format allows.
func fits(t *testing.T, source string) (same int, others []string) {
	t.Helper()
	all, others := write(t, source)
	format := toolcall.Detect(source)
	for _, one := range all {
		structure, err := format.Structure(toolcall.Offer{Tools: []byte(ownTools), Prompt: one.prompt})
		if err != nil {
			t.Fatalf("%+v: %v", format, err)
		}
		g, err := grammar.Structure(structure)
		if err != nil {
			t.Fatalf("%+v: %v", format, err)
		}
		c, err := grammar.Compile(g, nil)
		if err != nil {
			t.Fatalf("%+v: %v", format, err)
		}
		m := c.NewMatcher()
		var reject *grammar.RejectError
		if err := m.AcceptBytes([]byte(strings.TrimSuffix(strings.TrimRight(one.text, "\n "), "<|end|>"))); errors.As(
			err,
			&reject) {
			others = append(others, fmt.Sprintf("byte %d, %.20q does not fit in %q", reject.Offset,
				one.text[reject.Offset:], one.text))
		} else if err != nil || !m.CanEnd() {
			others = append(others, fmt.Sprintf("%v: it cannot end after %q", err, one.text))
		} else {
			same++
		}
	}
	return same, others
}

// untilEnd returns a turn up to the token that ends it.
func untilEnd(text string) string {
	for _, end := range []string{"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<|end|>\n", "<end_of_turn>",
		"<|END_OF_TURN_TOKEN|>", "<|end_of_text|>", "<|endoftext|>",
		"<｜end▁of▁sentence｜>", "<|user|>", "<|observation|>", "[e~[", "<turn|>", "<|return|>", "<|message_sep|>",
		"<sep>", "<|assistant_end|>", "<|end_of_turn|>", "\n\n###", "<SPECIAL_12>"} {
		text, _, _ = strings.Cut(text, end)
	}
	return text
}

func differs(got answer, want turn) string {
	var message struct {
		Calls []struct {
			Function struct {
				Name      string
				Arguments any
			}
		} `json:"tool_calls"`
	}
	if err := json.Unmarshal([]byte(want.message), &message); err != nil {
		return err.Error()
	}
	switch {
	case strings.TrimSpace(got.Content) != want.content:
		return "content is " + got.Content
	case got.Reasoning != "" && got.Reasoning != want.reasoning:
		return "reasoning is " + got.Reasoning
	case len(got.Calls) != len(message.Calls):
		return "calls are lost"
	}
	for i, c := range got.Calls {
		var arguments any
		if err := json.Unmarshal([]byte(c.Arguments), &arguments); err != nil {
			return "arguments are not JSON: " + c.Arguments
		}
		if c.Name != message.Calls[i].Function.Name ||
			!reflect.DeepEqual(arguments, message.Calls[i].Function.Arguments) {
			return "call is " + c.Name + c.Arguments
		}
	}
	return ""
}

// ownTemplates write turns as the families do.
func ownTemplates() map[string]string {
	around := func(user, prompt, turn string) string {
		return "{% for m in messages %}{% if m.role == 'user' %}" + user + "{{ m.content }}{% else %}" + turn +
			"{% endif %}{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}"
	}
	each := func(body string) string {
		return "{% for c in m.tool_calls %}{% set f = c.function %}" + body + "{% endfor %}"
	}
	think := "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
	return map[string]string{
		"hermes": around("<|im_start|>user\n", "<|im_start|>assistant\n",
			"<|im_start|>assistant\n"+think+"{{ m.content }}"+
				each("\n<tool_call>\n{{ {'name': f.name, 'arguments': f.arguments}|tojson }}\n</tool_call>")+
				"<|im_end|>\n"),
		"qwen-xml": around("<|im_start|>user\n", "<|im_start|>assistant\n",
			"<|im_start|>assistant\n"+think+"{{ m.content }}"+
				each(
					"\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n{{ v if v is string else v|tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
				)+"<|im_end|>\n"),
		"llama": around("<|start_header_id|>user<|end_header_id|>\n\n",
			"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"+
				"{{ m.content }}{% if m.content and m.tool_calls %}<|python_tag|>{% endif %}"+
				each(
					`{"name": "{{ f.name }}", "parameters": {{ f.arguments|tojson }}}{% if not loop.last %}; {% endif %}`,
				)+
				"<|eot_id|>"),
		"mistral": around("[INST]", "[/INST]",
			"[/INST]{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}"+
				"{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ dict(c.function, id=c.id)|tojson }}{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}</s>"),
		"mistral, later": around("[INST]", "[/INST]",
			"[/INST]{{ m.content }}"+each("[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments|tojson }}")+
				"</s>"),
		"deepseek": around("<｜User｜>", "<｜Assistant｜>",
			"<｜Assistant｜>"+think+"{{ m.content }}{% if m.tool_calls %}<｜tool▁calls▁begin｜>"+
				each(
					"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n{{ f.arguments|tojson }}\n```<｜tool▁call▁end｜>\n",
				)+"<｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>"),
		"harmony": around(
			"<|start|>user<|message|>",
			"<|start|>assistant",
			"<|start|>assistant{% if m.reasoning_content %}<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|><|start|>assistant{% endif %}"+
				"{% if m.content %}<|channel|>{{ 'commentary' if m.tool_calls else 'final' }}<|message|>{{ m.content }}<|end|>{% if m.tool_calls %}<|start|>assistant{% endif %}{% endif %}"+
				each(
					"<|channel|>commentary to=functions.{{ f.name }} <|constrain|>json<|message|>{{ f.arguments|tojson }}<|call|>{% if not loop.last %}<|start|>assistant{% endif %}",
				),
		),
		"gemma": "{% macro w(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}{% for k, x in v.items() %}{{ k }}:{{ w(x) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}" +
			"{% elif v is iterable %}[{% for x in v %}{{ w(x) }}{% if not loop.last %},{% endif %}{% endfor %}]{% else %}{{ v|tojson }}{% endif %}{% endmacro %}" +
			around(
				"<|turn>user\n",
				"<|turn>model\n",
				"<|turn>model\n{% if m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}\n<channel|>{% endif %}{{ m.content }}"+
					each(
						"<|tool_call>call:{{ f.name }}{{ w(f.arguments) }}<tool_call|>",
					)+"<turn|>\n",
			),
		"kimi": around("<|im_user|>", "<|im_assistant|>",
			"<|im_assistant|>"+think+"{{ m.content }}{% if m.tool_calls %}<|tool_calls_section_begin|>"+
				each(
					"<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ f.arguments|tojson }}<|tool_call_end|>",
				)+"<|tool_calls_section_end|>{% endif %}<|im_end|>"),
		"command": around(
			"<|USER_TOKEN|>",
			"<|CHATBOT_TOKEN|>",
			"<|CHATBOT_TOKEN|>{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}"+
				"{% if m.content %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}{% if m.tool_calls %}<|START_ACTION|>[\n"+
				each(
					`    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", "parameters": {{ f.arguments|tojson }}}{% if not loop.last %},{% endif %}`+"\n",
				)+"]<|END_ACTION|>{% endif %}<|END_OF_TURN_TOKEN|>",
		),
	}
}

func TestParser_ReadsBackWhatATemplateWrites(t *testing.T) {
	for name, source := range ownTemplates() {
		if same, others := inverse(t, source); len(others) > 0 {
			t.Errorf("%s: %d turns came back, not these: %q", name, same, others)
		}
	}
}

// The texts that models were trained to write are allowed by the structures.
func TestStructure_AllowsWhatATemplateWrites(t *testing.T) {
	for name, source := range ownTemplates() {
		// how Gemma writes arbitrary values is unknown
		if same, others := fits(t, source); len(others) > 0 && name != "gemma" || same < 4 {
			t.Errorf("%s: %d turns fit, not these: %s", name, same, strings.Join(others, "\n"))
		}
	}
}

// The parser reads back what the templates of released models write of the five turns.
func TestParser_ReadsBackWhatModelsTemplatesWrite(t *testing.T) {
	text, err := os.ReadFile(fixtures.Path(t, "vectors/chat-templates/cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct{ Name, Template string }
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	// Some templates leave out the content beside calls, or accept only one call.
	least := map[string]int{"Qwen/Qwen3-0.6B": 5, "Qwen/Qwen3.5-4B": 5, "moonshotai/Kimi-K2-Thinking": 5,
		"zai-org/GLM-5.1": 5,
		"NousResearch/Hermes-2-Pro-Llama-3-8B (JSON Schema)": 4, "meta-llama/Llama-3.2-11B-Vision-Instruct": 3,
		"CISCai/Mistral-7B-Instruct-v0.3-SOTA-GGUF":                                                            4,
		"Mistral-Nemo-Instruct-2407 (mistralai 'v3-tekken' template; modified to have system prompt at start)": 4}
	for _, c := range cases {
		want, ok := least[c.Name]
		if !ok {
			continue
		}
		delete(least, c.Name)
		if same, others := inverse(t, c.Template); same < want {
			t.Errorf("%s, %+v: %d turns of %d came back, not these: %q", c.Name, toolcall.Detect(c.Template), same,
				want, others)
		}
		if strings.Contains(c.Name, "Hermes-2-Pro") { // it leaves out a marker between calls
			want--
		}
		if same, others := fits(t, c.Template); same < want {
			t.Errorf("%s, %+v: %d turns of %d fit, not these: %s", c.Name, toolcall.Detect(c.Template), same, want,
				strings.Join(others, "\n"))
		}
	}
	for name := range least {
		t.Errorf("%s is not among the cases", name)
	}
}
