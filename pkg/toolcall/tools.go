package toolcall

import (
	"encoding/json"
	"slices"
	"strings"
)

// toolset maps tool names to the kinds of their parameters.
type toolset map[string]map[string]kinds

// kinds lists the JSON types that a parameter may have; "json" is any type.
type kinds map[string]bool

// readTools reads OpenAI tool definitions and skips entries that are not tools.
func readTools(text []byte) toolset {
	type function struct {
		Name       string `json:"name"`
		Parameters struct {
			Properties map[string]json.RawMessage `json:"properties"`
		} `json:"parameters"`
	}
	var items []json.RawMessage
	if len(text) == 0 || json.Unmarshal(text, &items) != nil {
		return nil
	}
	out := toolset{}
	for _, item := range items {
		var tool struct {
			function
			Function *function `json:"function"`
		}
		if json.Unmarshal(item, &tool) != nil {
			continue
		}
		f := tool.function
		if tool.Function != nil {
			f = *tool.Function
		}
		if f.Name == "" {
			continue
		}
		params := map[string]kinds{}
		for name, schema := range f.Parameters.Properties {
			k := kinds{}
			k.read(schema, 0)
			params[name] = k
		}
		out[f.Name] = params
	}
	return out
}

// read adds the types that a schema allows.
func (k kinds) read(schema json.RawMessage, depth int) {
	var s struct {
		Type  json.RawMessage   `json:"type"`
		Enum  []any             `json:"enum"`
		Const any               `json:"const"`
		AnyOf []json.RawMessage `json:"anyOf"`
		OneOf []json.RawMessage `json:"oneOf"`
		AllOf []json.RawMessage `json:"allOf"`
	}
	if json.Unmarshal(schema, &s) != nil || depth > 8 {
		return
	}
	var one string
	var many []string
	if json.Unmarshal(s.Type, &one) == nil && one != "" {
		k[one] = true
	} else if json.Unmarshal(s.Type, &many) == nil {
		for _, t := range many {
			k[t] = true
		}
	} else {
		for _, v := range append(s.Enum, s.Const) {
			if _, ok := v.(string); ok {
				k["string"] = true
			} else if v != nil {
				k["json"] = true
			}
		}
	}
	for _, sub := range slices.Concat(s.AnyOf, s.OneOf, s.AllOf) {
		k.read(sub, depth+1)
	}
}

// Names returns the names in a JSON array of OpenAI tool definitions.
func Names(tools []byte) map[string]bool {
	out := map[string]bool{}
	for name := range readTools(tools) {
		out[name] = true
	}
	return out
}

func (t toolset) has(name string) bool {
	_, ok := t[name]
	return ok
}

// begin reports whether the name of a tool begins with s.
func (t toolset) begin(prefix string) bool {
	for name := range t {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// kinds returns the types of a parameter; nil if they are unknown.
func (t toolset) kinds(tool, param string) kinds { return t[tool][param] }

func (k kinds) onlyString() bool {
	for name, ok := range k {
		if ok != (name == "string") && (name != "json" || !k["string"]) {
			return false
		}
	}
	return k["string"]
}

// value writes a parameter's text as JSON of an allowed type. If the type is unknown, text
// that is valid JSON other than a string is kept as JSON.
func (k kinds) value(s string) string {
	t := strings.TrimSpace(s)
	if len(k) == 0 || len(k) == 1 && !k["string"] || !k["string"] || t == "null" || t == "None" {
		if v, ok := literal(t); ok && (t[0] != '"' && t[0] != '\'' || len(k) > 0) {
			return v
		}
	} else if v, ok := literal(t); ok { // a string or another type
		switch c := v[0]; {
		case (c == '{' && k["object"]) || (c == '[' && k["array"]), (c == 't' || c == 'f') && k["boolean"],
			(c == '-' || c >= '0' && c <= '9') && (k["number"] || k["integer"]):
			return v
		}
	}
	return marshal(s)
}

// literal reads JSON, or Python's spelling of it, and writes JSON.
func literal(t string) (string, bool) {
	if t == "" {
		return "", false
	}
	if json.Valid([]byte(t)) {
		return t, true
	}
	l := pyLexer{s: t}
	v, ok := l.value(0)
	l.space()
	return v, ok && l.at == len(l.s)
}
