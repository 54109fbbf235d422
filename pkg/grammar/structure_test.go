package grammar_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

func TestStructure_Parts(t *testing.T) {
	const x = `{"type":"object","properties":{"x":{"type":"integer"}},"required":["x"],"additionalProperties":false}`
	for _, c := range []struct {
		source   string
		yes, not []string
	}{
		{`{"type":"const_string","value":"a\"b"}`, []string{`a"b`}, []string{"", "a"}},
		{`{"type":"json_schema","json_schema":` + x + `}`, []string{`{"x":1}`}, []string{`{"x":"1"}`, ""}},
		{`{"type":"json_schema","max_whitespace":1,"json_schema":` + x + `}`, []string{`{"x":1}`, `{ "x" : 1 }`},
			[]string{`{"x":  1}`}},
		{`{"type":"json_schema","max_whitespace":0,"json_schema":` + x + `}`, []string{`{"x":1}`},
			[]string{`{"x": 1}`}},
		{`{"type":"regex","pattern":"a+|b"}`, []string{"a", "aa", "b"}, []string{"ab", ""}},
		{`{"type":"grammar","grammar":"root ::= \"x\" root?"}`, []string{"x", "xx"}, []string{"", "y"}},
		{`{"type":"any_text"}`, []string{"", "any\n日本"}, []string{"\xff"}},
		{`{"type":"any_text","excludes":["ab","<"]}`, []string{"", "a", "ba", "aa b"}, []string{"ab", "xaabx", "<"}},
		{`{"type":"any_text","excludes":["ab"],"not_first":"{["}`, []string{"", "x{", "a{", " \n", "\nx ["},
			[]string{"{", " {", "[x", "ab", "xab"}},
		{`{"triggers":["<"],"not_first":"{","stop_after_first":true,"tags":[{"begin":"<a","content":{"type":"const_string","value":""}}]}`, []string{"", "<a", " x{<a", " <a"}, []string{"{", " {<a", "<", "<a<a"}},
		{`{"type":"sequence","elements":[{"type":"any_text","excludes":["."]},{"type":"const_string","value":"."},{"type":"optional","content":{"type":"const_string","value":"!"}}]}`,
			[]string{".", "a.", "a.!"}, []string{"a", "a..", "!"}},
		{`{"type":"or","elements":[{"type":"const_string","value":"a"},{"type":"plus","content":{"type":"regex","pattern":"[b-d]"}}]}`, []string{"a", "b", "bcd"}, []string{"", "ab"}},
		{`{"type":"star","content":{"type":"const_string","value":"ab"}}`, []string{"", "ab", "abab"},
			[]string{"a", "aba"}},
		{`{"type":"repeat","min":1,"max":2,"content":{"type":"const_string","value":"ab"}}`, []string{"ab", "abab"},
			[]string{"", "ababab"}},
		{`{"type":"tag","begin":"<a>","content":{"type":"any_text"},"end":["</a>","."]}`,
			[]string{"<a></a>", "<a>x<.", "<a>x</a>"}, []string{"<a>", "<a>.</a>", "<a></a></a>"}},
		{`{"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f"],"tags":[{"begin":"<f=a>","content":{"type":"json_schema","json_schema":` + x + `},"end":"</f>"},{"type":"tag","begin":"<f=b>","schema":` + x + `}]}}`,
			[]string{"", "free <", `a<f=a>{"x":1}</f> and <f=b>{"x":2}.`}, []string{"<f", "<f=c>", `<f=a>{}</f>`}},
		{`{"type":"structural_tag","structures":[{"begin":"<f=a>","schema":` + x +
			`,"end":"</f>"}],"triggers":["<f="]}`, []string{"free", `<f=a>{"x":1}</f>.`}, []string{"<f=b>"}},
		{`{"tags":[{"begin":"<a>","schema":` + x + `,"end":"<"}],"at_least_one":true,"stop_after_first":true}`,
			[]string{`x<a>{"x":1}<`}, []string{"", "x", `<a>{"x":1}<.`}},
		{`{"type":"tags_with_separator","separator":", ","tags":[{"begin":"a","content":{"type":"const_string","value":"b"},"end":"c"}]}`, []string{"", "abc", "abc, abc"}, []string{"abc, ", "x", "abcabc"}},
		{`{"type":"tags_with_separator","at_least_one":true,"stop_after_first":true,"tags":[{"begin":"a","content":{"type":"const_string","value":"b"},"end":"c"}]}`, []string{"abc"}, []string{"", "abcabc"}},
	} {
		g, err := grammar.Structure([]byte(c.source))
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		check(t, c.source, compiled(t, g, nil), c.yes, c.not)
	}
}

