package openai

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// shapes are alternative spellings, from llama.cpp's and vLLM's servers, of constraints on the
// text. At most one may be given.
type shapes struct {
	Grammar       string          `json:"grammar"`        // GBNF
	JSONSchema    json.RawMessage `json:"json_schema"`    // a schema
	GuidedJSON    json.RawMessage `json:"guided_json"`    // a schema, or a string that contains one
	GuidedRegex   string          `json:"guided_regex"`   //
	GuidedChoice  []string        `json:"guided_choice"`  // one of these texts
	GuidedGrammar string          `json:"guided_grammar"` // GBNF
}

// anyObject is the schema of response_format json_object.
const anyObject = `{"type":"object"}`

// grammar returns the constraint on the answer, nil for none, and the field that gives it.
func (c *common) grammar() (*samplerv1.Grammar, string, error) {
	var out *samplerv1.Grammar
	field := ""
	set := func(name string, kind samplerv1.GrammarKind, source string) error {
		if out != nil {
			return fault.Field(name, "cannot be combined with %s", field)
		}
		field, out = name, &samplerv1.Grammar{Kind: kind, Source: source}
		return nil
	}
	const schema, gbnf, regex = samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, samplerv1.GrammarKind_GRAMMAR_KIND_GBNF,
		samplerv1.GrammarKind_GRAMMAR_KIND_REGEX
	var errs []error
	if given(c.ResponseFormat) {
		kind := schema
		source, err := responseSchema(c.ResponseFormat)
		if source == string(c.ResponseFormat) {
			kind = samplerv1.GrammarKind_GRAMMAR_KIND_TAGS
		}
		if err == nil && source != "" {
			err = set("response_format", kind, source)
		}
		errs = append(errs, err)
	}
	for _, s := range []struct {
		name   string
		kind   samplerv1.GrammarKind
		source string
	}{
		{"grammar", gbnf, c.Grammar}, {"guided_grammar", gbnf, c.GuidedGrammar}, {"guided_regex", regex, c.GuidedRegex},
		{"json_schema", schema, unquote(c.JSONSchema)}, {"guided_json", schema, unquote(c.GuidedJSON)},
		{"guided_choice", regex, choices(c.GuidedChoice)},
	} {
		if s.source != "" {
			errs = append(errs, set(s.name, s.kind, s.source))
		}
	}
	for _, err := range errs {
		if err != nil {
			return nil, "", err
		}
	}
	if _, err := samplerules.Grammar(field, out); err != nil {
		return nil, "", err
	}
	return out, field, nil
}

// responseSchema returns the schema in a response_format, which is empty for text. For a structural
// tag it returns the whole format.
func responseSchema(raw json.RawMessage) (string, error) {
	var format struct {
		Type       string          `json:"type"`
		Schema     json.RawMessage `json:"schema"` // llama.cpp's spelling
		JSONSchema *struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"json_schema"`
	}
	if err := json.Unmarshal(raw, &format); err != nil {
		return "", fault.Field("response_format", "want an object with a type")
	}
	switch format.Type {
	case "text":
		return "", nil
	case "structural_tag":
		return string(raw), nil
	case "json_object":
		if given(format.Schema) {
			return string(format.Schema), nil
		}
		return anyObject, nil
	case "json_schema":
		if given(format.Schema) {
			return string(format.Schema), nil
		}
		if format.JSONSchema == nil || !given(format.JSONSchema.Schema) {
			return "", fault.Field("response_format.json_schema.schema", "is missing")
		}
		return string(format.JSONSchema.Schema), nil
	}
	return "", fault.Field("response_format.type",
		"%q is not supported: want text, json_object, json_schema or structural_tag", format.Type)
}

// unquote returns a schema that is given as JSON or inside a JSON string.
func unquote(raw json.RawMessage) string {
	if !given(raw) {
		return ""
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	return string(raw)
}

// choices returns a regular expression that matches any of the texts.
func choices(texts []string) string {
	if len(texts) == 0 {
		return ""
	}
	quoted := make([]string, len(texts))
	for i, t := range texts {
		quoted[i] = regexp.QuoteMeta(t)
	}
	return "(?:" + strings.Join(quoted, "|") + ")"
}
