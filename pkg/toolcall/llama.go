package toolcall

import "strings"

// llama parses an answer that is an object with a known tool's name, or several with
// semicolons between them; or <|python_tag|> followed by such an object, by a built-in
// tool as name.call(key=value), or by Python code.
func llama(p *Parser) {
	object := jsonCall{between: ";,", known: true}
	p.marks = append(p.marks, mark{"<|python_tag|>", func(p *Parser) {
		p.begin("<|python_tag|>")
		p.state = pythonTag
	}})
	p.state = func(p *Parser) bool {
		if !p.skipWhite() {
			return p.bareEnd()
		}
		if p.buf[0] != '{' {
			return p.fail()
		}
		p.json, p.state = object, jsonOpen
		return true
	}
}

// llamaAny parses what llama does, and the pythonic calls of later models.
func llamaAny(p *Parser) {
	llama(p)
	object := p.state
	bare(p)
	list := p.state
	pyFamily(pySpec{open: "<|python_start|>", end: "<|python_end|>", list: true})(p)
	p.state = func(p *Parser) bool {
		if p.state = object; strings.HasPrefix(strings.TrimLeft(p.buf, white), "[") {
			p.state = list
		}
		if strings.TrimLeft(p.buf, white) == "" && !p.final {
			p.state = p.start
			return false
		}
		return true
	}
}

// xlam parses an answer that is an array of objects.
func xlam(p *Parser) {
	p.state = func(p *Parser) bool {
		if !p.skipWhite() {
			return p.bareEnd()
		}
		if p.buf[0] != '[' && p.buf[0] != '{' {
			return p.fail()
		}
		p.json, p.state = jsonCall{between: ",", known: true}, jsonOpen
		return true
	}
}

// pythonTag is the state after <|python_tag|>.
func pythonTag(p *Parser) bool {
	if !p.skipWhite() {
		return p.ended()
	}
	if p.buf[0] == '{' {
		p.json, p.state = jsonCall{between: ";,"}, jsonOpen
		return true
	}
	const call = ".call("
	i := strings.IndexFunc(p.buf, func(r rune) bool { return r >= 0x80 || r != '_' && !isAlnum(byte(r)) })
	if (!p.final || p.cut) && (i < 0 || strings.HasPrefix(call, p.buf[i:]) && p.buf[i:] != call) {
		return p.wait()
	}
	if i > 0 && strings.HasPrefix(p.buf[i:], call) {
		p.state = builtin
		return true
	}
	p.name(p.tools.interpreter(), "")
	p.argue(`{"code": "`)
	p.state = code
	return true
}

// interpreter returns the tool that runs Python.
func (t toolset) interpreter() string {
	for _, name := range []string{"python", "code_interpreter", "ipython"} {
		if t.has(name) {
			return name
		}
	}
	return "python"
}

// builtin parses name.call(key=value, …).
func builtin(p *Parser) bool {
	n, ok := pyCallEnd(p.buf)
	if !ok {
		if p.final {
			p.eat(len(p.buf))
		}
		return p.ended()
	}
	name, arguments, ok := pyCall(strings.Replace(p.eat(n), ".call(", "(", 1))
	if !ok {
		return p.fail()
	}
	p.name(name, "")
	p.argue(arguments)
	p.state = text
	return true
}

// code passes Python code on as a string argument, up to the end of the text.
func code(p *Parser) bool {
	p.argue(quote(p.buf))
	p.buf = ""
	if p.final && !p.stopped() {
		p.argue(`"}`)
		p.state = done
	}
	return false
}
