package toolcall

import (
	"strings"
	"unicode"
)

// until reads up to and including a marker; ok is false if it has not arrived.
func (p *Parser) until(marker string) (before string, ok bool) {
	i := strings.Index(p.buf, marker)
	if i < 0 {
		if p.final {
			p.eat(len(p.buf))
		}
		return "", false
	}
	s := p.eat(i + len(marker))
	return s[:i], true
}

// at reports whether the text continues with a marker, or may do so.
func (p *Parser) at(marker string) (is, may bool) {
	is = strings.HasPrefix(p.buf, marker)
	return is, !is && (!p.final || p.cut) && strings.HasPrefix(marker, p.buf)
}

// wait holds an incomplete marker back until more text arrives, and drops it if the model was stopped.
func (p *Parser) wait() bool {
	if p.final {
		p.eat(len(p.buf))
		return p.ended()
	}
	return false
}

// object reads a JSON object as the named call's arguments and continues with the state
// after.
func (p *Parser) object(after func(*Parser) bool) {
	p.json.scan, p.after, p.state = scan{}, after, objectText
}

func objectText(p *Parser) bool {
	s, n, whole, ok := p.json.scan.feed(p.buf)
	p.buf = p.buf[n:]
	p.argue(s)
	if whole || !ok {
		p.state = p.after
		return true
	}
	return false
}

// deepseek parses <｜tool▁call▁begin｜>type<｜tool▁sep｜>name, a fenced object and
// <｜tool▁call▁end｜>; later models leave out the type and the fence.
func deepseek(p *Parser) {
	p.marks = append(p.marks,
		mark{"<｜tool▁calls▁begin｜>", func(p *Parser) { p.begin(""); p.state = deepseekBetween }},
		mark{"<｜tool▁call▁begin｜>", func(p *Parser) { p.begin("<｜tool▁call▁begin｜>"); p.state = deepseekType }})
}

func deepseekBetween(p *Parser) bool {
	return p.betweenCalls("<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>", deepseekType)
}

// betweenCalls expects another call or the end of all calls.
func (p *Parser) betweenCalls(open, end string, call func(*Parser) bool) bool {
	p.buf = strings.TrimLeft(p.buf, white)
	isCall, mayCall := p.at(open)
	isEnd, mayEnd := p.at(end)
	switch {
	case isCall:
		p.begin("")
		p.eat(len(open))
		p.state = call
	case isEnd:
		p.buf, p.state = p.buf[len(end):], text
	case mayCall || mayEnd:
		return p.wait()
	default:
		p.state = text
	}
	return true
}

func deepseekType(p *Parser) bool {
	name, ok := p.until("<｜tool▁sep｜>")
	if !ok {
		return p.ended()
	}
	p.json.name, p.state = strings.TrimSpace(name), deepseekName
	return true
}

func deepseekName(p *Parser) bool {
	i := strings.IndexByte(p.buf, '{')
	if i < 0 {
		if p.final {
			p.eat(len(p.buf))
		}
		return p.ended()
	}
	first, rest, lines := strings.Cut(p.buf[:i], "\n")
	if lines && strings.TrimSpace(first) != "" {
		p.json.name = strings.TrimSpace(first)
		first = rest
	}
	if !isFence(first) || !isName(p.json.name) {
		return p.fail()
	}
	p.eat(i)
	p.name(p.json.name, "")
	p.object(deepseekEnd)
	return true
}

// isFence reports whether a text is exactly the opening of a code fence.
func isFence(s string) bool {
	return strings.Trim(strings.Replace(s, "json", "", 1), white+"`") == ""
}

// isName reports whether a text can be the name of a tool.
func isName(s string) bool {
	return s != "" && len(s) <= 256 && strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_-./:$", r)
	}) < 0
}

func deepseekEnd(p *Parser) bool {
	if _, i := p.findIn([]string{"<｜tool▁call▁end｜>"}); i < 0 {
		return false
	}
	p.state = deepseekBetween
	return true
}

// kimi parses <|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>object
// <|tool_call_end|>, inside a section.
func kimi(p *Parser) {
	p.keep = true
	p.marks = append(p.marks,
		mark{"<|tool_calls_section_begin|>", func(p *Parser) { p.begin(""); p.state = kimiSection }},
		mark{"<|tool_call_begin|>", func(p *Parser) { p.begin("<|tool_call_begin|>"); p.state = kimiName }})
}

// kimiSection is the state between the calls of a section, in which other text means nothing.
func kimiSection(p *Parser) bool {
	_, i := p.findIn([]string{"<|tool_call_begin|>", "<|tool_calls_section_end|>"})
	switch i {
	case 0:
		p.begin("<|tool_call_begin|>")
		p.section, p.state = true, kimiName
	case 1:
		p.section, p.state = false, text
	default:
		return false
	}
	return true
}

func kimiBetween(p *Parser) bool {
	if p.section {
		p.state = kimiSection
		return true
	}
	return p.betweenCalls("<|tool_call_begin|>", "<|tool_calls_section_end|>", kimiName)
}

