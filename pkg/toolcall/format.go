package toolcall

import "strings"

// Format names a model's conventions: a family of calls and a family of reasoning. An
// empty name means that the model writes none.
type Format struct {
	Calls     string
	Reasoning string
}

// Plain reports whether the model writes nothing but content.
func (f Format) Plain() bool { return f.Calls == "" && f.Reasoning == "" }

// thinking describes how reasoning is delimited.
type thinking struct {
	open, end string
	silent    []string  // markers around the answer that carry no meaning
	or        *thinking // another way to delimit it
}

// reasonings returns the reasoning markers of that name; an unknown name means none.
func reasonings(name string) thinking {
	switch name {
	case "think":
		return thinking{open: "<think>", end: "</think>"}
	case "granite":
		return thinking{open: "<think>", end: "</think>", silent: []string{"<response>", "</response>"}}
	case "mistral":
		return thinking{open: "[THINK]", end: "[/THINK]"}
	case "seed":
		return thinking{open: "<seed:think>", end: "</seed:think>"}
	case "minimax":
		return thinking{open: "<mm:think>", end: "</mm:think>"}
	case "command":
		return thinking{open: "<|START_THINKING|>", end: "<|END_THINKING|>",
			silent: []string{"<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"}}
	case "gemma":
		return thinking{open: "<|channel>thought\n", end: "<channel|>"}
	case "apertus":
		return thinking{open: "<|inner_prefix|>", end: "<|inner_suffix|>"}
	case "apriel":
		return thinking{open: "Here are my reasoning steps:\n", end: "[BEGIN FINAL RESPONSE]",
			silent: []string{"[END FINAL RESPONSE]"}}
	case "kimi":
		return thinking{open: "◁think▷", end: "◁/think▷"}
	case "kimi-k3":
		return thinking{open: "<|open|>think<|sep|>", end: "<|close|>think<|sep|>",
			silent: []string{"<|open|>message role=\"assistant\"<|sep|>", "<|open|>response<|sep|>",
				"<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"}}
	case "kimi-any":
		k3 := reasonings("kimi-k3")
		return thinking{open: "<think>", end: "</think>", or: &k3}
	}
	return thinking{}
}

// Detect derives a model's format from the text of its chat template.
func Detect(template string) Format {
	has := func(parts ...string) bool {
		for _, part := range parts {
			if !strings.Contains(template, part) {
				return false
			}
		}
		return true
	}
	f := Format{Calls: detectCalls(has)}
	switch {
	case f.Calls == "harmony": // its channels separate reasoning and answer
	case has("[THINK]"):
		f.Reasoning = "mistral"
	case has("<seed:think>"):
		f.Reasoning = "seed"
	case has("<mm:think>"):
		f.Reasoning = "minimax"
	case has("<|START_THINKING|>"):
		f.Reasoning = "command"
	case has("<|channel>thought"):
		f.Reasoning = "gemma"
	case has("<|inner_prefix|>"):
		f.Reasoning = "apertus"
	case has("◁think▷"):
		f.Reasoning = "kimi"
	case has("[BEGIN FINAL RESPONSE]"):
		f.Reasoning = "apriel"
	case has("<think>", "<response>"):
		f.Reasoning = "granite"
	case has("<think>"), has("</think>"):
		f.Reasoning = "think"
	}
	return f
}

// detectCalls finds the family of calls. More specific families are tested first.
func detectCalls(has func(...string) bool) string {
	for _, c := range []struct {
		family string
		parts  []string
	}{
		{"harmony", []string{"<|channel|>", "<|message|>"}},
		{"mistral-args", []string{"[TOOL_CALLS]", "[ARGS]"}},
		{"mistral", []string{"[TOOL_CALLS]"}},
		{"dsml", []string{"DSML｜"}},
		{"deepseek", []string{"<｜tool▁call▁begin｜>"}},
		{"kimi", []string{"<|tool_call_begin|>"}},
		{"minimax", []string{"<minimax:tool_call>"}},
		{"", []string{"]<]minimax[>["}},
		{"seed", []string{"<seed:tool_call>"}},
		{"glm", []string{"<tool_call>", "<arg_key>"}},
		{"qwen-xml", []string{"<function=", "<parameter="}},
		{"command", []string{"<|START_ACTION|>"}},
		{"command-r", []string{"Action:", "```json", "tool_name"}},
		{"functiongemma", []string{"<start_function_call>"}},
		{"gemma", []string{"<|tool_call>"}},
		{"lfm2", []string{"<|tool_call_start|>"}},
		{"lfm2", []string{"<|tool_list_start|>"}},
		{"lfm2", []string{"List of tools: ["}},
		{"phi", []string{"<|tool|>", "<|/tool|>"}},
		{"granite", []string{"<|tool_call|>"}},
		{"nemotron", []string{"<TOOLCALL>"}},
		{"apertus", []string{"<|tools_prefix|>"}},
		{"tool-calls", []string{"<tool_calls>"}},
		{"olmo", []string{"<function_calls>"}},
		{"granite-20b", []string{"<function_call>"}},
		{"internlm", []string{"<|action_start|>"}},
		{"gigachat", []string{"<|function_call|>"}},
		{"gigachat", []string{"function call", "<|role_sep|>"}},
		{"functools", []string{"functools["}},
		{"functionary", []string{">>>all"}},
		{"hermes-pro", []string{"<tool_call>", `["arguments", "name"]`}},
		{"hermes", []string{"<tool_call>"}},
		{"llama-xml", []string{"<function=", "python_tag"}},
		{"llama-xml", []string{"<function=", "</function>"}},
		{"pythonic", []string{"func_name1("}},
		{"tool-code", []string{"tool_code"}},
		{"llama", []string{"<|python_tag|>"}},
		{"llama", []string{`"parameters": dictionary of argument name`}},
		{"llama", []string{`"parameters": `, `"name": `, "tool_calls"}},
	} {
		if has(c.parts...) {
			return c.family
		}
	}
	return ""
}
