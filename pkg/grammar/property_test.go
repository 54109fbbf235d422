package grammar_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// schemaMaker writes random schemas.
type schemaMaker struct{ r *rand.Rand }

func (s schemaMaker) pick(of ...any) any { return of[s.r.IntN(len(of))] }

func (s schemaMaker) coin() bool { return s.r.IntN(2) == 0 }

func (s schemaMaker) schema(depth int) any {
	kind := s.r.IntN(14)
	if depth == 0 {
		kind = s.r.IntN(7)
	}
	switch kind {
	case 0:
		return s.integer()
	case 1:
		return s.number()
	case 2, 3:
		return s.text()
	case 4:
		return map[string]any{"enum": []any{"a", "bc", 1, 2.5, nil, true, []any{1, "x"},
			map[string]any{"k": 1}}[s.r.IntN(4):]}
	case 5:
		return map[string]any{"type": s.pick("boolean", "null", []any{"boolean", "string"}, []any{"integer", "null"})}
	case 6:
		return map[string]any{"const": s.pick("x", 7, -0.25, false, "é\"\\\n")}
	case 7, 8:
		return s.object(depth - 1)
	case 9:
		return s.array(depth - 1)
	case 10:
		return map[string]any{"anyOf": []any{s.schema(depth - 1), s.schema(depth - 1)}}
	case 11:
		return map[string]any{"oneOf": []any{s.schema(depth - 1), s.schema(depth - 1)}}
	case 12:
		return map[string]any{"allOf": []any{s.object(depth - 1), s.object(depth - 1)}}
	}
	if s.coin() {
		return map[string]any{"$ref": "#/$defs/node"}
	}
	return map[string]any{"type": s.pick("string", "integer", "object"), "not": s.schema(0)}
}

func (s schemaMaker) integer() any {
	out := map[string]any{"type": "integer"}
	if s.coin() {
		out["minimum"] = s.r.IntN(2000) - 1000
	}
	if s.coin() {
		out[s.pick("maximum", "exclusiveMaximum").(string)] = s.r.IntN(2000) + 1000
	}
	if s.r.IntN(3) == 0 {
		out["multipleOf"] = s.pick(2, 3, 7, 10)
	}
	return out
}

func (s schemaMaker) number() any {
	out := map[string]any{"type": "number"}
	if s.coin() {
		out[s.pick("minimum", "exclusiveMinimum").(string)] = json.Number(
			fmt.Sprintf("%d.%02d", s.r.IntN(40)-20, s.r.IntN(100)))
	}
	if s.coin() {
		out["maximum"] = 25.5
	}
	if s.r.IntN(3) == 0 {
		out["multipleOf"] = s.pick(json.Number("0.01"), json.Number("0.5"), json.Number("1.25"))
	}
	return out
}

func (s schemaMaker) text() any {
	out := map[string]any{"type": "string"}
	switch s.r.IntN(5) {
	case 0:
		out["minLength"] = s.r.IntN(4)
		out["maxLength"] = 4 + s.r.IntN(6)
	case 1:
		out["pattern"] = s.pick(`^[a-c]+$`, `^\d{2,4}-\w+$`, `x`, `^(ab|c)*$`, `[^a]$`, `^.{3}$`)
	case 2:
		out["format"] = s.pick("date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri",
			"json-pointer", "duration", "uri-reference")
	case 3:
		out["pattern"] = `^[a-z]*$`
		out["maxLength"] = 6
	}
	return out
}

func (s schemaMaker) object(depth int) any {
	properties := map[string]any{}
	var required []any
	for _, name := range []string{"a", "b", "name", "é", "id"}[:1+s.r.IntN(5)] {
		properties[name] = s.schema(max(depth, 0))
		if s.coin() {
			required = append(required, name)
		}
	}
	out := map[string]any{"type": "object", "properties": properties}
	if required != nil {
		out["required"] = required
	}
	switch s.r.IntN(8) {
	case 0, 1, 2:
		out["additionalProperties"] = false
	case 3:
		out["additionalProperties"] = map[string]any{"type": "integer"}
	case 4:
		out["patternProperties"] = map[string]any{"^x": map[string]any{"type": "string"}}
		out["additionalProperties"] = s.coin()
	case 5:
		out["propertyNames"] = map[string]any{"maxLength": 3}
	case 6:
		out["maxProperties"] = 3
	case 7:
		out["dependentRequired"] = map[string]any{"a": []any{"b"}}
	}
	if s.r.IntN(6) == 0 {
		out["if"] = map[string]any{"properties": map[string]any{"a": map[string]any{"type": "string"}},
			"required": []any{"a"}}
		out["then"] = map[string]any{"required": []any{"b"}}
	}
	return out
}

