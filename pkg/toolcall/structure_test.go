package toolcall_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// offers are tools of all kinds, including those that families write in special ways.
const offers = `[
	{"type":"function","function":{"name":"weather","strict":true,"parameters":{"type":"object","properties":{
		"city":{"type":"string"},"unit":{"type":"string","enum":["C","F","new York, {\"x\"}"]},"days":{"type":"integer","minimum":1,"maximum":14},"exact":{"type":"boolean"}},
		"required":["city","days"],"additionalProperties":false}}},
	{"type":"function","function":{"name":"go-to","parameters":{"type":"object","properties":{
		"at":{"type":"array","items":{"type":"number"},"maxItems":3},"to":{"type":["string","null"]},"by":{"$ref":"#/$defs/way"},"with":{"type":"array","minItems":1,"items":{"type":"object","properties":{"who":{"type":"string"},"ok":{"type":"boolean"}},"required":["who"]}},"of":{"type":"object","properties":{"a:b":{"type":"string"}}}},
		"$defs":{"way":{"type":"object","properties":{"kind":{"const":"foot"},"n":{"anyOf":[{"type":"number"},{"type":"null"}]}},"required":["kind"],"additionalProperties":false}}}}},
	{"type":"function","function":{"name":"now"}},
	{"type":"function","function":{"name":"set.text","parameters":{"properties":{"id":{"type":"string","pattern":"^[a-z]{2}-[0-9]+$"},"text":{"type":"string","minLength":1}},"required":["id"]}}}
]`

func judges(t testing.TB, tools string) map[string]*jsonschema.Schema {
	t.Helper()
	var list []struct {
		Function struct {
			Name       string
			Parameters json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(tools), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]*jsonschema.Schema{}
	for _, tool := range list {
		source := string(tool.Function.Parameters)
		if source == "" {
			source = `{"type":"object","maxProperties":0}`
		}
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(source))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource("s.json", doc); err != nil {
			t.Fatal(err)
		}
		if out[tool.Function.Name], err = c.Compile("s.json"); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func allFamilies() []string {
	return []string{"hermes", "hermes-pro", "granite", "phi", "granite-20b", "nemotron", "tool-calls", "apertus",
		"internlm", "gigachat", "functools", "command", "command-r", "mistral", "mistral-args", "llama",
		"llama-xml", "xlam", "functionary", "deepseek", "kimi", "harmony", "gemma", "functiongemma", "pythonic", "lfm2",
		"olmo", "tool-code", "qwen-xml", "seed", "minimax", "dsml", "glm"}
}

// wander makes a random text of a grammar: single bytes, and fragments where they fit.
func wander(t testing.TB, r *rand.Rand, c *grammar.Compiled, fragments []string, length int) string {
	t.Helper()
	m := c.NewMatcher()
	var out []byte
	accept := func(s []byte) bool {
		if m.AcceptBytes(s) != nil {
			return false
		}
		out = append(out, s...)
		return true
	}
	for len(out) < length {
		if m.CanEnd() && r.IntN(40) == 0 {
			return string(out)
		}
		if forced := m.Forced(); len(forced) > 0 {
			accept(forced)
			continue
		}
		if r.IntN(3) == 0 && accept([]byte(fragments[r.IntN(len(fragments))])) {
			continue
		}
		can := m.Bytes()
		if len(can) == 0 {
			break
		}
		b := can[r.IntN(len(can))]
		for range 3 { // prefer readable bytes
			if b < 0x80 && b > ' ' {
				break
			}
			b = can[r.IntN(len(can))]
		}
		accept([]byte{b})
	}
	rest, err := m.Completion()
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return string(append(out, rest...))
}

// offerCase is one offer to one family.
type offerCase struct {
	format   toolcall.Format
	prompt   string
	control  bool // every marker is a control token
	required bool
	single   bool
	function string
}

// TestStructure_ParsesBack writes random texts that the structure of a family allows. The
// parser must read them as calls of offered tools with valid arguments.
func TestStructure_ParsesBack(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for _, family := range allFamilies() {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(7, uint64(len(family))))
			free := 0
			for i := range 16 {
				c := offerCase{format: toolcall.Format{Calls: family}, control: i&1 != 0, required: i&2 != 0,
					single: i&4 != 0}
				if i&8 != 0 && family != "harmony" {
					c.format.Reasoning = "think"
				}
				switch i {
				case 3:
					c.function = "go-to"
				case 8, 11:
					c.prompt = "<think>\n"
				}
				if family == "functionary" && i%3 != 0 {
					c.prompt += ">>>"
				}
				if family == "harmony" && i%3 != 0 {
					c.prompt = "<|start|>assistant"
				}
				if found := c.check(t, r, rounds); c.required && found < rounds {
					t.Errorf("%+v: %d calls in %d texts", c, found, rounds)
				} else if !c.required {
					free += found
				}
			}
			if free == 0 && !testing.Short() { // the short test writes too few texts to expect one
				t.Error("no text with an optional call has a call")
			}
		})
	}
}

