package grammar_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

func compileSchema(t testing.TB, source string) *grammar.Compiled {
	t.Helper()
	g, err := grammar.Schema([]byte(source))
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return c
}

func TestSchema_Texts(t *testing.T) {
	for _, c := range []struct {
		source   string
		yes, not []string
	}{
		{`{"type":"object","properties":{"a":{},"b":{"type":"null"}},"additionalProperties":false}`,
			[]string{`{}`, `{"a":1}`, `{"a":1,"b":null}`, `{ "b" : null }`},
			[]string{`{"b":null,"a":1}`, `{"c":1}`, `{"a":1,}`, `{,"a":1}`}},
		{`{"properties":{"a":{"type":"integer"}},"required":["a"],"type":"object"}`,
			[]string{`{"a":1}`, `{"x":2,"a":1,"aa":[]}`},
			[]string{`{"x":1}`, `{"a":""}`, `{"\u0061":""}`, `{"a":1,"a":""}`}},
		{`{"type":"number","minimum":-1.5,"exclusiveMaximum":2}`, []string{"-1.5", "0", "-0.00", "1.999", "-1.4999999"},
			[]string{"-1.51", "2", "2.0", "-2", "1e0"}},
		{`{"type":"integer","minimum":5,"multipleOf":3}`, []string{"6", "9", "6.0", "3000000000000"},
			[]string{"5", "3", "7", "6.5", "06"}},
		{`{"type":"number","multipleOf":0.01}`, []string{"1", "1.25", "-0.50", "3.100"}, []string{"1.255", "1.001"}},
		{`{"type":"number","not":{"type":"integer"}}`, []string{"1.5", "-0.001"}, []string{"1", "2.0", "0"}},
		{`{"enum":["a",1,null,{"x":[1]}]}`, []string{`"a"`, "1", "null", `{"x": [1]}`, "1.0"},
			[]string{`"b"`, "2", `{}`, `{"x":[2]}`}},
		{`{"type":"string","pattern":"^é+$","maxLength":2}`, []string{`"é"`, `"\u00e9é"`}, []string{`"ééé"`, `""`}},
		{`{"type":"string","not":{"enum":["x","yy"]}}`, []string{`"y"`, `""`, `"xx"`}, []string{`"x"`, `"yy"`, "1"}},
		{`{"anyOf":[{"type":"string"},{"minimum":3}],"type":["string","number"]}`, []string{`"x"`, "3", "4.5"},
			[]string{"2", "null"}},
		{`{"oneOf":[{"type":"integer"},{"minimum":2}],"type":"number"}`, []string{"1", "2.5", "-7"},
			[]string{"3", "1.5"}},
		{`{"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"null"}},"required":["b"]}],"type":"object"}`,
			[]string{`{"a":1,"b":null}`, `{"b":null,"a":1}`}, []string{`{"a":1}`, `{"a":null,"b":null}`}},
		{`{"$defs":{"n":{"type":"object","properties":{"next":{"$ref":"#/$defs/n"}},"additionalProperties":false}},"$ref":"#/$defs/n"}`,
			[]string{`{}`, `{"next":{"next":{}}}`}, []string{`{"next":1}`}},
		{`{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false}`,
			[]string{"[]", "[1]", `[1,"a"]`}, []string{`[1,"a",2]`, `["a"]`}},
		{`{"type":"array","items":[{"type":"integer"}],"additionalItems":{"type":"null"},"minItems":1}`,
			[]string{"[1]", "[1,null,null]"}, []string{"[]", "[1,2]"}},
		{`{"type":"array","contains":{"type":"integer"},"minContains":2,"maxContains":3}`,
			[]string{`[1,"a",2]`, "[1,2,3]", `[[],1,2]`}, []string{"[1]", "[1,2,3,4]", "[]"}},
		{`{"type":"object","patternProperties":{"^s":{"type":"string"}},"additionalProperties":{"type":"integer"}}`,
			[]string{`{"s1":"x","t":1}`, `{}`}, []string{`{"s1":1}`, `{"t":"x"}`, `{"\u0073":1}`}},
		{`{"type":"object","propertyNames":{"pattern":"^[a-z]$"},"maxProperties":2,"minProperties":1}`,
			[]string{`{"a":1}`, `{"a":1,"b":2}`}, []string{`{}`, `{"A":1}`, `{"a":1,"b":2,"c":3}`}},
		{`{"if":{"properties":{"k":{"const":1}},"required":["k"]},"then":{"required":["x"]},"else":{"required":["y"]},"type":"object"}`,
			[]string{`{"k":1,"x":0}`, `{"k":2,"y":0}`, `{"y":0}`}, []string{`{"k":1,"y":0}`, `{"x":0}`, `{"k":1}`}},
		{`{"type":"object","dependentRequired":{"a":["b"]}}`, []string{`{}`, `{"a":1,"b":2}`, `{"b":1}`},
			[]string{`{"a":1}`}},
		{`{"type":"object","properties":{"a":{}},"not":{"additionalProperties":{"type":"integer"}}}`,
			[]string{`{"x":"s"}`, `{"a":"s"}`, `{"z":1,"x":"s"}`}, []string{`{"x":1}`, `{}`}},
		{`{"type":"object","allOf":[{"properties":{"a":{}}}],"unevaluatedProperties":false}`, []string{`{"a":1}`, `{}`},
			[]string{`{"b":1}`}},
		{`{"not":{"not":{"type":"string"}}}`, []string{`"a"`}, []string{"1"}},
		{`{"type":"array","items":{"type":"string"},"uniqueItems":true}`,
			[]string{`[]`, `["a"]`, `["a","ab", "b"]`, `["é","\n"]`},
			[]string{`["a","a"]`, `["a","b","a"]`, `["a","\u0061"]`, `["é","\u00e9"]`}},
		{`{"type":"array","items":{"type":"integer"},"uniqueItems":true}`, []string{`[1,12,2]`, `[12,1]`, `[-1,1,0]`},
			[]string{`[1,1]`, `[0,-0]`, `[1,1.0]`, `[12,3,12]`}},
		{`{"type":"array","items":{"type":"boolean"},"uniqueItems":true,"minItems":2}`,
			[]string{`[true,false]`, `[false, true]`}, []string{`[true]`, `[true,true]`, `[true,false,true]`}},
		{`{"type":"array","items":{"type":"object","properties":{"a":{"type":"array","items":{"type":"number"}}},"additionalProperties":false},"uniqueItems":true}`,
			[]string{`[{"a": [1]}, {"a": [1, 2]}, {}]`, `[{"a": [0.5]}]`},
			[]string{`[{"a": [1]}, {"a": [1]}]`, `[{},{}]`, `[{"a":[1]}, {"a": [1]}]`}},
		{`{"type":"array","prefixItems":[{"type":"integer"},{"type":"integer"}],"items":{"enum":[1,2]},"uniqueItems":true,"maxItems":4}`, []string{`[3,4,1,2]`, `[1,2]`}, []string{`[1,1]`, `[1,3,1]`}},
		{`{"type":"object","additionalProperties":{"type":"array","items":{"enum":["a","b"]},"uniqueItems":true}}`,
			[]string{`{"x":["a","b"],"y":["b","a"]}`}, []string{`{"x":["a","a"]}`}},
		{`{"type":"string","format":"color"}`, []string{`"red"`}, []string{"1"}},
		{`{"type":"integer"}`, []string{"98249283749234923498293171823948729348710298301928331"},
			[]string{"1e3", "00"}},
		{`{"type":"integer","minimum":3,"multipleOf":2}`,
			[]string{"98249283749234923498293171823948729348710298301928332"},
			[]string{"2", "98249283749234923498293171823948729348710298301928331"}},
		{`{"type":"number","minimum":0.5}`, []string{"0.500000000000000000000000000001", "1"},
			[]string{"0.499999999999999999999999999999", "-1"}},
		{`{"type":"string","pattern":"^\\s$"}`, []string{`"\u2003"`, `" "`, `"\u000b"`}, []string{`"a"`}},
		{`{"type":"array","prefixItems":[true],"contains":{"type":"string"},"unevaluatedItems":false}`,
			[]string{`[1,"a"]`, `["a"]`}, []string{`[1,2,"a"]`, `[1]`}},
		{`{"type":"object","anyOf":[{"properties":{"a":{"const":1}},"required":["a"]},{"properties":{"b":{"const":2}},"required":["b"]}],"unevaluatedProperties":false}`,
			[]string{`{"a":1}`, `{"b":2}`, `{"a":1,"b":2}`}, []string{`{"a":1,"b":3}`, `{"a":1,"c":2}`}},
		{`{"oneOf":[{"type":"object","properties":{"a":{}},"unevaluatedProperties":false},{"type":"object","properties":{"a":{"type":"integer"},"b":{}}}]}`,
			[]string{`{"a":"x"}`, `{"a":1,"b":2}`, `{"c":1}`}, []string{`{"a":1}`, `{"a":"x","b":2}`}},
		{`{"$id":"s:/tree","$dynamicAnchor":"node","type":"object","properties":{"v":{},"c":{"type":"array","items":{"$dynamicRef":"#node"}}},"additionalProperties":false}`,
			[]string{`{"v":1,"c":[{"v":2}]}`}, []string{`{"c":[{"w":1}]}`, `{"c":[1]}`}},
		{`{"$id":"s:/strict","$dynamicAnchor":"node","$ref":"tree","unevaluatedProperties":false,"$defs":{"t":{"$id":"tree","$dynamicAnchor":"node","type":"object","properties":{"c":{"type":"array","items":{"$dynamicRef":"#node"}}}}}}`,
			[]string{`{"c":[{"c":[]}]}`}, []string{`{"c":[{"x":1}]}`, `{"x":1}`}},
		{`true`, []string{"1", `{"a":[1,2e5,-0.5]}`, ` null`[1:]}, []string{"", " null", "01", "nul", "[1,]"}},
	} {
		g := compileSchema(t, c.source)
		for _, text := range c.yes {
			if !accepts(g, text) {
				t.Errorf("%s refuses %.60s", c.source, text)
			}
		}
		for _, text := range c.not {
			if accepts(g, text) {
				t.Errorf("%s accepts %.60s", c.source, text)
			}
		}
	}
}

