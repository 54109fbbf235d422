package toolcall_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// controlVocabulary returns every byte, some pieces of text, and control tokens for the markers
// of a format. The last token ends a text.
func controlVocabulary(t testing.TB, markers []string) (*grammar.Vocabulary, [][]byte) {
	t.Helper()
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for _, s := range []string{`{"`, `":`, `": "`, `"}`, `, "`, "weather", "city", "days", "name", "arguments", " the",
		"The", "call", "<|", "|>", "[", "tool", "TOOL", "_CALLS]", "functions.", " to=", "commentary", "analysis",
		"final", "json", "\n\n"} {
		tokens = append(tokens, []byte(s))
	}
	for _, m := range markers {
		tokens = append(tokens, []byte(m), grammar.ControlBytes(m))
	}
	tokens = append(tokens, grammar.ControlBytes("<eos>"))
	v, err := grammar.NewVocabulary(tokens, int32(len(tokens)-1))
	if err != nil {
		t.Fatal(err)
	}
	return v, tokens
}

// TestStructure_OpensCallsWithControlTokens follows masks over a vocabulary whose markers are
// control tokens. Calls must begin with those tokens and no other text, and parse as offered.
func TestStructure_OpensCallsWithControlTokens(t *testing.T) {
	judge := judges(t, offers)
	for _, family := range []string{"mistral", "mistral-args", "harmony", "gemma", "functiongemma", "deepseek", "kimi",
		"command", "llama", "granite", "hermes", "qwen-xml", "dsml", "glm", "lfm2"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			f := toolcall.Format{Calls: family}
			markers := slices.DeleteFunc(f.Markers(), func(m string) bool {
				return m == ">" || m == `">` || strings.HasPrefix(m, "<function") || strings.HasPrefix(m, "<param")
			})
			v, tokens := controlVocabulary(t, markers)
			c := offerCase{format: f, required: true, prompt: "<|start|>assistant"}
			source, err := f.Structure(
				toolcall.Offer{Tools: []byte(offers), Required: true, Prompt: c.prompt,
					Control: func(s string) bool { return slices.Contains(markers, s) }})
			if err != nil {
				t.Fatal(err)
			}
			g, err := grammar.Structure(source)
			if err != nil {
				t.Fatal(err)
			}
			compiled, err := grammar.Compile(g, v)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(3, 4))
			mask := make([]uint64, v.Words())
			for range 12 {
				m := compiled.NewMatcher()
				var raw []byte
				controls := 0
				for n := 0; n < 120; n++ {
					if err := m.Mask(mask); err != nil {
						t.Fatal(err)
					}
					var may []int32
					for id := range int32(v.Size()) {
						if mask[id>>6]>>(id&63)&1 != 0 {
							may = append(may, id)
						}
					}
					if len(may) == 0 {
						t.Fatalf("nothing may follow %q", raw)
					}
					id := may[r.IntN(len(may))]
					if err := m.Accept(id); err != nil {
						t.Fatalf("%q after %q: %v", tokens[id], raw, err)
					}
					if int(id) == len(tokens)-1 {
						break
					}
					if _, ok := grammar.ControlSpelling(tokens[id]); ok {
						controls++
					}
					raw = append(raw, tokens[id]...)
				}
				rest, err := m.Completion()
				if err != nil {
					t.Fatal(err)
				}
				text := string(append(raw, rest...))
				if signs := strings.Count(text, "\xff"); signs == 0 && family != "llama" || signs%2 != 0 {
					t.Fatalf("%d signs in %q", signs, text)
				}
				got := read(t, f, toolcall.Options{Tools: []byte(offers), Prompt: c.prompt}, false,
					strings.ReplaceAll(text, "\xff", ""))
				if err := c.wrong(got, judge); err != nil {
					t.Fatalf("%v\n%q\n%+v", err, text, got)
				}
			}
		})
	}
}

func FuzzStructure(f *testing.F) {
	for i, tools := range []string{offers, tools, ownTools,
		`[{"name":"f","parameters":{"properties":{"a":{"type":"array","items":{"$ref":"#/$defs/x"}}},"$defs":{"x":{"enum":["a"]}}}}]`} {
		f.Add(tools, "<think>\n", uint8(i))
	}
	families := allFamilies()
	f.Fuzz(func(t *testing.T, tools, prompt string, n uint8) {
		if len(tools) > 4096 {
			return
		}
		format := toolcall.Format{Calls: families[int(n)%len(families)], Reasoning: "think"}
		source, err := format.Structure(
			toolcall.Offer{Tools: []byte(tools), Prompt: prompt, Required: n&1 != 0,
				Control: func(s string) bool { return n&2 != 0 && len(s) == 3 },
				Honours: func(schema []byte) error { _, err := grammar.Schema(schema); return err }})
		if err != nil {
			return
		}
		var limit *grammar.LimitError
		if _, err := grammar.Structure(source); err != nil && !errors.As(err, &limit) {
			t.Fatalf("%s: %v", source, err)
		}
	})
}
