package toolcall

import (
	"encoding/json"
	"strings"
)

// xmlSpec describes how a family writes calls between tags, with one tag for each parameter.
type xmlSpec struct {
	opens             []string // markers that begin the calls
	call, callName    string   // what begins a call, and what ends its name
	param, paramName  string   // the same for a parameter
	value             string   // separator between a parameter's name and its value, after white space
	paramEnd, callEnd string
	ends              []string
	lines             bool   // values are on lines of their own
	attributes        bool   // names stand in the attributes tool and key, types in type
	whole             string // what begins an object in place of the parameters
}

// xmlCall is the state of a call between tags.
type xmlCall struct {
	spec   *xmlSpec
	some   bool   // a parameter was read
	name   string // name of the call
	key    string // name of the parameter
	kinds  kinds  // types of the parameter
	begun  bool   // the text of the string has begun
	held   string // part of the value, held back
	quoted bool   // the value is a string that is passed on as it arrives
}

func xmlFamily(spec xmlSpec) func(p *Parser) {
	return func(p *Parser) {
		for _, open := range spec.opens {
			p.marks = append(p.marks, mark{open, func(p *Parser) {
				p.begin(open)
				p.xml, p.state = xmlCall{spec: &spec}, xmlBetween
			}})
		}
		if spec.lines { // the models also call from inside the reasoning
			for _, open := range spec.opens {
				p.inside = append(p.inside, open+"\n"+spec.call)
			}
		}
		if strings.HasPrefix(spec.call, "<function") { // some models leave out the surrounding markers
			p.marks = append(p.marks, mark{spec.call, func(p *Parser) {
				p.begin(spec.call)
				p.xml, p.state = xmlCall{spec: &spec}, xmlName
			}})
		}
	}
}

// xmlBetween expects a call or the end of all calls.
func xmlBetween(p *Parser) bool {
	x := p.xml.spec
	if !p.skipWhite() {
		return p.ended()
	}
	end, mayEnd := 0, false
	for _, e := range x.ends {
		is, may := p.at(e)
		if is {
			end = len(e)
		}
		mayEnd = mayEnd || may
	}
	isCall, mayCall := p.at(x.call)
	switch {
	case end > 0:
		p.eat(end)
		p.head, p.state = "", text
	case isCall && x.call != "":
		p.eat(len(x.call))
		if p.named {
			p.begin(x.call)
		}
		p.state = xmlName
	case mayEnd || mayCall && x.call != "":
		return p.wait()
	case x.call == "" && !p.named:
		p.state = xmlName
	case p.named:
		p.state = text
	default:
		return p.fail()
	}
	return true
}

func xmlName(p *Parser) bool {
	x := p.xml.spec
	i := strings.Index(p.buf, x.callName)
	if x.call == "" { // the name ends at the first other character
		i = strings.IndexAny(p.buf, "<\n")
	}
	if i < 0 {
		if p.final {
			p.eat(len(p.buf))
		}
		return p.ended()
	}
	name := strings.TrimSpace(p.buf[:i])
	name, closed := strings.CutSuffix(name, `"/`) // an element without content
	name = strings.Trim(name, white+`"`)
	if x.attributes {
		name = attribute(p.buf[:i], "tool")
	}
	if !isName(name) {
		return p.fail()
	}
	p.eat(i)
	if x.call != "" {
		p.eat(len(x.callName))
	}
	p.name(name, "")
	p.xml.name, p.xml.some = name, false
	if p.state = xmlBody; closed {
		p.argue("{}")
		p.state = xmlBetween
	}
	return true
}

// xmlBody is the state before the parameters, or before an object in their place.
func xmlBody(p *Parser) bool {
	p.buf = strings.TrimLeft(p.buf, white)
	whole, mayWhole := p.at(p.xml.spec.whole)
	switch {
	case p.xml.spec.whole != "" && mayWhole && p.buf != "":
		return p.wait()
	case p.xml.spec.whole != "" && whole:
		p.buf = p.buf[len(p.xml.spec.whole):]
		p.object(xmlClose)
	case p.buf == "" && (!p.final || p.stopped()):
		return false
	case strings.HasPrefix(p.buf, "{"):
		p.object(xmlClose)
	default:
		p.argue("{")
		p.state = xmlParams
	}
	return true
}

// xmlClose skips the text between an object and the end of the call.
func xmlClose(p *Parser) bool {
	x := p.xml.spec
	_, i := p.findIn(append([]string{x.callEnd}, x.ends...))
	if i < 0 {
		return false
	}
	p.state = text
	if i == 0 {
		p.state = xmlBetween
	}
	return true
}

