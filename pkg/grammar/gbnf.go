package grammar

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxNesting bounds the parentheses of GBNF and regular expressions and the
// nesting of a schema, so that no input can exhaust the stack of calls.
const maxNesting = 200

// maxRepeat bounds the numbers in braces.
const maxRepeat = 1 << 20

// GBNF reads llama.cpp's grammar notation: rules `name ::= alternatives` of
// literals, classes, `.`, rule names and groups, each with `*`, `+`, `?`, `{m}`,
// `{m,}` or `{m,n}`; comments from # to the end of the line; the escapes \n \r \t
// \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH. A rule ends with its line unless a
// parenthesis is open or a bar ends or begins the line. The rule root is the whole
// text. It returns a *SyntaxError with the line, an *UnsupportedError for tokens
// in angle brackets, or a *LimitError.
func GBNF(source string) (*Grammar, error) {
	if len(source) > maxSource {
		return nil, &LimitError{What: "source bytes", Limit: maxSource}
	}
	if !utf8.ValidString(source) {
		return nil, &SyntaxError{Kind: "gbnf", Msg: "read text: it is not valid UTF-8"}
	}
	p := &gbnf{text: source, line: 1, names: map[string]int{}}
	p.names["root"] = 0
	p.rules = []rule{{name: "root"}}
	p.used = []int{0}
	if err := p.parse(); err != nil {
		return nil, err
	}
	for i, r := range p.rules {
		switch {
		case r.body != nil:
		case r.name == "root":
			return nil, &SyntaxError{Kind: "gbnf", Msg: "find rule root: it is not defined"}
		default:
			return nil, &SyntaxError{Kind: "gbnf", Line: p.used[i], Msg: fmt.Sprintf("find rule %s: it is not defined", r.name)}
		}
	}
	return &Grammar{rules: p.rules, kind: "gbnf"}, nil
}

type gbnf struct {
	text  string
	at    int
	line  int
	rules []rule
	used  []int // line of a rule's first mention
	names map[string]int
}

func (p *gbnf) fail(format string, args ...any) error {
	return &SyntaxError{Kind: "gbnf", Line: p.line, Msg: fmt.Sprintf(format, args...)}
}

// peek is the next byte, or 0 at the end.
func (p *gbnf) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *gbnf) end() bool { return p.at >= len(p.text) }

// space skips blanks and comments, and line ends where newline says so.
func (p *gbnf) space(newline bool) {
	for !p.end() {
		switch c := p.peek(); {
		case c == '#':
			for !p.end() && p.peek() != '\n' && p.peek() != '\r' {
				p.at++
			}
		case c == ' ' || c == '\t' || c == '\r' && (newline || strings.HasPrefix(p.text[p.at:], "\r\n")):
			p.at++
		case c == '\n' && newline:
			p.line++
			p.at++
		default:
			return
		}
	}
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func (p *gbnf) name() string {
	start := p.at
	for !p.end() && nameByte(p.peek()) {
		p.at++
	}
	return p.text[start:p.at]
}

// symbol is the index of the rule of that name.
func (p *gbnf) symbol(name string) (int, error) {
	id, ok := p.names[name]
	if !ok {
		id = len(p.rules)
		if id >= maxRules {
			return 0, &LimitError{What: "rules", Limit: maxRules}
		}
		p.names[name] = id
		p.rules = append(p.rules, rule{name: name})
		p.used = append(p.used, p.line)
	}
	return id, nil
}

func (p *gbnf) parse() error {
	for p.space(true); !p.end(); p.space(true) {
		line := p.line
		name := p.name()
		if name == "" {
			return p.fail("want a rule's name, found %q", p.found())
		}
		id, err := p.symbol(name)
		if err != nil {
			return err
		}
		p.space(false)
		if !strings.HasPrefix(p.text[p.at:], "::=") {
			return p.fail("want ::= after %s, found %q", name, p.found())
		}
		p.at += len("::=")
		p.space(true)
		if p.rules[id].body != nil {
			return p.fail("define rule %s: it is defined on line %d already", name, p.rules[id].line)
		}
		body, err := p.alternatives(0)
		if err != nil {
			return err
		}
		p.rules[id].body, p.rules[id].line = body, line
		if c := p.peek(); !p.end() && c != '\n' && c != '\r' {
			return p.fail("want the end of the line, found %q", p.found())
		}
	}
	return nil
}

// found is the next character, for messages.
func (p *gbnf) found() string {
	if p.end() {
		return "end of text"
	}
	_, n := utf8.DecodeRuneInString(p.text[p.at:])
	return p.text[p.at : p.at+n]
}

// barAhead skips to a bar that begins a later line, if there is one.
func (p *gbnf) barAhead() bool {
	at, line := p.at, p.line
	p.space(true)
	if p.peek() == '|' {
		return true
	}
	p.at, p.line = at, line
	return false
}

func (p *gbnf) alternatives(depth int) (*expr, error) {
	if depth > maxNesting {
		return nil, &LimitError{What: "nested groups", Limit: maxNesting}
	}
	var subs []*expr
	for {
		e, err := p.sequence(depth)
		if err != nil {
			return nil, err
		}
		subs = append(subs, e)
		if p.peek() != '|' && !p.barAhead() {
			return alt(subs...), nil
		}
		p.at++
		p.space(true)
	}
}

func (p *gbnf) sequence(depth int) (*expr, error) {
	var subs []*expr
	for {
		e, err := p.element(depth)
		if err != nil || e == nil {
			return seq(subs...), err
		}
		p.space(depth > 0)
		for {
			least, most, ok, err := p.quantifier()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			if e.op == opRepeat && most >= 0 && int(e.max) > maxRepeat/max(most, 1) {
				return nil, &LimitError{What: "repetitions", Limit: maxRepeat}
			}
			e = repeat(e, least, most)
			p.space(depth > 0)
		}
		subs = append(subs, e)
	}
}

// element reads what a quantifier may follow, or nil at the end of a sequence.
func (p *gbnf) element(depth int) (*expr, error) {
	if p.end() {
		return nil, nil
	}
	switch c := p.peek(); {
	case c == '"':
		return p.literal()
	case c == '[':
		return p.class()
	case c == '.':
		p.at++
		return char(anyRune(), plainUTF8), nil
	case c == '(':
		p.at++
		p.space(true)
		e, err := p.alternatives(depth + 1)
		if err != nil {
			return nil, err
		}
		if p.peek() != ')' {
			return nil, p.fail("want ), found %q", p.found())
		}
		p.at++
		return e, nil
	case nameByte(c):
		start, line := p.at, p.line
		name := p.name()
		rest := p.at
		p.space(false)
		if strings.HasPrefix(p.text[p.at:], "::=") {
			p.at, p.line = start, line
			return nil, p.fail("begin rule %s: the rule before it has not ended", name)
		}
		p.at = rest
		id, err := p.symbol(name)
		return ref(id), err
	case c == '<' || c == '!':
		return nil, &UnsupportedError{Kind: "gbnf", Feature: fmt.Sprintf("token reference on line %d", p.line), Why: "grammars here are over text, not over token ids"}
	case c == '*' || c == '+' || c == '?' || c == '{':
		return nil, p.fail("want something before %q", p.found())
	}
	return nil, nil
}
