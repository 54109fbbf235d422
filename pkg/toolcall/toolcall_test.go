package toolcall_test

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

const tools = `[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{
	"city":{"type":"string"},"days":{"type":"integer"},"ok":{"type":"boolean"},"o":{"type":"object"},"l":{"type":"array"},"id":{"anyOf":[{"type":"string"},{"type":"null"}]}}}}},
	{"name":"go-to","parameters":{"type":"object","properties":{"at":{"type":["number","string"]}}}},{"type":"function","function":{"name":"code_interpreter"}}]`

// call is a complete call.
type call struct{ ID, Name, Arguments string }

// answer is the sum of deltas.
type answer struct {
	Content, Reasoning string
	Calls              []call
}

func (a *answer) add(t testing.TB, d toolcall.Delta) {
	a.Content += d.Content
	a.Reasoning += d.Reasoning
	for _, c := range d.Calls {
		if c.Index == len(a.Calls) {
			if c.Name == "" || c.ID == "" {
				t.Fatalf("call %d begins without a name: %+v", c.Index, c)
			}
			a.Calls = append(a.Calls, call{c.ID, c.Name, ""})
		} else if c.Name != "" || c.ID != "" || c.Index != len(a.Calls)-1 {
			t.Fatalf("after %d calls: %+v", len(a.Calls), c)
		}
		a.Calls[c.Index].Arguments += c.Arguments
	}
}

// read parses a text given in pieces.
func read(t testing.TB, f toolcall.Format, o toolcall.Options, cut bool, pieces ...string) answer {
	t.Helper()
	var a answer
	p := toolcall.New(f, o)
	for _, piece := range pieces {
		a.add(t, p.Push(piece))
	}
	a.add(t, p.Flush(cut))
	if p.Calls() != len(a.Calls) {
		t.Fatalf("counts %d calls of %d", p.Calls(), len(a.Calls))
	}
	return a
}

type example struct {
	calls, reasoning, prompt, text string
	want                           answer
}

func one(name, arguments string) []call { return []call{{"call_0", name, arguments}} }

func two(a, b call) []call {
	a.ID, b.ID = "call_0", "call_1"
	return []call{a, b}
}

