package toolcall

import (
	"encoding/json"
	"slices"
	"strings"
)

// jsonCall is the state of calls written as JSON objects: a single object, several with
// separators, or an array.
type jsonCall struct {
	closes    []string // markers that end the calls
	between   string   // separator that may stand between objects, besides white space
	known     bool     // only calls of known tools count as calls
	byName    bool     // the object has the form {name: arguments}
	ignoreIDs bool

	array     bool
	nested    int // open objects inside the call's own
	key       string
	name, id  string
	arguments string // arguments read before the name
	argued    bool
	scan      scan
}

// jsonFamily starts reading calls as JSON after the markers.
func jsonFamily(c jsonCall, opens ...string) func(p *Parser) {
	return func(p *Parser) {
		for _, open := range opens {
			p.marks = append(p.marks, mark{open, func(p *Parser) { p.readJSON(open, c) }})
		}
	}
}

// readJSON reads calls after an opening marker.
func (p *Parser) readJSON(head string, c jsonCall) {
	p.begin(head)
	p.json, p.state = c, jsonOpen
}

// jsonOpen expects an object or an array of objects.
func jsonOpen(p *Parser) bool {
	if !p.skipWhite() {
		return p.ended()
	}
	switch p.buf[0] {
	case '{':
		p.eat(1)
		p.json.reset()
		p.state = jsonKey
	case '[':
		if p.json.array {
			return p.fail()
		}
		p.json.array = true
		p.eat(1)
		p.state = jsonItem
	default:
		return p.fail()
	}
	return true
}

func (c *jsonCall) reset() {
	c.nested, c.key, c.name, c.id, c.arguments, c.argued = 0, "", "", "", "", false
}

// jsonItem is the state between the objects of an array.
func jsonItem(p *Parser) bool {
	if !p.skipWhite() {
		return p.ended()
	}
	switch p.buf[0] {
	case ']':
		p.eat(1)
		p.json.array, p.state = false, jsonAfter
	case ',':
		p.eat(1)
	default:
		p.state = jsonOpen
	}
	return true
}

// jsonAfter is the state after an object or an array.
func jsonAfter(p *Parser) bool {
	p.begin("")
	p.buf = strings.TrimLeft(p.buf, white+p.json.between)
	if p.buf == "" {
		return false
	}
	for _, end := range p.json.closes {
		is, may := p.at(end)
		if may {
			return p.wait()
		}
		if is {
			p.buf, p.state = p.buf[len(end):], jsonAgain
			return true
		}
	}
	if strings.HasPrefix(p.buf, "{") || strings.HasPrefix(p.buf, "[") {
		p.state = jsonOpen
		return true
	}
	p.state = text
	return true
}

// jsonAgain is the state after the closing marker: some models leave out the opening
// marker of the next call.
func jsonAgain(p *Parser) bool {
	p.begin("")
	if !p.skipWhite() {
		return p.ended()
	}
	if p.buf[0] != '{' {
		return p.fail()
	}
	p.json.known, p.state = true, jsonOpen
	return true
}

// readString reads a JSON string at the beginning of the unread text; ok is false if it
// has not ended yet.
func (p *Parser) readString() (s string, ok bool) {
	n := quotedEnd(p.buf)
	if n == 0 {
		if p.final {
			p.eat(len(p.buf))
		}
		return "", false
	}
	if json.Unmarshal([]byte(p.eat(n)), &s) != nil {
		return "", true // names are never empty
	}
	return s, true
}

// jsonKey is the state inside an object, before a key or the closing brace.
func jsonKey(p *Parser) bool {
	c := &p.json
	if !p.skipWhite() {
		return p.ended()
	}
	switch p.buf[0] {
	case ',':
		p.eat(1)
	case '}':
		p.eat(1)
		if c.nested > 0 {
			c.nested--
			return true
		}
		return p.endObject()
	case '"':
		key, ok := p.readString()
		if !ok {
			return p.ended()
		}
		c.key, p.state = key, jsonColon
	default:
		return p.fail()
	}
	return true
}

