package toolcall

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// property is an argument that the schema names.
type property struct {
	name     string
	required bool
	schema   json.RawMessage // schema that stands alone, with its definitions
	kinds    kinds
}

// properties returns the arguments of a tool; ok is false if the schema constrains more
// than each property separately.
func (w *writer) properties(t offered) (out []property, ok bool) {
	var s map[string]json.RawMessage
	if json.Unmarshal(t.schema, &s) != nil {
		return nil, false
	}
	closed := string(s["additionalProperties"]) == "false"
	delete(s, "additionalProperties")
	for name := range s {
		switch name {
		case "type", "properties", "required", "title", "description", "$schema", "$defs", "definitions", "default",
			"examples", "$comment":
		default:
			return nil, false
		}
	}
	var required []string
	if raw := s["required"]; raw != nil && json.Unmarshal(raw, &required) != nil {
		return nil, false
	}
	if s["properties"] != nil {
		var properties map[string]json.RawMessage
		names, err := keys(s["properties"])
		if err != nil || json.Unmarshal(s["properties"], &properties) != nil {
			return nil, false
		}
		for _, name := range names {
			p := property{name: name, required: slices.Contains(required, name), kinds: kinds{}}
			if p.schema, ok = alone(properties[name], s); !ok {
				return nil, false
			}
			if w.o.Honours != nil && w.o.Honours(p.schema) != nil {
				return nil, false
			}
			p.kinds.read(p.schema, 0)
			out = append(out, p)
		}
	}
	for _, name := range required {
		if !slices.ContainsFunc(out, func(p property) bool { return p.name == name }) {
			return nil, false
		}
	}
	return out, closed || len(out) > 0
}

// alone returns a part of a schema document together with the definitions that it refers to.
func alone(raw json.RawMessage, document map[string]json.RawMessage) (json.RawMessage, bool) {
	if !bytes.Contains(raw, []byte(`"$`)) {
		return raw, true
	}
	for _, word := range []string{`"$id"`, `"$anchor"`, `"$dynamicRef"`, `"$recursiveRef"`} {
		if bytes.Contains(raw, []byte(word)) {
			return nil, false
		}
	}
	var s map[string]json.RawMessage
	if json.Unmarshal(raw, &s) != nil {
		return nil, false
	}
	for _, name := range []string{"$schema", "$defs", "definitions"} {
		if document[name] == nil {
			continue
		}
		if s[name] != nil {
			return nil, false
		}
		s[name] = document[name]
	}
	out, err := ordered(raw, s)
	return out, err == nil
}

// simpleString returns a string schema as a part between markers, whose text must not
// contain them; ok is false if the schema has keywords that cannot be enforced there.
func simpleString(raw json.RawMessage, markers ...string) (p part, ok bool) {
	var s map[string]json.RawMessage
	if json.Unmarshal(raw, &s) != nil {
		return nil, false
	}
	var values []string
	for name, v := range s {
		switch name {
		case "type", "title", "description", "default", "examples", "$schema", "$defs", "definitions", "$comment":
		case "enum":
			if values != nil || json.Unmarshal(v, &values) != nil || len(values) == 0 {
				return nil, false
			}
		case "const":
			var value string
			if values != nil || json.Unmarshal(v, &value) != nil {
				return nil, false
			}
			values = []string{value}
		default:
			return nil, false
		}
	}
	if values == nil {
		return anyBut(markers...), true
	}
	var out []part
	for _, v := range values {
		for _, m := range markers {
			if strings.Contains(v, m) {
				return nil, false
			}
		}
		out = append(out, constant(v))
	}
	return either(out...), true
}

// member is a property in the notation of a family.
type member struct {
	text     part
	required bool
}

// members are the required properties, in order, followed by the optional ones. With a
// comma as separator the required ones come first.
func members(list []member, comma part) part {
	if comma != nil {
		slices.SortStableFunc(list, func(a, b member) int {
			switch {
			case a.required == b.required:
				return 0
			case a.required:
				return -1
			}
			return 1
		})
	}
	tail := func(from int, begun bool) part {
		var out []part
		for _, m := range list[from:] {
			one := m.text
			if begun {
				one = row(comma, m.text)
			}
			if !m.required {
				one = maybe(one)
			}
			out = append(out, one)
			begun = comma != nil
		}
		return row(out...)
	}
	if comma == nil || len(list) == 0 || list[0].required {
		return tail(0, false)
	}
	var first []part // nothing is required: any property may come first
	for i := range list {
		first = append(first, row(list[i].text, tail(i+1, true)))
	}
	return maybe(either(first...))
}