func examples() []example {
	paris, there := call{Name: "weather", Arguments: `{"city": "Paris <b>", "days": 2}`},
		call{Name: "go-to", Arguments: `{"at": 1.5}`}
	both := two(paris, there)
	return []example{
		{
			"hermes",
			"",
			"",
			"Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris <b>\", \"days\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"go-to\", \"arguments\": {\"at\": 1.5}}\n</tool_call>",
			answer{"Let me see.", "", both},
		},
		{"hermes", "think", "", "<think>\nI wonder.\n</think>\n\nYes, a < b.\n",
			answer{"Yes, a < b.\n", "I wonder.", nil}},
		{"hermes", "think", "<|im_start|>assistant\n<think>\n",
			"I wonder.\n</think>\n\n<tool_call>{\"arguments\": {\"at\": 1}, \"name\": \"go-to\"}</tool_call>",
			answer{"", "I wonder.", one("go-to", `{"at": 1}`)}},
		{"hermes", "think", "<think>\n\n</think>\n\n", "Plain <think> here.", answer{"Plain <think> here.", "", nil}},
		{
			"hermes",
			"",
			"",
			"<tool_call>\n{\"name\": \"weather\", \"arguments\": \"{\\\"city\\\": \\\"P\\\"}\"}\n</tool_call> and more",
			answer{"and more", "", one("weather", `{"city": "P"}`)},
		},
		{
			"hermes",
			"",
			"",
			"<tool_call>{\"type\": \"function\", \"id\": \"x1\", \"function\": {\"name\": \"weather\", \"arguments\": {}}}</tool_call>",
			answer{"", "", []call{{"x1", "weather", "{}"}}},
		},
		{"hermes", "", "", "A <tool_call> is <tool_calling", answer{"A <tool_call> is <tool_calling", "", nil}},
		{"hermes", "", "", "<tool_call>\n{\"name\": \"weather\"}\n</tool_call>", answer{"", "", one("weather", "{}")}},
		{"hermes", "", "", "x <tool_call>{\"nom\": 1}</tool_call>",
			answer{"x <tool_call>{\"nom\": 1}</tool_call>", "", nil}},
		{"hermes", "", "", "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"two\nlines\"}}</tool_call>",
			answer{"", "", one("weather", `{"city": "two\u000alines"}`)}},
		{
			"granite",
			"",
			"",
			"<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris <b>\", \"days\": 2}}, {\"name\": \"go-to\", \"arguments\": {\"at\": 1.5}}]",
			answer{"", "", both},
		},
		{"granite", "granite", "", "<think>a</think> <response>b</response>", answer{"b", "a", nil}},
		{"phi", "", "", "functools[{\"name\": \"go-to\", \"arguments\": {\"at\": 1}}]",
			answer{"", "", one("go-to", `{"at": 1}`)}},
		{"nemotron", "think", "<think>\n",
			"hm</think><TOOLCALL>[{\"name\": \"go-to\", \"arguments\": {\"at\": 1}}]</TOOLCALL>",
			answer{"", "hm", one("go-to", `{"at": 1}`)}},
		{
			"tool-calls",
			"",
			"",
			"ok <tool_calls>\n{\"name\": \"go-to\", \"arguments\": {\"at\": 1}}\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_calls>",
			answer{"ok", "", two(call{Name: "go-to", Arguments: `{"at": 1}`}, call{Name: "weather", Arguments: "{}"})},
		},
		{
			"apertus",
			"apertus",
			"",
			"<|inner_prefix|>hm<|inner_suffix|>ok<|tools_prefix|>[{\"weather\": {\"city\": \"P\"}}, {\"go-to\": {\"at\": 1}}]<|tools_suffix|>",
			answer{"ok", "hm", two(call{Name: "weather", Arguments: `{"city": "P"}`},
				call{Name: "go-to", Arguments: `{"at": 1}`})},
		},
		{
			"command",
			"command",
			"",
			"<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"P\"}}\n]<|END_ACTION|>",
			answer{"", "hm", one("weather", `{"city": "P"}`)},
		},
		{"command", "command", "", "<|START_RESPONSE|>Hello.<|END_RESPONSE|>", answer{"Hello.", "", nil}},
		{
			"command-r",
			"",
			"",
			"Action: ```json\n[\n    {\n        \"tool_name\": \"weather\",\n        \"parameters\": {\"city\": \"P\"}\n    }\n]```",
			answer{"", "", one("weather", `{"city": "P"}`)},
		},
		{
			"mistral",
			"",
			"",
			"[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris <b>\", \"days\": 2}}, {\"name\": \"go-to\", \"arguments\": {\"at\": 1.5}}]",
			answer{"", "", both},
		},
		{
			"mistral",
			"mistral",
			"",
			"[THINK]hm [x][/THINK]Hi.[TOOL_CALLS]weather[ARGS]{\"city\": \"P\"}[TOOL_CALLS]go-to[CALL_ID]abcdef123[ARGS]{}",
			answer{"Hi.", "hm [x]", []call{{"call_0", "weather", `{"city": "P"}`}, {"abcdef123", "go-to", "{}"}}},
		},
		{"mistral", "", "", "See [TOOL] and [1].", answer{"See [TOOL] and [1].", "", nil}},
		{
			"llama",
			"",
			"",
			"{\"name\": \"weather\", \"parameters\": {\"city\": \"Paris <b>\", \"days\": 2}}; {\"name\": \"go-to\", \"parameters\": {\"at\": 1.5}}",
			answer{"", "", both},
		},
		{"llama", "", "", "{\"name\": \"unknown\", \"parameters\": {}} is an object",
			answer{"{\"name\": \"unknown\", \"parameters\": {}} is an object", "", nil}},
		{"llama", "", "", "{\"a\": 1}", answer{"{\"a\": 1}", "", nil}},
		{"llama", "", "", "<|python_tag|>{\"type\": \"function\", \"name\": \"go-to\", \"parameters\": {\"at\": 1}}",
			answer{"", "", one("go-to", `{"at": 1}`)}},
		{"llama", "", "", "<|python_tag|>brave_search.call(query=\"a (b) c\")",
			answer{"", "", one("brave_search", `{"query": "a (b) c"}`)}},
		{"llama", "", "", "<|python_tag|>print(\"x\")\n1/2",
			answer{"", "", one("code_interpreter", `{"code": "print(\"x\")\n1/2"}`)}},
		{"llama-xml", "", "", "Now <function=weather>{\"city\": \"P\"}</function>\n<function=go-to>{}</function>",
			answer{"Now", "", two(call{Name: "weather", Arguments: `{"city": "P"}`},
				call{Name: "go-to", Arguments: "{}"})}},
		{"functionary", "", "<|im_start|>assistant\n>>>", "all\nHello.\n>>>weather\n{\"city\": \"P\"}",
			answer{"Hello.", "", one("weather", `{"city": "P"}`)}},
		{"pythonic", "", "", "[weather(city='Paris <b>', days=2), go-to(at=1.5)]", answer{"", "", both}},
		{"pythonic", "", "", "[weather(city='Paris \"x\"', o={'a': [None, True, -1.5e3]}, l=(1, \"\"\"q\"\"\"))]",
			answer{"", "", one("weather", `{"city": "Paris \"x\"", "o": {"a": [null, true, -1.5e3]}, "l": [1, "q"]}`)}},
		{"pythonic", "", "", "[1] is a footnote.", answer{"[1] is a footnote.", "", nil}},
		{"lfm2", "", "", "Hm.<|tool_call_start|>[weather(city=\"P\"), code_interpreter()]<|tool_call_end|>Done.",
			answer{"Hm.Done.", "", two(call{Name: "weather", Arguments: `{"city": "P"}`},
				call{Name: "code_interpreter", Arguments: "{}"})}},
		{"olmo", "", "", "<function_calls>weather(city=\"P\")\ncode_interpreter()</function_calls>",
			answer{"", "", two(call{Name: "weather", Arguments: `{"city": "P"}`},
				call{Name: "code_interpreter", Arguments: "{}"})}},
		{"tool-code", "", "", "```tool_code\nprint(weather(city='P'))\n```",
			answer{"", "", one("weather", `{"city": "P"}`)}},
		{
			"deepseek",
			"think",
			"",
			"<think>\nhm\n</think>\n\nok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris <b>\", \"days\": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>go-to\n```json\n{\"at\": 1.5}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
			answer{"ok", "hm", both},
		},
		{
			"deepseek",
			"think",
			"<｜Assistant｜></think>",
			"ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Paris <b>\", \"days\": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>go-to<｜tool▁sep｜>{\"at\": 1.5}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
			answer{"ok", "", both},
		},
		{
			"kimi",
			"",
			"",
			"ok<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"P\"}<|tool_call_end|><|tool_call_begin|>functions.go-to:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
			answer{"ok", "", []call{{"functions.weather:0", "weather", `{"city": "P"}`},
				{"functions.go-to:1", "go-to", "{}"}}},
		},
		{"harmony", "", "<|start|>assistant",
			"<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>final<|message|>Hello <|x|>.",
			answer{"Hello <|x|>.", "I think.", nil}},
		{
			"harmony",
			"",
			"<|start|>assistant",
			"<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"P\"}",
			answer{"I look.", "A.", one("weather", `{"city": "P"}`)},
		},
		{"harmony", "", "<|start|>assistant", " to=functions.go-to<|channel|>commentary json<|message|>{\"at\": 1}",
			answer{"", "", one("go-to", `{"at": 1}`)}},
		{
			"gemma",
			"gemma",
			"",
			"<|channel>thought\nhm\n<channel|><|tool_call>call:weather{city:<|\"|>a, {b}: c<|\"|>,days:2,l:[1,<|\"|>x<|\"|>],o:{a:null,b:1.5},ok:true}<tool_call|>",
			answer{"", "hm", one("weather",
				`{"city": "a, {b}: c", "days": 2, "l": [1, "x"], "o": {"a": null, "b": 1.5}, "ok": true}`)},
		},
		{"functiongemma", "", "", "<start_function_call>call:weather{city:<escape>P<escape>}<end_function_call>",
			answer{"", "", one("weather", `{"city": "P"}`)}},
		{
			"qwen-xml",
			"",
			"",
			"I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\n12\n\"x\" </param\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=ok>\nTrue\n</parameter>\n<parameter=o>\n{'a': None}\n</parameter>\n<parameter=id>\nnull\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=go-to>\n<parameter=at>\n1.5\n</parameter>\n<parameter=new>\n[1]\n</parameter>\n</function>\n</tool_call>",
			answer{
				"I look.",
				"",
				two(
					call{
						Name:      "weather",
						Arguments: `{"city": "12\n\"x\" </param", "days": 2, "ok": true, "o": {"a": null}, "id": null}`,
					},
					call{Name: "go-to", Arguments: `{"at": 1.5, "new": [1]}`},
				),
			},
		},
		{"qwen-xml", "", "", "<function=weather>\n<parameter=city>\nP\n</parameter>\n</function>",
			answer{"", "", one("weather", `{"city": "P"}`)}},
		{"qwen-xml", "", "", "<tool_call>\n<function=weather>\n{\"city\": \"P\"}\n</function>\n</tool_call>",
			answer{"", "", one("weather", `{"city": "P"}`)}},
		{
			"seed",
			"seed",
			"",
			"<seed:think>hm</seed:think>\n<seed:tool_call>\n<function=weather>\n<parameter=city>P</parameter>\n</function>\n</seed:tool_call>",
			answer{"", "hm", one("weather", `{"city": "P"}`)},
		},
		{
			"minimax",
			"",
			"",
			"<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">P</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n</minimax:tool_call>",
			answer{"", "", one("weather", `{"city": "P", "days": 2}`)},
		},
		{
			"dsml",
			"",
			"",
			"ok\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">12</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
			answer{"ok", "", one("weather", `{"city": "12", "days": 2}`)},
		},
		{
			"glm",
			"think",
			"",
			"\n<think>hm</think>\nok\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>P</arg_value>\n<arg_key>l</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>\n<tool_call>code_interpreter</tool_call>",
			answer{"ok", "hm", two(call{Name: "weather", Arguments: `{"city": "P", "l": [1, 2]}`},
				call{Name: "code_interpreter", Arguments: "{}"})},
		},
		{
			"internlm",
			"",
			"",
			"ok<|action_start|><|plugin|>\n{\"name\": \"weather\", \"parameters\": {\"city\": \"P\"}}<|action_end|>\n",
			answer{"ok", "", one("weather", `{"city": "P"}`)},
		},
		{"gigachat", "", "", "<|function_call|>{\"name\": \"weather\", \"arguments\": {\"city\": \"P\"}}",
			answer{"", "", one("weather", `{"city": "P"}`)}},
		{"granite-20b", "", "", "<function_call> {\"name\": \"weather\", \"arguments\": {\"city\": \"P\"}}",
			answer{"", "", one("weather", `{"city": "P"}`)}},
		{"xlam", "", "", "[{\"name\": \"weather\", \"arguments\": {\"city\": \"P\"}}]",
			answer{"", "", one("weather", `{"city": "P"}`)}},
	}
}