// xmlParams searches for the next parameter.
func xmlParams(p *Parser) bool {
	x := p.xml.spec
	_, i := p.findIn(append([]string{x.param, x.callEnd}, x.ends...))
	switch {
	case i == 0:
		p.state = xmlKey
	case i == 1:
		p.argue("}")
		p.state = xmlBetween
	case i > 1:
		p.argue("}")
		p.state = text
	default:
		if p.final && !p.stopped() { // the model left out the end
			p.argue("}")
			p.state = done
		}
		return false
	}
	return true
}

func xmlKey(p *Parser) bool {
	x := p.xml.spec
	key, ok := p.until(x.paramName)
	if !ok {
		return false
	}
	p.xml.kinds = p.tools.kinds(p.xml.name, "")
	if x.attributes {
		p.xml.key, p.xml.kinds = attribute(key, "key"), kinds{attribute(key, "type"): true}
		p.state = xmlValueBegin
		return true
	}
	if name, attrs, ok := strings.Cut(key, `" `); ok { // string="true"
		key = name
		p.xml.kinds = kinds{"string": strings.Contains(attrs, `"true"`), "json": true}
	}
	p.xml.key = strings.Trim(key, white+`"`)
	if p.xml.kinds == nil {
		p.xml.kinds = p.tools.kinds(p.xml.name, p.xml.key)
	}
	p.state = xmlValueBegin
	return true
}

// attribute returns the value of name="value" in a tag, "" if it is not there.
func attribute(tag, name string) string {
	_, rest, found := strings.Cut(" "+tag, " "+name+`="`)
	value, _, ended := strings.Cut(rest, `"`)
	if !found || !ended {
		return ""
	}
	return strings.NewReplacer("&quot;", `"`, "&amp;", "&").Replace(value)
}

// xmlValueBegin is the state before a parameter's value.
func xmlValueBegin(p *Parser) bool {
	x := p.xml.spec
	if x.value != "" {
		p.buf = strings.TrimLeft(p.buf, white)
		is, may := p.at(x.value)
		if may || p.buf == "" {
			return p.wait()
		}
		if is {
			p.buf = p.buf[len(x.value):]
		}
	}
	name, err := json.Marshal(p.xml.key)
	if err != nil {
		return p.fail()
	}
	if p.xml.some {
		p.argue(", ")
	}
	p.argue(string(name) + ": ")
	p.xml.some, p.xml.begun, p.xml.held = true, false, ""
	p.xml.quoted = p.xml.kinds.onlyString()
	if p.xml.quoted {
		p.argue(`"`)
	}
	p.state = xmlValue
	return true
}

// xmlValue reads a value: a string is passed on as it arrives, other types when complete.
func xmlValue(p *Parser) bool {
	x := p.xml.spec
	before, i := p.findIn([]string{x.paramEnd})
	p.xml.held += before
	if i == 0 && !p.xml.quoted && len(p.xml.kinds) > 0 && !p.xml.kinds["string"] && withinString(p.xml.held) {
		p.xml.held += x.paramEnd
		return true
	}
	if x.lines && !p.xml.begun && p.xml.held != "" {
		p.xml.begun = true
		p.xml.held = strings.TrimPrefix(p.xml.held, "\n")
	}
	whole := i == 0 || p.final && !p.stopped()
	if p.xml.quoted {
		s := p.xml.held
		if x.lines && whole {
			s = strings.TrimSuffix(s, "\n")
		} else if x.lines && strings.HasSuffix(s, "\n") {
			s = s[:len(s)-1]
		}
		p.xml.held = p.xml.held[len(s):]
		p.argue(quote(s))
	}
	if !whole {
		return false
	}
	if p.xml.quoted {
		p.argue(`"`)
	} else {
		s := p.xml.held
		if x.lines {
			s = strings.TrimSuffix(s, "\n")
		}
		p.argue(p.xml.kinds.value(s))
	}
	p.xml.held, p.state = "", xmlParams
	return true
}

// withinString reports whether a JSON value truncated here ends inside a string.
func withinString(s string) bool {
	s = strings.TrimLeft(s, white)
	if s == "" || strings.IndexByte(`{["`, s[0]) < 0 {
		return false
	}
	var c scan
	_, _, whole, ok := c.feed(s)
	return ok && !whole && c.quoted
}

// quote escapes text as the inside of a JSON string.
func quote(s string) string {
	q := marshal(s)
	return q[1 : len(q)-1]
}

// marshal writes JSON as Python does, without escaping HTML characters.
func marshal(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return `""` // strings can always be written
	}
	return strings.TrimSuffix(b.String(), "\n")
}
