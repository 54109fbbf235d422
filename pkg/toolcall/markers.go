package toolcall

import "slices"

// Markers lists the tokens that delimit calls and reasoning in the format. Many
// vocabularies have them as control tokens, which decode to no text: code that decodes for
// a Parser must keep the tokens of this list.
func (f Format) Markers() []string {
	t := reasonings(f.Reasoning)
	out := append([]string{t.open, t.end}, t.silent...)
	switch f.Reasoning {
	case "gemma": // spelled with a word and a line break after it
		out = append(out, "<|channel>")
	}
	out = append(out, callMarkers(f.Calls)...)
	out = slices.DeleteFunc(out, func(s string) bool { return s == "" })
	slices.Sort(out)
	return slices.Compact(out)
}

func callMarkers(family string) []string {
	if spec, ok := xmlSpecs(family); ok {
		out := append([]string{spec.value, spec.param, spec.paramName, spec.paramEnd, spec.call, spec.callEnd},
			spec.ends...)
		out = append(out, spec.opens...)
		switch family {
		case "dsml":
			out = append(out, "｜DSML｜", "<｜DSML｜", "</｜DSML｜")
		case "glm":
			out = append(out, "</arg_value>")
		}
		return out
	}
	switch family {
	case "hermes", "hermes-pro":
		return []string{"<tool_call>", "</tool_call>"}
	case "granite", "phi":
		return []string{"<|tool_call|>", "<|/tool_call|>", "<tool_call>", "</tool_call>"}
	case "granite-20b":
		return []string{"<function_call>", "</function_call>"}
	case "nemotron":
		return []string{"<TOOLCALL>", "</TOOLCALL>"}
	case "tool-calls":
		return []string{"<tool_calls>", "</tool_calls>"}
	case "apertus":
		return []string{"<|tools_prefix|>", "<|tools_suffix|>"}
	case "internlm":
		return []string{"<|action_start|>", "<|plugin|>", "<|action_end|>"}
	case "gigachat":
		return []string{"<|function_call|>", "<|role_sep|>"}
	case "command":
		return []string{"<|START_ACTION|>", "<|END_ACTION|>"}
	case "mistral", "mistral-args":
		return []string{"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}
	case "llama", "llama-xml":
		return []string{"<|python_tag|>"}
	case "deepseek":
		return []string{"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
			"<｜tool▁sep｜>"}
	case "kimi":
		return []string{"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
			"<|tool_call_argument_begin|>", "<|tool_call_end|>"}
	case "harmony":
		return append(harmonyMarks(), "<|channel|>", "<|constrain|>")
	case "gemma":
		return []string{"<|tool_call>", "<tool_call|>", `<|"|>`}
	case "functiongemma":
		return []string{"<start_function_call>", "<end_function_call>", "<escape>"}
	case "lfm2":
		return []string{"<|tool_call_start|>", "<|tool_call_end|>"}
	case "olmo":
		return []string{"<function_calls>", "</function_calls>"}
	}
	return nil
}