func TestSchemaWith_Documents(t *testing.T) {
	source := []byte(
		`{"$id":"https://example.com/a","type":"object","properties":{"x":{"$ref":"b#/$defs/n"}},"required":["x"],"additionalProperties":false}`,
	)
	documents := map[string][]byte{"https://example.com/b": []byte(
		`{"$defs":{"n":{"$ref":"#i"},"i":{"$anchor":"i","type":"integer"}}}`)}
	g, err := grammar.SchemaWith(source, grammar.SchemaOptions{Documents: documents})
	if err != nil {
		t.Fatal(err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !accepts(c, `{"x":1}`) || accepts(c, `{"x":"a"}`) {
		t.Error("x is not held to what the other document says")
	}
	documents["https://example.com/b"] = []byte(`{"$defs":{"n":{"type":"text"}}}`)
	var syntax *grammar.SyntaxError
	if _, err := grammar.SchemaWith(source, grammar.SchemaOptions{Documents: documents}); !errors.As(err, &syntax) ||
		!strings.Contains(err.Error(), "https://example.com/b#/$defs/n") {
		t.Errorf("%v, want a syntax error that names the other document", err)
	}
}

func TestSchema_Refuses(t *testing.T) {
	var unsupported *grammar.UnsupportedError
	for _, c := range []struct{ source, feature, path string }{
		{`{"properties":{"a":{"$ref":"https://example.com/x"}}}`, "$ref https://example.com/x", "/properties/a/$ref"},

		{`{"type":"string","pattern":"a(?=b)"}`, `pattern "a(?=b)"`, ""},
		{`{"$ref":"#"}`, "$ref", ""},
		{`{"type":"object","minProperties":2}`, "minProperties", ""},
		{`{"properties":{"a":{"type":"array","uniqueItems":true}}}`, "uniqueItems", "/properties/a"},
		{`{"$schema":"https://example.com/dialect"}`, "$schema https://example.com/dialect", ""},
	} {
		_, err := grammar.Schema([]byte(c.source))
		if !errors.As(err, &unsupported) || unsupported.Feature != c.feature || unsupported.Path != c.path {
			t.Errorf("%s: %v, want %s at %q", c.source, err, c.feature, c.path)
		}
	}
	var syntax *grammar.SyntaxError
	for _, source := range []string{"", "{", "1", `{"type":"text"}`, `{"properties":[]}`, `{"items":1}`,
		`{"minLength":-1}`, `{"enum":1}`, `{"anyOf":[]}`, "{} {}", `{"pattern":"("}`, "\"\xff\""} {
		if _, err := grammar.Schema([]byte(source)); !errors.As(err, &syntax) {
			t.Errorf("%s: %v, want a syntax error", source, err)
		}
	}
}