func (e example) format() toolcall.Format {
	return toolcall.Format{Calls: e.calls, Reasoning: e.reasoning}
}

func (e example) options() toolcall.Options {
	return toolcall.Options{Tools: []byte(tools), Prompt: e.prompt}
}

func TestParser_Families(t *testing.T) {
	for _, e := range examples() {
		t.Run(e.calls, func(t *testing.T) {
			got := read(t, e.format(), e.options(), false, e.text)
			if !reflect.DeepEqual(got, e.want) {
				t.Errorf("%q\ngot  %+v\nwant %+v", e.text, got, e.want)
			}
			for _, c := range got.Calls {
				if !json.Valid([]byte(c.Arguments)) {
					t.Errorf("arguments are not JSON: %s", c.Arguments)
				}
			}
		})
	}
}

// pieces cuts a text at random places between characters.
func pieces(r *rand.Rand, s string, each float64) []string {
	var out []string
	from := 0
	for i := range s {
		if i > from && r.Float64() < each {
			out = append(out, s[from:i])
			from = i
		}
	}
	return append(out, s[from:])
}

func TestParser_AnyCutGivesTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, e := range examples() {
		for range 40 {
			p := pieces(r, e.text, []float64{1, 0.5, 0.1}[r.IntN(3)])
			if got := read(t, e.format(), e.options(), false, p...); !reflect.DeepEqual(got, e.want) {
				t.Fatalf("%s in %q\ngot  %+v\nwant %+v", e.calls, p, got, e.want)
			}
		}
	}
}

