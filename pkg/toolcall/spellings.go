package toolcall

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// jsonObject writes a call as an object; first is a regular expression of members before
// the name.
func jsonObject(first, name, arguments string) func(t offered) (part, error) {
	return func(t offered) (part, error) {
		return row(constant("{"), pattern(` ?`+first+`"`+name+`": ?`+quoted(marshal(t.name))+`, ?"`+arguments+`": ?`),
			schema(t.schema), constant("}")), nil
	}
}

// plain writes a call as the name between two texts, then the arguments and a third text.
func (w *writer) plain(before, after, end string) func(t offered) (part, error) {
	return func(t offered) (part, error) {
		return row(w.mark(before), constant(t.name), w.mark(after), schema(t.schema), w.mark(end)), nil
	}
}

// spelling returns how a family writes its calls.
func (w *writer) spelling(family string) (*spelling, error) {
	line, comma := pattern(`\n?`), pattern(`, ?`)
	object := jsonObject("", "name", "arguments")
	list := func(open, end string, known ...string) *spelling {
		return &spelling{open: open, known: known, head: pattern(`\n? ?\[`),
			tail: row(constant("]"), line, w.mark(end)), between: comma, call: object}
	}
	switch family {
	case "hermes", "hermes-pro":
		if family == "hermes-pro" { // the name comes last
			object = func(t offered) (part, error) {
				return row(constant("{"), pattern(` ?"arguments": ?`), schema(t.schema),
					pattern(`, ?"name": ?`+quoted(marshal(t.name))+`\}`)), nil
			}
		}
		return &spelling{open: "<tool_call>", each: true, head: line, tail: row(line, w.mark("</tool_call>")),
			between: line, call: object}, nil
	case "granite":
		return list("<|tool_call|>", "", "<tool_call>"), nil
	case "phi":
		return list("<|tool_call|>", "<|/tool_call|>", "functools"), nil
	case "granite-20b":
		return &spelling{open: "<function_call>", each: true, head: pattern(" ?"), between: line, call: object}, nil
	case "nemotron":
		return list("<TOOLCALL>", "</TOOLCALL>"), nil
	case "tool-calls":
		return list("<tool_calls>", "</tool_calls>"), nil
	case "functools":
		return list("functools", ""), nil
	case "apertus":
		s := list("<|tools_prefix|>", "<|tools_suffix|>")
		s.call = func(t offered) (part, error) {
			return row(constant("{"), pattern(` ?`+quoted(marshal(t.name))+`: ?`), schema(t.schema), constant("}")), nil
		}
		return s, nil
	case "internlm":
		return &spelling{open: "<|action_start|>", each: true, head: row(pattern(" ?"), w.mark("<|plugin|>"), line),
			tail:    row(line, w.mark("<|action_end|>")),
			between: line, call: jsonObject("", "name", "parameters")}, nil
	case "gigachat":
		s := &spelling{open: "<|function_call|>", known: []string{"function call<|role_sep|>"}, each: true,
			call: object}
		if c := w.o.Control; c != nil && c("<|role_sep|>") && !c("<|function_call|>") {
			s.open, s.known = "function call<|role_sep|>\n", []string{"<|function_call|>"}
		}
		return s, nil
	case "command":
		s := list("<|START_ACTION|>", "<|END_ACTION|>")
		s.head, s.between, s.tail = pattern(`\n?\[\n? {0,8}`), pattern(`, ?\n? {0,8}`),
			row(pattern(`\n?\]\n?`), w.mark("<|END_ACTION|>"))
		s.call = jsonObject(`"tool_call_id": ?"[0-9]{1,3}", ?`, "tool_name", "parameters")
		return s, nil
	case "command-r":
		call := func(t offered) (part, error) {
			return row(constant("{"),
				pattern(`[ \n]{0,9}"tool_name": ?`+quoted(marshal(t.name))+`,[ \n]{0,9}"parameters": ?`),
				schema(t.schema), pattern(`[ \n]{0,9}\}`)), nil
		}
		return &spelling{open: "Action: ```json", known: []string{"Action:```json", "Action:\n```json"},
			head: pattern(`\n?\[[ \n]{0,9}`), tail: pattern("[ \n]{0,9}\\]\n?```"),
			between: pattern(`,[ \n]{0,9}`), call: call}, nil
	case "mistral", "mistral-args":
		return w.mistral(family), nil
	case "llama":
		return &spelling{open: "<|python_tag|>", bare: true, notFirst: "{", between: pattern(`; ?`),
			call: jsonObject(`(?:"type": ?"function", ?)?`, "name", "parameters")}, nil
	case "llama-xml":
		return &spelling{open: "<function=", known: []string{"<|python_tag|>"}, notFirst: "{", each: true,
			between: line, call: w.plain("", ">", "</function>")}, nil
	case "xlam":
		return &spelling{bare: true, notFirst: "[{", head: constant("["), tail: constant("]"), between: comma,
			call: object}, nil
	case "functionary":
		return w.functionary()
	case "deepseek":
		return w.deepseek(), nil
	case "kimi":
		call := func(t offered) (part, error) {
			return row(w.mark("<|tool_call_begin|>"), pattern(`functions\.`+quoted(t.name)+`:[0-9]{1,3}`),
				w.mark("<|tool_call_argument_begin|>"), schema(t.schema), w.mark("<|tool_call_end|>")), nil
		}
		return &spelling{open: "<|tool_calls_section_begin|>", known: []string{"<|tool_call_begin|>"},
			tail: w.mark("<|tool_calls_section_end|>"), call: call}, nil
	case "gemma":
		return w.gemma("<|tool_call>", "<tool_call|>", `<|"|>`), nil
	case "functiongemma":
		return w.gemma("<start_function_call>", "<end_function_call>", "<escape>"), nil
	case "pythonic":
		return &spelling{bare: true, notFirst: "[", head: constant("["), tail: constant("]"), between: comma,
			call: w.python}, nil
	case "lfm2":
		return &spelling{open: "<|tool_call_start|>", head: constant("["),
			tail: row(constant("]"), w.mark("<|tool_call_end|>")), between: comma, call: w.python}, nil
	case "olmo":
		return &spelling{open: "<function_calls>", head: line, tail: row(line, w.mark("</function_calls>")),
			between: constant("\n"), call: w.python}, nil
	case "tool-code":
		return &spelling{open: "```tool_code", head: constant("\n"), tail: constant("\n```"), between: constant("\n"),
			call: w.python}, nil
	case "":
		return nil, fault.New(fault.Unimplemented, "write calls: the model's chat template knows no calls of tools")
	}
	spec, ok := xmlSpecs(family)
	if !ok {
		return nil, fault.New(fault.Unimplemented, "write calls: the family %q is not known", family)
	}
	return w.xml(family, spec), nil
}

