package toolcall

import (
	"strings"
)

// pythonic parses [name(key=value, …), …], with or without markers around it.
type pySpec struct {
	open, end string
	list      bool // the calls are in brackets; otherwise one on each line
}

func pyFamily(spec pySpec) func(p *Parser) {
	return func(p *Parser) {
		p.marks = append(p.marks, mark{spec.open, func(p *Parser) {
			p.begin(spec.open)
			p.state = func(p *Parser) bool { return p.pyCalls(&spec) }
		}})
	}
}

// bare parses pythonic calls without markers: an answer that begins with a bracket and the name
// of a known tool.
func bare(p *Parser) {
	spec := pySpec{list: true}
	p.state = func(p *Parser) bool {
		if !p.skipWhite() {
			return p.bareEnd()
		}
		if p.buf[0] != '[' {
			return p.fail()
		}
		name, _, called := strings.Cut(strings.TrimLeft(p.buf[1:], white), "(")
		switch {
		case !called && p.tools.begin(name) && (!p.final || p.cut):
			return p.wait()
		case !called || !p.tools.has(name):
			return p.fail()
		}
		p.state = func(p *Parser) bool { return p.pyCalls(&spec) }
		return true
	}
}

// bareEnd ends a text of only white space.
func (p *Parser) bareEnd() bool {
	if !p.final {
		return false
	}
	return p.fail()
}

// pyCalls reads one complete call, or the separator between calls.
func (p *Parser) pyCalls(spec *pySpec) bool {
	between := white + ",;"
	p.eat(len(p.buf) - len(strings.TrimLeft(p.buf, between)))
	if p.buf == "" {
		return p.ended()
	}
	if spec.end != "" {
		is, may := p.at(spec.end)
		switch {
		case is:
			p.eat(len(spec.end))
			p.head, p.state = "", text
			return true
		case may:
			return p.wait()
		}
	}
	switch p.buf[0] {
	case '[':
		if p.named || !spec.list {
			return p.fail()
		}
		p.eat(1)
		return true
	case ']':
		p.eat(1)
		p.head = ""
		if spec.end == "" {
			p.state = text
		}
		return true
	}
	call, ok := pyCallEnd(p.buf)
	if !ok {
		if p.final {
			p.eat(len(p.buf))
		}
		return p.ended()
	}
	if call == 0 {
		return p.fail()
	}
	source := p.eat(call)
	name, arguments, ok := pyCall(source)
	if !ok {
		return p.fail()
	}
	p.name(name, "")
	p.argue(arguments)
	p.begin("")
	p.named = true
	return true
}

// pyCallEnd returns the end of the call at the beginning of s; 0 if there is none. ok is
// false if more text is needed to decide.
func pyCallEnd(s string) (n int, ok bool) {
	i := strings.IndexByte(s, '(')
	if bad := strings.IndexFunc(s, func(r rune) bool {
		return r < 0x80 && !isAlnum(byte(r)) && strings.IndexByte("_.-", byte(r)) < 0
	}); bad >= 0 && (i < 0 || bad < i) || i == 0 {
		return 0, true
	}
	if i < 0 {
		return 0, false
	}
	depth := 0
	for at := i; at < len(s); at++ {
		switch c := s[at]; c {
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			if depth--; depth == 0 {
				return at + 1, true
			}
		case '\'', '"':
			quote := s[at : at+1]
			if strings.HasPrefix(s[at:], strings.Repeat(quote, 3)) {
				quote = strings.Repeat(quote, 3)
			} else if rest := len(s) - at; rest < 3 { // two or three quotes are still possible
				return 0, false
			}
			for at += len(quote); at < len(s) && !strings.HasPrefix(s[at:], quote); at++ {
				if s[at] == '\\' {
					at++
				}
			}
			at += len(quote) - 1
		}
	}
	return 0, false
}

// pyCall parses name(key=value, …).
func pyCall(s string) (name, arguments string, ok bool) {
	i := strings.IndexByte(s, '(')
	name = s[:i]
	if name == "print" { // print(call) stands for the call inside
		l := pyLexer{s: s, at: i + 1}
		l.space()
		if inner, found := pyCallEnd(s[l.at:]); found && inner > 0 {
			return pyCall(s[l.at : l.at+inner])
		}
	}
	if !isName(name) {
		return "", "", false
	}
	l := pyLexer{s: s, at: i + 1}
	var b strings.Builder
	b.WriteByte('{')
	for n := 0; !l.take(')'); n++ {
		if n > 0 {
			if !l.take(',') {
				return "", "", false
			}
			if l.take(')') {
				break
			}
			b.WriteString(", ")
		}
		key := l.word()
		if key == "" || !l.take('=') {
			return "", "", false
		}
		v, ok := l.value(0)
		if !ok {
			return "", "", false
		}
		b.WriteString(marshal(key) + ": " + v)
	}
	b.WriteByte('}')
	return name, b.String(), l.at == len(s)
}
