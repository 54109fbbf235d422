package template

import "fmt"

// Template is a parsed template. It is immutable and safe for concurrent use.
type Template struct {
	body   []stmt
	blocks map[string][]stmt
}

// maxSource bounds the bytes of a template, and maxChain the consecutive operators of an
// expression.
const (
	maxSource = 1 << 20
	maxChain  = 1000
)

// Parse parses a template. It returns a *SyntaxError for a malformed template, one longer
// than 1 MiB, or one nested deeper than 200 levels.
func Parse(src string) (*Template, error) {
	if len(src) > maxSource {
		return nil, &SyntaxError{Line: 1, Reason: fmt.Sprintf("longer than %d bytes", maxSource)}
	}
	tokens, err := lex(src)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	body, _, err := p.block()
	if err != nil {
		return nil, err
	}
	if len(p.unknown) > 0 {
		return nil, p.unknown[0]
	}
	return &Template{body: body, blocks: p.blocks}, nil
}

type parser struct {
	tokens []token
	at     int
	depth  int
	loops  int
	takes  uses // special variables of the macro being parsed
	blocks map[string][]stmt
	// unknown lists the filters and tests that do not exist. Those inside a condition fail when
	// they are reached, the others when the template is parsed.
	unknown []error
}

func (p *parser) peek() token { return p.tokens[p.at] }

func (p *parser) next() token {
	t := p.tokens[p.at]
	if t.kind != tokenEnd {
		p.at++
	}
	return t
}

func (p *parser) errorf(format string, args ...any) error {
	return &SyntaxError{Line: p.peek().line, Reason: fmt.Sprintf(format, args...)}
}

func (p *parser) is(kind tokenKind, text string) bool {
	t := p.peek()
	return t.kind == kind && t.text == text
}

func (p *parser) op(text string) bool   { return p.is(tokenOperator, text) }
func (p *parser) word(text string) bool { return p.is(tokenName, text) }

func (p *parser) skip(kind tokenKind, text string) bool {
	if p.is(kind, text) {
		p.at++
		return true
	}
	return false
}

func (p *parser) skipOp(text string) bool   { return p.skip(tokenOperator, text) }
func (p *parser) skipWord(text string) bool { return p.skip(tokenName, text) }

func (p *parser) expectOp(text string) error {
	if !p.skipOp(text) {
		return p.errorf("expected %q, found %q", text, p.peek().text)
	}
	return nil
}

func (p *parser) name() (string, error) {
	t := p.next()
	if t.kind != tokenName {
		return "", &SyntaxError{Line: t.line, Reason: fmt.Sprintf("expected a name, found %q", t.text)}
	}
	return t.text, nil
}

func (p *parser) endBlock() error {
	if t := p.next(); t.kind != tokenBlockEnd {
		return &SyntaxError{Line: t.line, Reason: fmt.Sprintf("expected the end of the tag, found %q", t.text)}
	}
	return nil
}

// enter counts a nesting level; leave undoes it.
func (p *parser) enter() error {
	p.depth++
	if p.depth > maxDepth {
		return p.errorf("nested deeper than %d", maxDepth)
	}
	return nil
}

func (p *parser) leave() { p.depth-- }

// block parses statements up to a tag named in ends, which it consumes and returns; without
// ends, up to the end of the template.
func (p *parser) block(ends ...string) (body []stmt, end string, err error) {
	if err := p.enter(); err != nil {
		return nil, "", err
	}
	defer p.leave()
	for {
		t := p.next()
		switch t.kind {
		case tokenEnd:
			if len(ends) > 0 {
				return nil, "", &SyntaxError{Line: t.line,
					Reason: fmt.Sprintf("template ends before %q", ends[len(ends)-1])}
			}
			return body, "", nil
		case tokenText:
			body = append(body, &textStmt{t.text})
		case tokenPrint:
			e, err := p.tuple(true)
			if err != nil {
				return nil, "", err
			}
			if end := p.next(); end.kind != tokenPrintEnd {
				return nil, "", &SyntaxError{Line: end.line,
					Reason: fmt.Sprintf("expected the end of the expression, found %q", end.text)}
			}
			body = append(body, &printStmt{e, t.line})
		default:
			name, err := p.name()
			if err != nil {
				return nil, "", err
			}
			for _, e := range ends {
				if e == name {
					return body, name, nil
				}
			}
			s, err := p.statement(name, t.line)
			if err != nil {
				return nil, "", err
			}
			body = append(body, s)
		}
	}
}

func (p *parser) statement(name string, line int) (stmt, error) {
	switch name {
	case "if":
		return p.ifStatement()
	case "for":
		return p.forStatement(line)
	case "set":
		return p.setStatement(line)
	case "macro":
		return p.macroStatement()
	case "call":
		return p.callStatement(line)
	case "filter":
		return p.filterStatement(line)
	case "with":
		return p.withStatement()
	case "generation":
		if err := p.endBlock(); err != nil {
			return nil, err
		}
		loops := p.loops
		p.loops = 0
		body, err := p.body("endgeneration")
		p.loops = loops
		return &blockStmt{body: body}, err
	case "block":
		return p.blockStatement()
	case "autoescape":
		return p.autoescapeStatement()
	case "break", "continue":
		if p.loops == 0 {
			return nil, p.errorf("%s outside a loop", name)
		}
		if name == "break" {
			return breakStmt{}, p.endBlock()
		}
		return continueStmt{}, p.endBlock()
	}
	return nil, p.errorf("unknown tag %q", name)
}

// body parses statements up to one ending tag and that tag.
func (p *parser) body(end string) ([]stmt, error) {
	body, _, err := p.block(end)
	if err != nil {
		return nil, err
	}
	return body, p.endBlock()
}

func (p *parser) ifStatement() (stmt, error) {
	s := &ifStmt{}
	known := len(p.unknown)
	defer func() { p.unknown = p.unknown[:known] }()
	for {
		cond, err := p.tuple(true)
		if err != nil {
			return nil, err
		}
		if err := p.endBlock(); err != nil {
			return nil, err
		}
		body, end, err := p.block("elif", "else", "endif")
		if err != nil {
			return nil, err
		}
		s.conds = append(s.conds, cond)
		s.bodies = append(s.bodies, body)
		switch end {
		case "endif":
			return s, p.endBlock()
		case "else":
			if err := p.endBlock(); err != nil {
				return nil, err
			}
			s.other, err = p.body("endif")
			return s, err
		}
	}
}

func (p *parser) forStatement(line int) (stmt, error) {
	s := &forStmt{line: line}
	var err error
	if s.target, err = p.targets(); err != nil {
		return nil, err
	}
	if !p.skipWord("in") {
		return nil, p.errorf("expected \"in\", found %q", p.peek().text)
	}
	if s.in, err = p.tuple(false); err != nil {
		return nil, err
	}
	if p.skipWord("if") {
		if s.cond, err = p.expression(); err != nil {
			return nil, err
		}
	}
	s.recursive = p.skipWord("recursive")
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	p.loops++
	body, end, err := p.block("else", "endfor")
	p.loops--
	if err != nil {
		return nil, err
	}
	s.body = body
	if err := p.endBlock(); err != nil {
		return nil, err
	}
	if end == "else" {
		s.other, err = p.body("endfor")
	}
	return s, err
}