func (c *offerCase) compile(t testing.TB) *grammar.Compiled {
	t.Helper()
	markers := c.format.Markers()
	o := toolcall.Offer{Tools: []byte(offers), Function: c.function, Required: c.required, Single: c.single,
		Prompt:  c.prompt,
		Honours: func(schema []byte) error { _, err := grammar.Schema(schema); return err }}
	if c.control {
		o.Control = func(s string) bool { return slices.Contains(markers, s) }
	}
	source, err := c.format.Structure(o)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	g, err := grammar.Structure(source)
	if err != nil {
		t.Fatalf("%+v: %s: %v", c, source, err)
	}
	compiled, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatalf("%+v: %s: %v", c, source, err)
	}
	return compiled
}

func (c *offerCase) check(t *testing.T, r *rand.Rand, rounds int) (found int) {
	t.Helper()
	compiled, judge := c.compile(t), judges(t, offers)
	fragments := append([]string{`{"name": "weather", "arguments": {"city": "`, `{"name": "nothing", "parameters": {}}`,
		"weather(", "[weather(city=", "{", "}", "\n", " ", `"`, `\"`, "'", ",", "<", "</", "|>", "```", "<think>",
		"</think>", "city", "1e999", "-0", "é", "to=weather", "functools", "Action: ```json", "<function=", ">>>",
		"all\n", "```tool_code", "function call<|role_sep|>\n"}, c.format.Markers()...)
	for _, m := range c.format.Markers() {
		fragments = append(fragments, string(grammar.ControlBytes(m)), m[:len(m)/2])
	}
	for range rounds {
		raw := wander(t, r, compiled, fragments, r.IntN(300))
		text := strings.ReplaceAll(raw, "\xff", "")
		if !utf8.ValidString(text) {
			t.Fatalf("%+v: %q is not a complete text", c, text)
		}
		got := read(t, c.format, toolcall.Options{Tools: []byte(offers), Prompt: c.prompt}, false, text)
		var pieces []string
		for rest := []rune(text); len(rest) > 0; {
			n := 1 + r.IntN(min(9, len(rest)))
			pieces, rest = append(pieces, string(rest[:n])), rest[n:]
		}
		if again := read(t, c.format, toolcall.Options{Tools: []byte(offers), Prompt: c.prompt}, false,
			pieces...); !reflect.DeepEqual(again, got) {
			t.Fatalf("%+v: in pieces %q\n%+v\nwhole\n%+v", c, pieces, again, got)
		}
		if err := c.wrong(got, judge); err != nil {
			t.Fatalf("%+v: %v\n%q\n%+v", c, err, raw, got)
		}
		found += len(got.Calls)
	}
	return found
}

func (c *offerCase) wrong(got answer, judge map[string]*jsonschema.Schema) error {
	switch {
	case c.required && len(got.Calls) == 0:
		return fmt.Errorf("no call")
	case c.required && strings.TrimSpace(got.Content) != "":
		return fmt.Errorf("content beside what is required: %q", got.Content)
	case c.single && len(got.Calls) > 1:
		return fmt.Errorf("%d calls", len(got.Calls))
	}
	for _, call := range got.Calls {
		s := judge[call.Name]
		if s == nil || c.function != "" && call.Name != c.function {
			return fmt.Errorf("%q is not offered", call.Name)
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(call.Arguments))
		if err != nil {
			return fmt.Errorf("arguments are not JSON: %v", err)
		}
		if err := s.Validate(v); err != nil {
			return err
		}
	}
	return nil
}

func TestStructure_RefusesByField(t *testing.T) {
	const f = `{"type":"function","function":{"name":"f"}}`
	refuses := func(schema []byte) error { _, err := grammar.Schema(schema); return err }
	for _, c := range []struct {
		family string
		o      toolcall.Offer
		names  string
	}{
		{"hermes", toolcall.Offer{Tools: []byte(`{}`)}, "tools: want a list"},
		{"hermes", toolcall.Offer{Tools: []byte(`[]`)}, "tools: want at least one"},
		{"hermes", toolcall.Offer{Tools: []byte(`[{"type":"web_search"}]`)}, "tools: want at least one"},
		{"hermes", toolcall.Offer{Tools: []byte(`[{"function":{"name":"a b"}}]`)}, "tools[0].function.name"},
		{"hermes", toolcall.Offer{Tools: []byte(`[` + f + `,` + f + `]`)}, "tools[1].function.name"},
		{"hermes", toolcall.Offer{Tools: []byte(`[` + f + `]`), Function: "g"}, `tool_choice: no tool is named "g"`},
		{"hermes", toolcall.Offer{Tools: []byte(
			`[{"name":"f","strict":true,"parameters":{"properties":{"a":{"pattern":"(?=x)"}}}}]`), Honours: refuses},
			"tools[0].parameters"},
		{"hermes", toolcall.Offer{Tools: []byte(`[{"name":"f","strict":true,"parameters":{"type":"array"}}]`)},
			"tools[0].parameters"},
		{"pythonic", toolcall.Offer{Tools: []byte(`[{"name":"f","strict":true,"parameters":{"oneOf":[{},{}]}}]`)},
			"tools[0].parameters"},
		{"pythonic", toolcall.Offer{Tools: []byte(
			`[{"name":"f","parameters":{"properties":{"a b":{}},"required":["a b"]}}]`)}, "tools[0].parameters"},
		{"pythonic", toolcall.Offer{Tools: []byte(`[{"name":"print"}]`)}, "tools[0].name"},
		{"functionary", toolcall.Offer{Tools: []byte(`[{"name":"all"}]`)}, "tools[0].name"},
		{"", toolcall.Offer{Tools: []byte(`[` + f + `]`)}, "knows no calls"},
		{"nonsense", toolcall.Offer{Tools: []byte(`[` + f + `]`)}, `"nonsense"`},
	} {
		if _, err := (toolcall.Format{Calls: c.family}).Structure(c.o); err == nil ||
			!strings.Contains(err.Error(), c.names) {
			t.Errorf("%s, %s: %v, want %q in it", c.family, c.o.Tools, err, c.names)
		}
	}
}