// xml writes calls between tags, with one tag for each parameter, or as a JSON object if
// the schema relates several parameters.
func (w *writer) xml(family string, x xmlSpec) *spelling {
	line := pattern(`\n?`)
	gap := line
	if x.lines {
		gap = constant("\n")
	}
	named := map[bool]string{true: `"`, false: ""}[strings.HasSuffix(x.call, "name=")]
	call := func(t offered) (part, error) {
		head := row(w.mark(x.call+named), constant(t.name+named), w.mark(x.callName))
		params, ok := w.xmlMembers(t, family, x, named, gap)
		if !ok {
			if x.call == "" { // the name ends at the line break
				head = row(head, constant("\n"))
			}
			params = row(schema(t.schema), line)
		}
		return row(head, gap, params, w.mark(x.callEnd)), nil
	}
	s := &spelling{open: x.opens[0], known: append([]string{}, x.opens[1:]...), head: gap,
		tail: row(line, w.mark(x.ends[0])), between: line, call: call}
	if x.call == "<function=" {
		s.known = append(s.known, x.call)
	}
	switch family {
	case "qwen-xml":
		s.each = true
	case "glm":
		s.each, s.head, s.tail = true, nil, w.mark(x.ends[0])
	}
	return s
}

func (w *writer) xmlMembers(t offered, family string, x xmlSpec, named string, gap part) (part, bool) {
	properties, ok := w.properties(t)
	if !ok {
		return nil, false
	}
	var list []member
	for _, p := range properties {
		if p.name == "" || strings.ContainsAny(p.name, "<>\"\n") || strings.TrimSpace(p.name) != p.name {
			return nil, false
		}
		attribute, value := "", part(nil)
		switch {
		case p.kinds.onlyString():
			if value, ok = simpleString(p.schema, x.paramEnd); !ok {
				return nil, false
			}
			attribute = ` string="true"`
		case len(p.kinds) > 0 && !p.kinds["string"], family == "dsml":
			value, attribute = literalOf(p.schema), ` string="false"`
		default:
			return nil, false
		}
		if family != "dsml" {
			attribute = ""
		}
		between := part(nil)
		if x.value != "" {
			between = row(pattern(`\n?`), w.mark(x.value))
		} else if x.lines {
			between = constant("\n")
		}
		end := part(nil)
		if x.lines {
			end = constant("\n")
		}
		list = append(list, member{row(w.mark(x.param+named), constant(p.name+named+attribute), w.mark(x.paramName),
			between, value, end, w.mark(x.paramEnd), gap), p.required})
	}
	return members(list, nil), true
}

// gemma writes call:name{key:value,…}. Values other than plain strings are written as
// JSON, which the parser accepts too.
func (w *writer) gemma(open, end, quote string) *spelling {
	call := func(t offered) (part, error) {
		head := constant("call:" + t.name)
		properties, ok := w.properties(t)
		var list []member
		for _, p := range properties {
			if !isWord(p.name) {
				ok = false
				break
			}
			list = append(list, member{row(constant(p.name+":"), w.gemmaValue(p, 0, quote, end)), p.required})
		}
		if !ok {
			return row(head, schema(t.schema)), nil
		}
		return row(head, constant("{"), members(list, constant(",")), constant("}")), nil
	}
	return &spelling{open: open, each: true, tail: w.mark(end), between: pattern(`\n?`), call: call}
}