func TestStructure_RefusesByName(t *testing.T) {
	for source, names := range map[string]string{
		`[]`:                                "want an object",
		`{} {}`:                             "text after the object",
		`{`:                                 "want an object",
		`{"type":"nonsense"}`:               `type "nonsense"`,
		`{"type":"const_string"}`:           "value: is missing",
		`{"type":"const_string","value":1}`: "value: want a string",
		`{"type":"const_string","value":"a","x":1}`:                                      "compile tags: x",
		`{"type":"json_schema","json_schema":{"$dynamicRef":"#x"}}`:                      "$dynamicRef",
		`{"type":"json_schema","max_whitespace":-2,"json_schema":{}}`:                    "max_whitespace",
		`{"type":"regex","pattern":"("}`:                                                 "read tags at pattern",
		`{"type":"regex","pattern":1}`:                                                   "pattern: want a string",
		`{"type":"grammar","grammar":"x"}`:                                               "read tags at grammar",
		`{"type":"any_text","excludes":[""]}`:                                            "excludes",
		`{"type":"sequence","elements":[]}`:                                              "elements: want at least one",
		`{"type":"sequence","elements":[{"type":"any_text"},{"value":"x"}]}`:             "elements[1].type: is missing",
		`{"type":"sequence","elements":[{"type":"star"}]}`:                               "elements[0].content: is missing",
		`{"type":"repeat","min":3,"max":2,"content":{"type":"any_text"}}`:                "3 to 2",
		`{"type":"token","token":""}`:                                                    "token: want the spelling",
		`{"tags":[]}`:                                                                    "tags: want at least one",
		`{"tags":[{"begin":"","schema":{}}]}`:                                            "tags[0].begin",
		`{"tags":[{"begin":"a"}]}`:                                                       "tags[0].content: is missing",
		`{"tags":[{"begin":{"type":"regex","pattern":"a"},"schema":{}}]}`:                "tags[0].begin.type",
		`{"tags":[{"begin":"a","schema":{},"end":[]}]}`:                                  "tags[0].end",
		`{"tags":[{"begin":"a","schema":{}}],"triggers":["b"]}`:                          "does not start with a trigger",
		`{"tags":[{"begin":"a","schema":{}}],"triggers":[""]}`:                           "triggers[0]",
		`{"tags":[{"begin":"a","schema":{}}],"separator":","}`:                           "separator",
		`{"tags":[{"begin":"a","schema":{"type":"strin"}}]}`:                             "tags[0].schema",
		`{"type":"structural_tag","format":{"type":"any_text"},"triggers":["a"]}`:        "triggers",
		strings.Repeat(`{"type":"star","content":`, 70) + `{}` + strings.Repeat(`}`, 70): "parts within parts",
	} {
		_, err := grammar.Structure([]byte(source))
		if err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v, want %q in it", source, err, names)
		}
		var syntax *grammar.SyntaxError
		var not *grammar.UnsupportedError
		var limit *grammar.LimitError
		if !errors.As(err, &syntax) && !errors.As(err, &not) && !errors.As(err, &limit) {
			t.Errorf("%s: %T", source, err)
		}
	}
}

