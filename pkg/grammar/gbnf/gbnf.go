package gbnf

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Parse parses llama.cpp's grammar notation: rules `name ::= alternatives` of
// literals, classes, `.`, rule names and groups, each with `*`, `+`, `?`, `{m}`,
// `{m,}` or `{m,n}`; comments from # to the end of the line; the escapes \n \r \t
// \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH. A rule ends with its line unless a
// parenthesis is open or a bar ends or begins the line. The rule root is the whole
// text. It returns a *SyntaxError with the line, an *UnsupportedError for tokens
// in angle brackets, or a *LimitError.
func Parse(source string) (*ast.Grammar, error) {
	if len(source) > ast.MaxSource {
		return nil, &ast.LimitError{What: "source bytes", Limit: ast.MaxSource}
	}
	if !utf8.ValidString(source) {
		return nil, &ast.SyntaxError{Kind: "gbnf", Msg: "read text: it is not valid UTF-8"}
	}
	p := &gbnf{text: source, line: 1, names: map[string]int{}}
	p.names["root"] = 0
	p.rules = []ast.Rule{{Name: "root"}}
	p.used = []int{0}
	if err := p.parse(); err != nil {
		return nil, err
	}
	for i, r := range p.rules {
		switch {
		case r.Body != nil:
		case r.Name == "root":
			return nil, &ast.SyntaxError{Kind: "gbnf", Msg: "find rule root: not defined"}
		default:
			return nil, &ast.SyntaxError{Kind: "gbnf", Line: p.used[i],
				Msg: fmt.Sprintf("find rule %s: not defined", r.Name)}
		}
	}
	return &ast.Grammar{Rules: p.rules, Kind: "gbnf"}, nil
}

type gbnf struct {
	text  string
	at    int
	line  int
	rules []ast.Rule
	used  []int // line of a rule's first mention
	names map[string]int
}

func (p *gbnf) fail(format string, args ...any) error {
	return &ast.SyntaxError{Kind: "gbnf", Line: p.line, Msg: fmt.Sprintf(format, args...)}
}

// peek returns the next byte, or 0 at the end.
func (p *gbnf) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *gbnf) end() bool { return p.at >= len(p.text) }

// space skips blanks and comments and, if newline is set, line ends.
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

// symbol returns the index of the rule of that name. It adds the rule if the name is new.
func (p *gbnf) symbol(name string) (int, error) {
	id, ok := p.names[name]
	if !ok {
		id = len(p.rules)
		if id >= ast.MaxRules {
			return 0, &ast.LimitError{What: "rules", Limit: ast.MaxRules}
		}
		p.names[name] = id
		p.rules = append(p.rules, ast.Rule{Name: name})
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
		if p.rules[id].Body != nil {
			return p.fail("define rule %s: it is already defined on line %d", name, p.rules[id].Line)
		}
		body, err := p.alternatives(0)
		if err != nil {
			return err
		}
		p.rules[id].Body, p.rules[id].Line = body, line
		if c := p.peek(); !p.end() && c != '\n' && c != '\r' {
			return p.fail("want the end of the line, found %q", p.found())
		}
	}
	return nil
}

// found returns the next character, for messages.
func (p *gbnf) found() string {
	if p.end() {
		return "end of text"
	}
	_, n := utf8.DecodeRuneInString(p.text[p.at:])
	return p.text[p.at : p.at+n]
}

// barAhead skips to a bar at the beginning of a later line, if there is one.
func (p *gbnf) barAhead() bool {
	at, line := p.at, p.line
	p.space(true)
	if p.peek() == '|' {
		return true
	}
	p.at, p.line = at, line
	return false
}

func (p *gbnf) alternatives(depth int) (*ast.Expr, error) {
	if depth > ast.MaxNesting {
		return nil, &ast.LimitError{What: "nested groups", Limit: ast.MaxNesting}
	}
	var subs []*ast.Expr
	for {
		e, err := p.sequence(depth)
		if err != nil {
			return nil, err
		}
		subs = append(subs, e)
		if p.peek() != '|' && !p.barAhead() {
			return ast.Alt(subs...), nil
		}
		p.at++
		p.space(true)
	}
}

func (p *gbnf) sequence(depth int) (*ast.Expr, error) {
	var subs []*ast.Expr
	for {
		e, err := p.element(depth)
		if err != nil || e == nil {
			return ast.Seq(subs...), err
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
			if e.Op == ast.OpRepeat && most >= 0 && int(e.Max) > ast.MaxRepeat/max(most, 1) {
				return nil, &ast.LimitError{What: "repetitions", Limit: ast.MaxRepeat}
			}
			e = ast.Repeat(e, least, most)
			p.space(depth > 0)
		}
		subs = append(subs, e)
	}
}

// element reads one element of a sequence, to which a quantifier may apply. It returns nil at
// the end of the sequence.
func (p *gbnf) element(depth int) (*ast.Expr, error) {
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
		return ast.Char(charset.Any(), ast.PlainUTF8), nil
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
		return ast.Ref(id), err
	case c == '<' || c == '!':
		return nil, &ast.UnsupportedError{Kind: "gbnf", Feature: fmt.Sprintf("token reference on line %d", p.line),
			Why: "a grammar describes text, not token ids"}
	case c == '*' || c == '+' || c == '?' || c == '{':
		return nil, p.fail("want something before %q", p.found())
	}
	return nil, nil
}