// mistral writes an array of objects, or names and arguments with a marker between them.
func (w *writer) mistral(family string) *spelling {
	const id = `"id": ?"[a-zA-Z0-9]{9}"`
	if family == "mistral-args" {
		return &spelling{open: "[TOOL_CALLS]", each: true, call: func(t offered) (part, error) {
			return row(pattern(" ?"+quoted(t.name)), maybe(row(w.mark("[CALL_ID]"), pattern("[a-zA-Z0-9]{9}"))),
				w.mark("[ARGS]"), schema(t.schema)), nil
		}}
	}
	call := func(t offered) (part, error) {
		return row(constant("{"), pattern(` ?(?:`+id+`, ?)?"name": ?`+quoted(marshal(t.name))+`, ?"arguments": ?`),
			schema(t.schema), pattern(`(?:, ?`+id+`)?\}`)), nil
	}
	return &spelling{open: "[TOOL_CALLS]", head: pattern(` ?\[`), tail: constant("]"), between: pattern(`, ?`),
		call: call}
}

// deepseek writes a type, a name and a fenced object, or a name and an object.
func (w *writer) deepseek() *spelling {
	call := func(t offered) (part, error) {
		name := constant(t.name)
		fenced := row(constant("function"), w.mark("<｜tool▁sep｜>"), name, constant("\n```json\n"), schema(t.schema),
			constant("\n```"))
		return row(w.mark("<｜tool▁call▁begin｜>"), either(fenced, row(name, w.mark("<｜tool▁sep｜>"), schema(t.schema))),
			w.mark("<｜tool▁call▁end｜>")), nil
	}
	return &spelling{open: "<｜tool▁calls▁begin｜>", known: []string{"<｜tool▁call▁begin｜>"},
		tail: row(pattern(`\n?`), w.mark("<｜tool▁calls▁end｜>")), between: pattern(`\n?`), call: call}
}

// functionary is the only family in which content has a marker too.
func (w *writer) functionary() (*spelling, error) {
	for _, t := range w.tools {
		if t.name == "all" {
			return nil, fault.Field(t.at+".name", "%q is what this model calls its answers", t.name)
		}
	}
	return &spelling{open: ">>>", said: "all\n", each: true, call: w.plain("", "\n", "")}, nil
}