func kimiName(p *Parser) bool {
	id, ok := p.until("<|tool_call_argument_begin|>")
	if !ok {
		return p.ended()
	}
	id = strings.TrimSpace(id)
	name := strings.TrimPrefix(id, "functions.")
	if i := strings.LastIndexByte(name, ':'); i > 0 {
		name = name[:i]
	}
	if !isName(name) {
		return p.fail()
	}
	p.name(name, id)
	p.state = func(p *Parser) bool { return p.openObject(kimiEnd, "<|tool_call_end|>") }
	return true
}

func kimiEnd(p *Parser) bool {
	if _, i := p.findIn([]string{"<|tool_call_end|>"}); i < 0 {
		return false
	}
	p.state = kimiBetween
	return true
}

// openObject expects the arguments of a named call. The text end takes their place in a
// call without arguments.
func (p *Parser) openObject(after func(*Parser) bool, end string) bool {
	p.buf = strings.TrimLeft(p.buf, white)
	if p.buf == "" {
		return false
	}
	isEnd, mayEnd := p.at(end)
	switch {
	case p.buf[0] == '{':
		p.object(after)
	case mayEnd && end != "":
		return p.wait()
	default:
		p.argue("{}")
		p.state = after
		if !isEnd {
			p.state = text
		}
	}
	return true
}

// mistral parses [TOOL_CALLS] and an array of objects, or for each call
// [TOOL_CALLS]name[ARGS]object, with an optional [CALL_ID] and id before [ARGS].
func mistral(p *Parser) {
	p.marks = append(p.marks, mark{"[TOOL_CALLS]", func(p *Parser) {
		p.begin("[TOOL_CALLS]")
		p.json = jsonCall{between: ","}
		p.state = mistralOpen
	}})
}

func mistralOpen(p *Parser) bool {
	if !p.skipWhite() {
		return p.ended()
	}
	p.state = mistralName
	if p.buf[0] == '[' || p.buf[0] == '{' {
		p.state = jsonOpen
	}
	return true
}

func mistralName(p *Parser) bool {
	i := strings.IndexAny(p.buf, "[{")
	if i < 0 {
		if p.final {
			p.eat(len(p.buf))
		}
		return p.ended()
	}
	name := strings.TrimSpace(p.buf[:i])
	if !isName(name) {
		return p.fail()
	}
	p.json.name, p.json.id = name, ""
	p.eat(i)
	p.state = mistralArgs
	return true
}

func mistralArgs(p *Parser) bool {
	if p.buf == "" {
		return p.ended()
	}
	if p.buf[0] == '{' {
		p.commit()
		p.object(text)
		return true
	}
	isArgs, mayArgs := p.at("[ARGS]")
	isID, mayID := p.at("[CALL_ID]")
	switch {
	case isArgs:
		p.eat(len("[ARGS]"))
		p.commit()
		p.state = func(p *Parser) bool { return p.openObject(text, "") }
	case isID:
		i := strings.Index(p.buf, "[ARGS]")
		if i < 0 {
			if p.final {
				p.eat(len(p.buf))
			}
			return p.ended()
		}
		p.json.id = strings.TrimSpace(p.eat(i)[len("[CALL_ID]"):])
	case mayArgs || mayID:
		return p.wait()
	default:
		return p.fail()
	}
	return true
}

// llamaXML parses <function=name>object</function>.
func llamaXML(p *Parser) {
	llama(p)
	p.marks = append(p.marks, mark{"<function=", func(p *Parser) { p.begin("<function="); p.state = llamaXMLName }})
}

func llamaXMLName(p *Parser) bool {
	name, ok := p.until(">")
	if !ok {
		return p.ended()
	}
	if !isName(name) {
		return p.fail()
	}
	p.name(name, "")
	p.state = func(p *Parser) bool { return p.openObject(llamaXMLEnd, "</function>") }
	return true
}

func llamaXMLEnd(p *Parser) bool {
	p.buf = strings.TrimLeft(p.buf, white)
	is, may := p.at("</function>")
	if may {
		return p.wait()
	}
	if is {
		p.buf = p.buf[len("</function>"):]
	}
	p.state = text
	return true
}

// functionary parses >>>name, a line break and an object, or >>>all and content. The
// prompt ends with the first >>>.
func functionary(p *Parser) {
	p.marks = append(p.marks, mark{">>>", func(p *Parser) { p.begin(">>>"); p.state = functionaryName }})
	if strings.HasSuffix(p.o.Prompt, ">>>") {
		p.begin("")
		p.state = functionaryName
	}
}

func functionaryName(p *Parser) bool {
	name, ok := p.until("\n")
	if !ok {
		return p.ended()
	}
	switch name = strings.TrimSpace(name); {
	case name == "all":
		p.head, p.trim, p.state = "", true, text
	case !p.tools.has(name):
		return p.fail()
	default:
		p.name(name, "")
		p.state = func(p *Parser) bool { return p.openObject(text, ">>>") }
	}
	return true
}
