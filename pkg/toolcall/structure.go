package toolcall

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Offer lists the tools that a model may call, and how.
type Offer struct {
	// Tools is a JSON array of OpenAI tool definitions; at least one.
	Tools []byte
	// Function names the only tool that may be called; empty allows all of them.
	Function string
	// Required demands at least one call, after the optional reasoning.
	Required bool
	// Single allows at most one call.
	Single bool
	// Prompt is the rendered chat or its end, as in Options.
	Prompt string
	// Content is the structure of an answer without calls; nil allows any text.
	Content []byte
	// Control reports whether the vocabulary has a control token of that spelling; nil means
	// it has none. Where it has one, only that token counts as the marker.
	Control func(spelling string) bool
	// Ends reports whether such a token ends the text; nil means that none does.
	Ends func(spelling string) bool
	// Honours returns why a schema cannot be enforced; a nil function accepts all schemas.
	Honours func(schema []byte) error
}

// Structure is the inverse of a Parser: it returns, as JSON for grammar.Structure, the
// texts in which a model of this format answers or calls the tools of an offer. The Parser
// reads every such text as calls of offered tools with valid arguments.
//
// The arguments of a call follow the tool's schema: always if the tool says "strict",
// otherwise if the schema can be enforced, and as any object if it cannot. Members that the
// schema does not mention are not written. After the first call only further calls follow.
// Text around the calls contains no marker of the format.
//
// Errors name a field below tools: a name that the format cannot write, a strict schema
// that cannot be enforced, or a Function that no tool has. A format without calls is an
// error too.
func (f Format) Structure(o Offer) ([]byte, error) {
	w := &writer{o: o, think: reasonings(f.Reasoning)}
	var err error
	if w.tools, err = w.offered(); err != nil {
		return nil, err
	}
	var out any
	if f.Calls == "harmony" {
		out, err = w.harmony()
	} else {
		var s *spelling
		if s, err = w.spelling(f.Calls); err == nil {
			out, err = w.answer(s)
		}
	}
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "write a structure of calls")
	}
	return text, nil
}

// writer builds one structure.
type writer struct {
	o     Offer
	think thinking
	tools []offered
}

// offered is a tool that may be called.
type offered struct {
	at     string // field name for errors
	name   string
	strict bool
	schema json.RawMessage // schema of the arguments object
}

// offered reads the tool definitions.
func (w *writer) offered() ([]offered, error) {
	type function struct {
		Name       string          `json:"name"`
		Strict     bool            `json:"strict"`
		Parameters json.RawMessage `json:"parameters"`
	}
	var items []struct {
		function
		Function *function `json:"function"`
	}
	if json.Unmarshal(w.o.Tools, &items) != nil {
		return nil, fault.Field("tools", "want a list of tools")
	}
	var out []offered
	seen := map[string]bool{}
	for i, item := range items {
		t, at := item.function, fmt.Sprintf("tools[%d]", i)
		if item.Function != nil {
			t, at = *item.Function, at+".function"
		}
		if t.Name == "" { // not a function tool
			continue
		}
		if !isName(t.Name) {
			return nil, fault.Field(at+".name",
				"%q is not a valid tool name: want letters, digits and _-./:$, at most 256", t.Name)
		}
		if seen[t.Name] {
			return nil, fault.Field(at+".name", "%q is defined twice", t.Name)
		}
		seen[t.Name] = true
		if w.o.Function != "" && w.o.Function != t.Name {
			continue
		}
		schema, err := objectSchema(t.Parameters)
		if err == nil && w.o.Honours != nil {
			err = w.o.Honours(schema)
		}
		if err != nil {
			if t.Strict {
				return nil, fault.Field(at+".parameters", "%v", err)
			}
			schema = json.RawMessage(`{"type":"object"}`)
		}
		out = append(out, offered{at: at, name: t.Name, strict: t.Strict, schema: schema})
	}
	switch {
	case len(seen) == 0:
		return nil, fault.Field("tools", "want at least one function with a name")
	case len(out) == 0:
		return nil, fault.Field("tool_choice", "no tool is named %q", w.o.Function)
	}
	return out, nil
}

// objectSchema restricts a schema to objects. Members that it does not mention are left
// out.
func objectSchema(raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return json.RawMessage(`{"type":"object","additionalProperties":false}`), nil
	}
	if string(raw) == "true" {
		return json.RawMessage(`{"type":"object"}`), nil
	}
	var s map[string]json.RawMessage
	if json.Unmarshal(raw, &s) != nil || s == nil {
		return nil, fault.New(fault.Invalid, "want the schema of an object")
	}
	changed := false
	var one string
	var many []string
	switch {
	case json.Unmarshal(s["type"], &one) == nil && one != "":
		if one != "object" {
			return nil, fault.New(fault.Invalid, "arguments must be an object, not %s", one)
		}
	case json.Unmarshal(s["type"], &many) == nil && len(many) > 0 && !slices.Contains(many, "object"):
		return nil, fault.New(fault.Invalid, "arguments must be an object, not %s", strings.Join(many, " or "))
	default:
		s["type"], changed = json.RawMessage(`"object"`), true
	}
	if closes(s) {
		s["additionalProperties"], changed = json.RawMessage("false"), true
	}
	if !changed {
		return raw, nil
	}
	out, err := ordered(raw, s)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read the schema")
	}
	return out, nil
}

// closes reports whether a schema names every member that it constrains and leaves
// others unconstrained.
func closes(s map[string]json.RawMessage) bool {
	for name := range s {
		switch name {
		case "type", "properties", "required", "title", "description", "$schema", "$id", "$defs", "definitions",
			"default", "examples", "$comment":
		default:
			return false
		}
	}
	var properties map[string]json.RawMessage
	var required []string
	if json.Unmarshal(s["properties"], &properties) != nil || properties == nil {
		return false
	}
	if raw := s["required"]; raw != nil && json.Unmarshal(raw, &required) != nil {
		return false
	}
	return !slices.ContainsFunc(required, func(name string) bool { return properties[name] == nil })
}