// What is shown of the beginning of a text is the beginning of what is shown of the whole text.
// Nothing is taken back, and no part of a marker is shown, not even where the model is stopped.
func TestParser_NothingIsTakenBack(t *testing.T) {
	for _, e := range examples() {
		for i := range e.text {
			got := read(t, e.format(), e.options(), true, e.text[:i])
			ok := strings.HasPrefix(e.want.Content, strings.TrimRight(got.Content, " \n")) &&
				strings.HasPrefix(e.want.Reasoning, got.Reasoning) && len(got.Calls) <= len(e.want.Calls)
			for k := range got.Calls {
				ok = ok && got.Calls[k].Name == e.want.Calls[k].Name &&
					strings.HasPrefix(e.want.Calls[k].Arguments, got.Calls[k].Arguments)
			}
			if !ok {
				t.Errorf("%s after %q: %+v", e.calls, e.text[:i], got)
			}
		}
	}
}

func TestParser_WithoutTools(t *testing.T) {
	text := "<think>a</think>x <tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>"
	got := read(t, toolcall.Format{Calls: "hermes", Reasoning: "think"}, toolcall.Options{}, false, text)
	if want := (answer{strings.TrimPrefix(text, "<think>a</think>"), "a", nil}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	got = read(t, toolcall.Format{}, toolcall.Options{Tools: []byte(tools)}, false, text)
	if got.Content != text {
		t.Errorf("plain: %+v", got)
	}
}

func TestParser_IDs(t *testing.T) {
	o := toolcall.Options{Tools: []byte(tools), ID: func(i int) string { return string(rune('a' + i)) }}
	got := read(t, toolcall.Format{Calls: "hermes"}, o, false,
		strings.Repeat(`<tool_call>{"name": "weather"}</tool_call>`, 3))
	if len(got.Calls) != 3 || got.Calls[0].ID != "a" || got.Calls[2].ID != "c" {
		t.Errorf("%+v", got)
	}
}

func FuzzParser(f *testing.F) {
	for _, e := range examples() {
		f.Add(e.calls, e.reasoning, e.prompt, e.text, uint64(1), false)
	}
	f.Fuzz(func(t *testing.T, calls, reasoning, prompt, text string, seed uint64, cut bool) {
		if !utf8.ValidString(text) {
			return
		}
		format := toolcall.Format{Calls: calls, Reasoning: reasoning}
		o := toolcall.Options{Tools: []byte(tools), Prompt: prompt}
		whole := read(t, format, o, cut, text)
		if !utf8.ValidString(whole.Content) || !utf8.ValidString(whole.Reasoning) {
			t.Fatalf("no UTF-8: %+v", whole)
		}
		r := rand.New(rand.NewPCG(seed, 1))
		if parts := pieces(r, text, 0.5); !reflect.DeepEqual(read(t, format, o, cut, parts...), whole) {
			t.Fatalf("%q\nwhole %+v\nparts %+v", parts, whole, read(t, format, o, cut, parts...))
		}
	})
}

func FuzzDetect(f *testing.F) {
	f.Add("<tool_call><think>", tools)
	f.Fuzz(func(t *testing.T, template, tools string) {
		toolcall.New(toolcall.Detect(template), toolcall.Options{Tools: []byte(tools)}).Flush(false)
	})
}

// Every marker that an example writes as one token is among the format's markers.
func TestFormat_Markers(t *testing.T) {
	token := regexp.MustCompile(
		`<\|[^<>|]*\|>|<[|/]?[a-z_:]+(call|calls|think|tools?)[a-z_:]*\|?>|\[/?[A-Z_]{4,}\]|<｜[^<>]*｜>`)
	for _, e := range examples() {
		markers := e.format().Markers()
		if len(e.want.Calls) == 0 && e.want.Reasoning == "" {
			continue
		}
		for _, s := range token.FindAllString(e.text, -1) {
			if s != "<|x|>" && !slices.Contains(markers, s) {
				t.Errorf("%s, %s: %q is not among %q", e.calls, e.reasoning, s, markers)
			}
		}
	}
	if m := (toolcall.Format{}).Markers(); len(m) > 0 {
		t.Errorf("plain: %q", m)
	}
}