func (p *Parser) endObject() bool {
	if !p.named {
		if p.json.name == "" {
			return p.fail()
		}
		p.commit()
	}
	if !p.json.argued {
		p.argue("{}")
	}
	p.begin("")
	p.state = jsonAfter
	if p.json.array {
		p.state = jsonItem
	}
	return true
}

// commit reports the call's name and the arguments that came before it.
func (p *Parser) commit() {
	id := p.json.id
	if p.json.ignoreIDs {
		id = ""
	}
	p.name(p.json.name, id)
	p.argue(p.json.arguments)
	p.json.arguments = ""
}

func jsonColon(p *Parser) bool {
	if !p.skipWhite() {
		return p.ended()
	}
	if p.buf[0] != ':' {
		return p.fail()
	}
	p.eat(1)
	p.state = jsonValue
	return true
}

// jsonValue is the state before the value of a key.
func jsonValue(p *Parser) bool {
	c := &p.json
	if !p.skipWhite() {
		return p.ended()
	}
	first := p.buf[0]
	switch {
	case c.byName && c.nested == 0:
		c.name = c.key
		return p.readArguments()
	case c.key == "function" && first == '{':
		p.eat(1)
		c.nested++
		p.state = jsonKey
		return true
	case slices.Contains([]string{"name", "tool_name", "function"}, c.key) && first == '"':
		s, ok := p.readString()
		if !ok {
			return p.ended()
		}
		if s == "" || c.known && !p.tools.has(s) {
			return p.fail()
		}
		c.name, p.state = s, jsonKey
		return true
	case slices.Contains([]string{"arguments", "parameters", "args"}, c.key) && !c.argued:
		return p.readArguments()
	case slices.Contains([]string{"id", "tool_call_id", "call_id"}, c.key) && first == '"':
		s, ok := p.readString()
		if !ok {
			return p.ended()
		}
		c.id, p.state = s, jsonKey
		return true
	}
	c.scan, p.state = scan{}, jsonSkip
	return true
}

// readArguments reads the value that holds the arguments.
func (p *Parser) readArguments() bool {
	c := &p.json
	if c.name != "" && !p.named {
		p.commit()
	}
	c.argued = true
	if p.buf[0] == '{' || p.buf[0] == '[' {
		c.scan, p.state = scan{}, jsonArguments
		return true
	}
	p.state = jsonOddArguments
	return true
}

// jsonArguments passes an object on as it arrives.
func jsonArguments(p *Parser) bool {
	s, n, done, ok := p.json.scan.feed(p.buf)
	p.eat(n)
	if p.named {
		p.argue(s)
	} else {
		p.json.arguments += s
	}
	if !ok {
		return p.fail()
	}
	if done {
		p.state = jsonKey
		return true
	}
	return p.ended()
}

// jsonOddArguments reads arguments that are a string or missing.
func jsonOddArguments(p *Parser) bool {
	s := ""
	if p.buf != "" && p.buf[0] == '"' {
		var ok bool
		if s, ok = p.readString(); !ok {
			return p.ended()
		}
	} else {
		n := strings.IndexAny(p.buf, " \t\r\n,}]")
		if n < 0 {
			if p.final {
				p.eat(len(p.buf))
			}
			return p.ended()
		}
		s = p.eat(n)
	}
	if s == "null" || s == "" {
		s = "{}"
	}
	if p.named {
		p.argue(s)
	} else {
		p.json.arguments += s
	}
	p.state = jsonKey
	return true
}

// jsonSkip skips the value of an unknown key.
func jsonSkip(p *Parser) bool {
	_, n, done, ok := p.json.scan.feed(p.buf)
	p.eat(n)
	if !ok {
		return p.fail()
	}
	if done {
		p.state = jsonKey
		return true
	}
	return p.ended()
}