// Control tokens fit only where they are asked for, and no text stands for one.
func TestStructure_ControlTokens(t *testing.T) {
	tokens := [][]byte{grammar.ControlBytes("[CALL]"), []byte("[CALL]"), []byte("["), []byte("CALL"), []byte("]"),
		[]byte("a"), {0xFF}, []byte("\xffx"), grammar.ControlBytes("</s>"),
		nil, grammar.ControlBytes("[ARGS]"), []byte("\xff\xff")}
	v, err := grammar.NewVocabulary(tokens, 8)
	if err != nil {
		t.Fatal(err)
	}
	follow := func(source string, ids ...int32) (mask []int32, err error) {
		g, err := grammar.Structure([]byte(source))
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		c, err := grammar.Compile(g, v)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		m := c.NewMatcher()
		words := make([]uint64, v.Words())
		for _, id := range ids {
			if err := m.Mask(words); err != nil {
				return nil, err
			}
			fits := words[id>>6]>>(id&63)&1 != 0
			if err := m.Accept(id); (err == nil) != fits {
				t.Fatalf("%s: id %d fits the mask: %v, is accepted: %v", source, id, fits, err)
			} else if err != nil {
				return nil, err
			}
		}
		if err := m.Mask(words); err != nil {
			return nil, err
		}
		for id := range int32(len(tokens)) {
			if words[id>>6]>>(id&63)&1 != 0 {
				mask = append(mask, id)
			}
		}
		return mask, nil
	}
	const call = `{"type":"triggered_tags","triggers":["[CALL]"],"stop_after_first":true,"tags":[{"begin":{"type":"token","token":"[CALL]"},"content":{"type":"regex","pattern":"a+"},"end":{"type":"token","token":"[ARGS]"}},
		{"begin":"[CALL]a","content":{"type":"const_string","value":"a"}}]}`
	for _, c := range []struct {
		source string
		ids    []int32
		want   []int32
		fails  bool
	}{
		{`{"type":"any_text"}`, nil, []int32{1, 2, 3, 4, 5, 8}, false},
		{`{"type":"any_text"}`, []int32{0}, nil, true},
		{`{"type":"json_schema","json_schema":{"type":"string"}}`, []int32{0}, nil, true},
		{`{"type":"token","token":"[CALL]"}`, nil, []int32{0}, false},
		{`{"type":"token","token":"[CALL]"}`, []int32{0}, []int32{8}, false},
		{`{"type":"token","token":"[CALL]"}`, []int32{1}, nil, true},
		{`{"type":"const_string","value":"[CALL]"}`, nil, []int32{1, 2}, false},
		{`{"type":"token","token":"</s>"}`, nil, nil, false},
		{call, nil, []int32{0, 1, 2, 3, 4, 5, 8}, false},
		{call, []int32{5, 0}, []int32{5}, false},
		{call, []int32{0, 5}, []int32{5, 10}, false},
		{call, []int32{0, 5, 10}, []int32{8}, false},
		{call, []int32{2, 3}, []int32{1, 2, 3, 4, 5, 8, 0}, false},
		{call, []int32{2, 3, 4}, []int32{5}, false}, // the trigger as text
		{call, []int32{2, 3, 4, 5, 5}, []int32{8}, false},
	} {
		got, err := follow(c.source, c.ids...)
		if (err != nil) != c.fails || len(got) != len(c.want) {
			t.Errorf("%s after %v: %v %v, want %v", c.source, c.ids, got, err, c.want)
			continue
		}
		seen := map[int32]bool{}
		for _, id := range got {
			seen[id] = true
		}
		for _, id := range c.want {
			if !seen[id] {
				t.Errorf("%s after %v: %v, want %v", c.source, c.ids, got, c.want)
			}
		}
	}
}

