package toolcall

// family describes how a model writes calls.
type family struct {
	begin func(p *Parser)
	// always: the family also parses the answer, so it is used without tools too.
	always bool
}

// families returns the family of that name.
func families(name string) (family, bool) {
	f := family{always: name == "harmony" || name == "functionary"}
	switch name {
	case "hermes", "hermes-pro":
		f.begin = jsonFamily(jsonCall{closes: []string{"</tool_call>"}, between: ","}, "<tool_call>")
	case "granite":
		f.begin = jsonFamily(jsonCall{closes: []string{"<|/tool_call|>", "</tool_call>"}, between: ","},
			"<|tool_call|>", "<tool_call>")
	case "phi":
		f.begin = jsonFamily(jsonCall{closes: []string{"<|/tool_call|>"}, between: ","}, "<|tool_call|>", "functools")
	case "granite-20b":
		f.begin = jsonFamily(jsonCall{closes: []string{"</function_call>"}, between: ","}, "<function_call>")
	case "nemotron":
		f.begin = jsonFamily(jsonCall{closes: []string{"</TOOLCALL>"}, between: ","}, "<TOOLCALL>")
	case "tool-calls":
		f.begin = jsonFamily(jsonCall{closes: []string{"</tool_calls>"}, between: ","}, "<tool_calls>")
	case "apertus":
		f.begin = jsonFamily(jsonCall{closes: []string{"<|tools_suffix|>"}, between: ",", byName: true},
			"<|tools_prefix|>")
	case "internlm":
		f.begin = jsonFamily(jsonCall{closes: []string{"<|action_end|>"}}, "<|action_start|><|plugin|>",
			"<|action_start|> <|plugin|>")
	case "gigachat":
		f.begin = jsonFamily(jsonCall{}, "<|function_call|>", "function call<|role_sep|>\n")
	case "functools":
		f.begin = jsonFamily(jsonCall{between: ","}, "functools")
	case "command":
		f.begin = jsonFamily(jsonCall{closes: []string{"<|END_ACTION|>"}, between: ",", ignoreIDs: true},
			"<|START_ACTION|>")
	case "command-r":
		f.begin = jsonFamily(jsonCall{closes: []string{"```"}, between: ","}, "Action: ```json", "Action:```json",
			"Action:\n```json")
	case "mistral", "mistral-args":
		f.begin = mistral
	case "llama":
		f.begin = llama
	case "llama-xml":
		f.begin = llamaXML
	case "xlam":
		f.begin = xlam
	case "functionary":
		f.begin = functionary
	case "deepseek":
		f.begin = deepseek
	case "deepseek-any": // all generations, for text whose chat template is not at hand
		f.begin = together(deepseek, xmlNamed("dsml"), xmlNamed("dsml-spaced"))
	case "dsml":
		f.begin = together(xmlNamed("dsml"), xmlNamed("dsml-spaced"))
	case "kimi-any":
		f.begin = together(kimi, xmlNamed("kimi-k3"))
	case "llama-any":
		f.begin = llamaAny
	case "kimi":
		f.begin = kimi
	case "harmony":
		f.begin = harmony
	case "gemma":
		f.begin = gemma("<|tool_call>", "<tool_call|>", `<|"|>`)
	case "functiongemma":
		f.begin = gemma("<start_function_call>", "<end_function_call>", "<escape>")
	case "pythonic":
		f.begin = bare
	case "lfm2":
		f.begin = pyFamily(pySpec{open: "<|tool_call_start|>", end: "<|tool_call_end|>", list: true})
	case "olmo":
		f.begin = pyFamily(pySpec{open: "<function_calls>", end: "</function_calls>"})
	case "tool-code":
		f.begin = pyFamily(pySpec{open: "```tool_code", end: "```"})
	default:
		spec, ok := xmlSpecs(name)
		if !ok {
			return family{}, false
		}
		f.begin = xmlFamily(spec)
	}
	return f, true
}

// together reads the calls of several families.
func together(all ...func(p *Parser)) func(p *Parser) {
	return func(p *Parser) {
		for _, begin := range all {
			begin(p)
		}
	}
}

// xmlNamed reads the calls of the family whose specification has that name.
func xmlNamed(name string) func(p *Parser) {
	spec, _ := xmlSpecs(name)
	return xmlFamily(spec)
}

// xmlSpecs returns the specification of a family that writes calls between tags.
func xmlSpecs(name string) (xmlSpec, bool) {
	switch name {
	case "qwen-xml":
		return xmlSpec{opens: []string{"<tool_call>"}, call: "<function=", callName: ">", param: "<parameter=",
			paramName: ">",
			paramEnd:  "</parameter>", callEnd: "</function>", ends: []string{"</tool_call>"}, lines: true}, true
	case "seed":
		return xmlSpec{opens: []string{"<seed:tool_call>"}, call: "<function=", callName: ">", param: "<parameter=",
			paramName: ">",
			paramEnd:  "</parameter>", callEnd: "</function>", ends: []string{"</seed:tool_call>"}}, true
	case "minimax":
		return xmlSpec{opens: []string{"<minimax:tool_call>"}, call: "<invoke name=", callName: ">",
			param: "<parameter name=", paramName: ">",
			paramEnd: "</parameter>", callEnd: "</invoke>", ends: []string{"</minimax:tool_call>"}}, true
	case "dsml":
		return xmlSpec{opens: []string{"<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"}, call: "<｜DSML｜invoke name=",
			callName: ">",
			param:    "<｜DSML｜parameter name=", paramName: ">", paramEnd: "</｜DSML｜parameter>",
			callEnd: "</｜DSML｜invoke>",
			ends:    []string{"</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"}}, true
	case "dsml-spaced":
		return xmlSpec{opens: []string{"<｜DSML｜ calls>"}, call: "<｜DSML｜ invoke name=", callName: ">",
			param: "<｜DSML｜ parameter name=", paramName: ">", paramEnd: "</｜DSML｜ parameter>",
			callEnd: "</｜DSML｜ invoke>", ends: []string{"</｜DSML｜ calls>"}}, true
	case "kimi-k3":
		return xmlSpec{opens: []string{"<|open|>tools<|sep|>"}, call: "<|open|>call ", callName: "<|sep|>",
			param: "<|open|>argument ", paramName: "<|sep|>", paramEnd: "<|close|>argument<|sep|>",
			callEnd: "<|close|>call<|sep|>", ends: []string{"<|close|>tools<|sep|>"}, attributes: true,
			whole: "<|open|>json<|sep|>"}, true
	case "glm":
		return xmlSpec{opens: []string{"<tool_call>"}, param: "<arg_key>", paramName: "</arg_key>",
			value:    "<arg_value>",
			paramEnd: "</arg_value>", ends: []string{"</tool_call>"}}, true
	}
	return xmlSpec{}, false
}