// texts checks that an offer to a family allows the texts in yes and rejects those in not.
func texts(t *testing.T, f toolcall.Format, o toolcall.Offer, yes, not []string) {
	t.Helper()
	source, err := f.Structure(o)
	if err != nil {
		t.Fatal(err)
	}
	g, err := grammar.Structure(source)
	if err != nil {
		t.Fatal(err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range append(slices.Clone(yes), not...) {
		m := c.NewMatcher()
		if fits := m.AcceptBytes([]byte(text)) == nil && m.CanEnd(); fits != (i < len(yes)) {
			t.Errorf("%+v: %q fits: %v", f, text, fits)
		}
	}
}

func TestStructure_OffersOfEveryKind(t *testing.T) {
	const call = `<tool_call>{"name": "now", "arguments": {}}</tool_call>`
	hermes := toolcall.Format{Calls: "hermes"}
	texts(t, hermes, toolcall.Offer{Tools: []byte(offers)}, []string{"", "Hi.", call, "Hi.\n" + call, call + call},
		[]string{"<tool_call>", "Hi. <tool_call>x", call + "Hi.",
			`<tool_call>{"name": "nix", "arguments": {}}</tool_call>`})
	texts(t, hermes, toolcall.Offer{Tools: []byte(offers), Required: true}, []string{call, call + "\n" + call},
		[]string{"", "Hi.", "Hi.\n" + call})
	texts(t, hermes, toolcall.Offer{Tools: []byte(offers), Single: true}, []string{"", "Hi.", "Hi. " + call},
		[]string{call + call})
	texts(t, hermes, toolcall.Offer{Tools: []byte(offers), Function: "go-to"}, []string{"Hi."}, []string{call})
	texts(t, hermes, toolcall.Offer{Tools: []byte(offers), Content: []byte(`{"type":"regex","pattern":"[0-9]+"}`)},
		[]string{"12", call, "\n" + call}, []string{"", "Hi.", "12" + call})
	// Of a schema that cannot be enforced only its being an object is enforced.
	odd := []byte(`[{"function":{"name":"odd","parameters":{"properties":{"a":{"pattern":"(?=x)"}}}}}]`)
	texts(t, hermes, toolcall.Offer{Tools: odd,
		Honours: func(schema []byte) error { _, err := grammar.Schema(schema); return err }},
		[]string{`<tool_call>{"name": "odd", "arguments": {"b":[1]}}</tool_call>`},
		[]string{`<tool_call>{"name": "odd", "arguments": []}</tool_call>`})
	// The reasoning, opened by the prompt or not.
	thinks := toolcall.Format{Calls: "hermes", Reasoning: "think"}
	texts(t, thinks, toolcall.Offer{Tools: []byte(offers), Required: true},
		[]string{call, "<think>hm</think>\n\n" + call},
		[]string{"<think>hm</think>", "hm</think>" + call, "<think>" + call})
	texts(t, thinks, toolcall.Offer{Tools: []byte(offers), Required: true, Prompt: "<think>\n"},
		[]string{"hm</think>\n\n" + call}, []string{call, "<think>hm</think>" + call + "</think>"})
	texts(t, thinks, toolcall.Offer{Tools: []byte(offers)},
		[]string{"hm</think>Hi.", "<think>hm</think>" + call, "hm</think>" + call},
		[]string{"Hi.<think>", "<think>" + call})
	// Markers that are control tokens, and one that ends the text.
	control := func(s string) string { return string(grammar.ControlBytes(s)) }
	o := toolcall.Offer{Tools: []byte(offers), Required: true, Control: func(s string) bool {
		return strings.HasPrefix(s, "<|") && strings.HasSuffix(s, "|>") && !strings.Contains(s[1:], "<")
	},
		Ends: func(s string) bool { return s == "<|call|>" }}
	head := control("<|channel|>") + "commentary to=functions.now " + control("<|constrain|>") + "json" +
		control("<|message|>") + "{}"
	texts(t, toolcall.Format{Calls: "harmony"}, o, []string{head, head + control("<|call|>")},
		[]string{"<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}",
			control("<|channel|>") + "final" + control("<|message|>") + "Hi."})
}
