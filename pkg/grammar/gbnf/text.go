package gbnf

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// quantifier reads *, +, ? or a repetition in braces; most is -1 if there is no maximum.
func (p *gbnf) quantifier() (least, most int, ok bool, err error) {
	switch p.peek() {
	case '*':
		least, most = 0, -1
	case '+':
		least, most = 1, -1
	case '?':
		least, most = 0, 1
	case '{':
		p.at++
		p.space(true)
		if least, err = p.number(); err != nil {
			return 0, 0, false, err
		}
		most = least
		p.space(true)
		if p.peek() == ',' {
			p.at++
			p.space(true)
			most = -1
			if p.peek() != '}' {
				if most, err = p.number(); err != nil {
					return 0, 0, false, err
				}
				p.space(true)
			}
		}
		if p.peek() != '}' {
			return 0, 0, false, p.fail("want } after a repetition, found %q", p.found())
		}
		if most >= 0 && most < least {
			return 0, 0, false, p.fail("repeat {%d,%d}: the minimum exceeds the maximum", least, most)
		}
	default:
		return 0, 0, false, nil
	}
	p.at++
	return least, most, true, nil
}

func (p *gbnf) number() (int, error) {
	start := p.at
	for !p.end() && p.peek() >= '0' && p.peek() <= '9' {
		p.at++
	}
	if start == p.at {
		return 0, p.fail("want a number, found %q", p.found())
	}
	n, err := strconv.Atoi(p.text[start:p.at])
	if err != nil || n > ast.MaxRepeat {
		return 0, &ast.LimitError{What: "repetitions", Limit: ast.MaxRepeat}
	}
	return n, nil
}

func (p *gbnf) literal() (*ast.Expr, error) {
	p.at++
	var text []byte
	for {
		if p.end() {
			return nil, p.fail("read a literal: the closing quote is missing")
		}
		if p.peek() == '"' {
			p.at++
			return ast.Text(string(text)), nil
		}
		r, err := p.char()
		if err != nil {
			return nil, err
		}
		text = utf8.AppendRune(text, r)
	}
}

func (p *gbnf) class() (*ast.Expr, error) {
	p.at++
	negated := p.peek() == '^'
	if negated {
		p.at++
	}
	var spans []charset.Span
	for {
		if p.end() {
			return nil, p.fail("read a class: the closing ] is missing")
		}
		if p.peek() == ']' {
			p.at++
			break
		}
		lo, err := p.char()
		if err != nil {
			return nil, err
		}
		hi := lo
		if rest := p.text[p.at:]; strings.HasPrefix(rest, "-") && !strings.HasPrefix(rest, "-]") && len(rest) > 1 {
			p.at++
			if hi, err = p.char(); err != nil {
				return nil, err
			}
			if hi < lo {
				return nil, p.fail("read range %q-%q: its ends are reversed", lo, hi)
			}
		}
		spans = append(spans, charset.Span{Lo: lo, Hi: hi})
	}
	set := charset.New(spans...)
	if negated {
		set = set.Negate()
	}
	if len(set) == 0 {
		return nil, p.fail("read a class: it contains no character")
	}
	return ast.Char(set, ast.PlainUTF8), nil
}

// char reads a character or an escape.
func (p *gbnf) char() (rune, error) {
	r, n := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += n
	if r == '\n' {
		p.line++
	}
	if r != '\\' {
		return r, nil
	}
	c := p.peek()
	p.at++
	switch c {
	case 'x':
		return p.hex(2)
	case 'u':
		return p.hex(4)
	case 'U':
		return p.hex(8)
	case 't':
		return '\t', nil
	case 'r':
		return '\r', nil
	case 'n':
		return '\n', nil
	case '\\', '"', '[', ']', '-', '^':
		return rune(c), nil
	}
	p.at--
	return 0, p.fail("read an escape: unknown escape \\%s", p.found())
}

func (p *gbnf) hex(digits int) (rune, error) {
	if len(p.text)-p.at < digits {
		return 0, p.fail("read an escape: want %d hexadecimal digits", digits)
	}
	n, err := strconv.ParseUint(p.text[p.at:p.at+digits], 16, 32)
	if err != nil {
		return 0, p.fail("read an escape: want %d hexadecimal digits", digits)
	}
	if n > charset.MaxRune || n >= 0xD800 && n <= 0xDFFF {
		return 0, p.fail("read an escape: U+%04X is not a character", n)
	}
	p.at += digits
	return rune(n), nil
}