func FuzzStructure(f *testing.F) {
	v := fuzzVocabulary(f)
	for _, source := range []string{
		`{"tags":[{"begin":"<a>","schema":{"type":"integer"},"end":"</a>"}],"triggers":["<"],"at_least_one":true}`,
		`{"type":"sequence","elements":[{"type":"any_text","excludes":["ab"]},{"type":"token","token":"x"},{"type":"or","elements":[{"type":"regex","pattern":"a*"},{"type":"repeat","min":2,"content":{"type":"const_string","value":"q"}}]}]}`,
		`{"type":"structural_tag","format":{"type":"tags_with_separator","separator":";","tags":[{"begin":{"type":"token","token":"x"},"content":{"type":"grammar","grammar":"root ::= [a-z]"},"end":["a","b"]}]}}`,
	} {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		g, err := grammar.Structure([]byte(source))
		explore(t, v, g, err)
	})
}

// The masks around free text agree with Accept, also where a tag's body or another rule may
// follow at once.
func TestStructure_MasksAreExact(t *testing.T) {
	v, words := qwenVocabulary(t)
	const tags = `"triggers":["<tool_call>","<think>","</think>"],"stop_after_first":true,"tags":[{"begin":"<tool_call>","content":{"type":"regex","pattern":"[a-z ]+"},"end":"</tool_call>"}]`
	think := `{"type":"optional","content":{"type":"sequence","elements":[{"type":"const_string","value":"<think>"},{"type":"any_text","excludes":["</think>","<tool_call>"]},{"type":"const_string","value":"</think>"}]}}`
	free := `{"type":"triggered_tags",` + tags + `}`
	const own = `{"type":"regex","pattern":"(?:[^<]|<(?:[^t<]|t(?:[^o<]|o[^o<]|oo[^o<]|ooo[^o<]|oooo[^o<]|ooooo[^o<])))*"}`
	for _, source := range []string{
		free,
		`{"type":"sequence","elements":[` + think + `,` + free + `]}`,
		`{"type":"triggered_tags","not_first":"{[",` + tags + `}`,
		`{"type":"sequence","elements":[` + free + `,{"type":"regex","pattern":"( END)*"}]}`,
		// The regular expression is a rule of its own, which may end after any character.
		`{"type":"sequence","elements":[` + own +
			`,{"type":"or","elements":[{"type":"const_string","value":"<top>"},{"type":"const_string","value":" a b"}]},` + own + `]}`,
		`{"type":"tag","begin":"","content":{"type":"or","elements":[` + free +
			`,{"type":"json_schema","json_schema":{"type":"object"}}]},"end":"!"}`,
	} {
		g, err := grammar.Structure([]byte(source))
		if err != nil {
			t.Fatal(err)
		}
		c, err := grammar.Compile(g, v)
		if err != nil {
			t.Fatal(err)
		}
		mask := make([]uint64, v.Words())
		for _, text := range []string{"", " ", "<", "<t", "<think>a", "<think>a</", "Hello", "Hello <tool_c",
			"Hello</th", "a <tool_call>b", "a <tool_call>b</tool_call>", "{", "a END", "a <x<", "a <to"} {
			ids, err := words.Encode(text, vocab.Options{})
			if err != nil {
				t.Fatal(err)
			}
			m := c.NewMatcher()
			fits := true
			for _, id := range ids {
				fits = fits && m.Accept(id) == nil
			}
			if !fits {
				continue
			}
			if err := m.Mask(mask); err != nil {
				t.Fatal(err)
			}
			wrong := 0
			for id := range int32(v.Size()) {
				token := v.Token(id)
				if id%23 != 0 && !bytes.ContainsAny(token, "<[{! \n") {
					continue
				}
				err := m.Accept(id)
				if err == nil {
					if err := m.Rollback(1); err != nil {
						t.Fatal(err)
					}
				}
				if has(mask, id) != (err == nil) {
					if wrong++; wrong < 4 {
						t.Errorf("%s after %q: %q is masked in: %v, accepted: %v", source, text, token, has(mask, id),
							err)
					}
				}
			}
		}
	}
}