func (s schemaMaker) array(depth int) any {
	out := map[string]any{"type": "array", "items": s.schema(max(depth, 0))}
	if s.coin() {
		out["minItems"] = s.r.IntN(3)
	}
	if s.coin() {
		out["maxItems"] = 2 + s.r.IntN(3)
	}
	switch s.r.IntN(6) {
	case 0:
		out["prefixItems"] = []any{s.schema(0), s.schema(0)}
	case 1:
		out["contains"] = map[string]any{"type": s.pick("integer", "string")}
	case 2:
		out["uniqueItems"] = true
		out["items"] = s.schema(0)
	}
	return out
}

func (s schemaMaker) document() []byte {
	root := s.schema(3).(map[string]any)
	root["$defs"] = map[string]any{"node": map[string]any{
		"type": "object", "properties": map[string]any{"v": map[string]any{"type": "integer"},
			"next": map[string]any{"$ref": "#/$defs/node"}},
		"required": []any{"v"}, "additionalProperties": false,
	}}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	text, err := json.Marshal(root)
	if err != nil {
		panic(err)
	}
	return text
}

// judge compiles a schema with another library, with formats asserted.
func judge(t testing.TB, source []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(source)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return s
}

func valid(s *jsonschema.Schema, text string) (err error) {
	defer func() {
		if r := recover(); r != nil { // the judge panics on numbers like 1e999999999
			err = fmt.Errorf("judge: %v", r)
		}
	}()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// generate samples random tokens until the text ends. After as many tokens as it is given it
// ends the text in the shortest way.
func generate(t testing.TB, r *rand.Rand, c *grammar.Compiled, v *grammar.Vocabulary, tokens int) string {
	t.Helper()
	m := c.NewMatcher()
	mask := make([]uint64, v.Words())
	var out []byte
	for n := tokens; ; n-- {
		if err := m.Mask(mask); err != nil {
			t.Fatal(err)
		}
		if grammar.Allowed(mask) == 0 {
			t.Fatalf("after %s nothing may come", out)
		}
		if n <= m.Shortest() {
			break
		}
		id := draw(r, mask, v.Size())
		if err := m.Accept(id); err != nil {
			t.Fatalf("after %s token %d %q is not masked: %v", out, id, v.Token(id), err)
		}
		if id == 1 {
			return string(out)
		}
		out = append(out, v.Token(id)...)
	}
	rest, err := m.Completion()
	if err != nil {
		t.Fatalf("after %s: %v", out, err)
	}
	if err := m.AcceptBytes(rest); err != nil || !m.CanEnd() {
		t.Fatalf("after %s: %q does not end it: %v", out, rest, err)
	}
	return string(append(out, rest...))
}

// draw returns the token with the highest of random logits.
func draw(r *rand.Rand, mask []uint64, size int) int32 {
	for range 200 {
		if id := int32(r.IntN(size)); has(mask, id) {
			return id
		}
	}
	allowed := make([]int32, 0, 64)
	for id := range int32(size) {
		if has(mask, id) {
			allowed = append(allowed, id)
		}
	}
	return allowed[r.IntN(len(allowed))]
}

// mutate changes a text in one or two places.
func mutate(r *rand.Rand, text string) string {
	b := []byte(text)
	for range 1 + r.IntN(2) {
		if len(b) == 0 {
			break
		}
		at := r.IntN(len(b))
		switch r.IntN(4) {
		case 0:
			b = append(b[:at], b[at+1:]...)
		case 1:
			b[at] = `0192ab{}[]",:-.x `[r.IntN(17)]
		case 2:
			b = append(b[:at], append([]byte{`0192ab{}[]",:-.x `[r.IntN(17)]}, b[at:]...)...)
		case 3:
			end := min(len(b), at+1+r.IntN(8))
			b = append(b, b[at:end]...)
		}
	}
	return string(b)
}

func TestSchema_GeneratesWhatAJudgeAccepts(t *testing.T) {
	schemas, each := 200, 50
	if testing.Short() {
		each = 5
	}
	r := rand.New(rand.NewPCG(11, 12))
	_, v := randomVocabulary(t, r, 4000)
	maker := schemaMaker{r}
	done, refused, invalid := 0, 0, 0
	why := map[string]int{}
	for done < schemas {
		source := maker.document()
		g, err := grammar.Schema(source)
		var c *grammar.Compiled
		if err == nil {
			c, err = grammar.Compile(g, v)
		}
		var unsupported *grammar.UnsupportedError
		var limit *grammar.LimitError
		if errors.As(err, &unsupported) {
			refused++
			why[unsupported.Feature]++
			continue
		}
		if errors.As(err, &limit) {
			refused++
			why[limit.What]++
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		done++
		s := judge(t, source)
		for range each {
			text := generate(t, r, c, v, 10+r.IntN(60))
			if err := valid(s, text); err != nil {
				t.Fatalf("%s\ngives %s\n%v", source, text, err)
			}
			if wrong := mutate(r, text); valid(s, wrong) != nil {
				invalid++
				if accepts(c, wrong) {
					t.Fatalf("%s\naccepts %s", source, wrong)
				}
			}
		}
	}
	t.Logf("%d texts of %d schemas, %d more refused %v; %d invalid texts", schemas*each, schemas, refused, why, invalid)
}