// gemmaValue writes a value in the family's notation, or as JSON if its type is unknown.
func (w *writer) gemmaValue(p property, depth int, quote, end string) part {
	if p.kinds.onlyString() {
		if s, simple := simpleString(p.schema, quote, end); simple {
			return row(w.mark(quote), s, w.mark(quote))
		}
		return schema(p.schema)
	}
	var s struct {
		Type  string          `json:"type"`
		Items json.RawMessage `json:"items"`
		Min   int             `json:"minItems"`
		Max   *int            `json:"maxItems"`
	}
	var all map[string]json.RawMessage
	if depth > 8 || json.Unmarshal(p.schema, &s) != nil || json.Unmarshal(p.schema, &all) != nil {
		return schema(p.schema)
	}
	switch s.Type {
	case "array":
		for name := range all {
			switch name {
			case "type", "items", "minItems", "maxItems", "title", "description", "default", "examples", "$schema",
				"$defs", "definitions", "$comment":
			default:
				return schema(p.schema)
			}
		}
		item, ok := alone(s.Items, all)
		if !ok || len(item) == 0 || s.Max != nil && *s.Max < max(1, s.Min) || s.Min > 64 {
			return schema(p.schema)
		}
		in := property{schema: item, kinds: kinds{}}
		in.kinds.read(item, 0)
		one := w.gemmaValue(in, depth+1, quote, end)
		more := part{"type": "repeat", "min": max(0, s.Min-1), "content": row(constant(","), one)}
		if s.Max != nil {
			more["max"] = *s.Max - 1
		}
		list := row(one, more)
		if s.Min == 0 {
			list = maybe(list)
		}
		return row(constant("["), list, constant("]"))
	case "object":
		closed, err := objectSchema(p.schema)
		if err != nil {
			return schema(p.schema)
		}
		properties, ok := w.properties(offered{schema: closed})
		var list []member
		for _, in := range properties {
			if ok = ok && isWord(in.name); !ok {
				break
			}
			list = append(list, member{row(constant(in.name+":"), w.gemmaValue(in, depth+1, quote, end)), in.required})
		}
		if ok {
			return row(constant("{"), members(list, constant(",")), constant("}"))
		}
	}
	return schema(p.schema)
}

// literalOf accepts a value as JSON, or with Python's spelling of true, false and null.
func literalOf(raw json.RawMessage) part {
	var s map[string]json.RawMessage
	if json.Unmarshal(raw, &s) == nil && string(s["type"]) == `"boolean"` && s["enum"] == nil && s["const"] == nil &&
		s["not"] == nil && s["allOf"] == nil && s["anyOf"] == nil && s["oneOf"] == nil {
		return pattern("true|false|True|False")
	}
	return schema(raw)
}

// python writes name(key=value, …).
func (w *writer) python(t offered) (part, error) {
	if strings.ContainsAny(t.name, "/:$") || t.name == "print" {
		return nil, fault.Field(t.at+".name", "%q cannot be written: this model writes calls as Python", t.name)
	}
	properties, ok := w.properties(t)
	if !ok {
		if t.strict {
			return nil, fault.Field(t.at+".parameters",
				"this model writes calls as Python: want properties, each by itself, and which are required")
		}
		properties, _ = w.properties(offered{schema: w.named(t.schema)})
	}
	var list []member
	for _, p := range properties {
		if !isWord(p.name) {
			if t.strict || p.required {
				return nil, fault.Field(t.at+".parameters",
					"property %q cannot be written: this model writes calls as Python", p.name)
			}
			continue
		}
		list = append(list, member{row(pattern(quoted(p.name)+" ?= ?"), literalOf(p.schema)), p.required})
	}
	return row(constant(t.name+"("), members(list, pattern(`, ?`)), constant(")")), nil
}

// named reduces a schema to those named properties that can be enforced.
func (w *writer) named(raw json.RawMessage) json.RawMessage {
	var s struct {
		Properties map[string]json.RawMessage `json:"properties"`
		Required   []string                   `json:"required"`
		Defs       json.RawMessage            `json:"$defs,omitempty"`
		Definition json.RawMessage            `json:"definitions,omitempty"`
	}
	empty := json.RawMessage(`{"additionalProperties":false}`)
	if json.Unmarshal(raw, &s) != nil {
		return empty
	}
	s.Required = slices.DeleteFunc(s.Required, func(name string) bool { return s.Properties[name] == nil })
	out, err := json.Marshal(s)
	if err != nil || len(s.Properties) == 0 {
		return empty
	}
	return out
}

// isWord reports whether a key can be written without quotes.
func isWord(s string) bool {
	for i := range len(s) {
		if s[i] != '_' && !isAlnum(s[i]) {
			return false
		}
	}
	return s != ""
}
