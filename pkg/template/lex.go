package template

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SyntaxError reports a template that does not parse.
type SyntaxError struct {
	Line   int
	Reason string
}

// Error names the line and the reason.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("parse template: line %d: %s", e.Line, e.Reason)
}

type tokenKind uint8

const (
	tokenEnd      tokenKind = iota
	tokenText               // template text
	tokenPrint              // {{
	tokenPrintEnd           // }}
	tokenBlock              // {%
	tokenBlockEnd           // %}
	tokenName
	tokenString
	tokenNumber
	tokenOperator
)

type token struct {
	kind tokenKind
	text string
	line int
}

// lexer splits a template into tokens.
type lexer struct {
	src    string
	at     int
	line   int
	tokens []token
}

func lex(src string) ([]token, error) {
	src = strings.ReplaceAll(strings.ReplaceAll(src, "\r\n", "\n"), "\r", "\n")
	src = strings.TrimSuffix(src, "\n")
	l := &lexer{src: src, line: 1}
	strip, trim := false, false // white space control of the last tag, for the text after it
	for {
		next := l.tag()
		text := l.src[l.at:next]
		start := l.at
		l.line += strings.Count(text, "\n")
		if strip {
			text = strings.TrimLeftFunc(text, isSpace)
		} else if trim {
			text = strings.TrimPrefix(text, "\n")
		}
		if next == len(l.src) {
			l.emit(tokenText, text)
			l.emit(tokenEnd, "")
			return l.tokens, nil
		}
		kind := l.src[next+1]
		l.at = next + 2
		control := byte(0)
		if l.at < len(l.src) && (l.src[l.at] == '-' || l.src[l.at] == '+') {
			control = l.src[l.at]
			l.at++
		}
		switch {
		case control == '-':
			text = strings.TrimRightFunc(text, isSpace)
		case control == 0 && kind != '{':
			text = l.leading(text, start, next)
		}
		l.emit(tokenText, text)
		var err error
		strip, trim, err = l.inside(kind)
		if err != nil {
			return nil, err
		}
	}
}

// leading implements lstrip_blocks: blanks between the beginning of a line and a tag are removed.
func (l *lexer) leading(text string, start, next int) string {
	cut := strings.TrimRightFunc(text, func(r rune) bool { return r != '\n' && isSpace(r) })
	begin := next - (len(text) - len(cut))
	if begin > 0 && l.src[begin-1] != '\n' {
		return text
	}
	if begin < start {
		return text
	}
	return cut
}

func (l *lexer) emit(kind tokenKind, text string) {
	if kind == tokenText && text == "" {
		return
	}
	l.tokens = append(l.tokens, token{kind, text, l.line})
}

// tag finds the next {{, {% or {#.
func (l *lexer) tag() int {
	for i := l.at; ; {
		n := strings.IndexByte(l.src[i:], '{')
		if n < 0 || i+n+1 >= len(l.src) {
			return len(l.src)
		}
		i += n
		switch l.src[i+1] {
		case '{', '%', '#':
			return i
		}
		i++
	}
}

func (l *lexer) errorf(format string, args ...any) error {
	return &SyntaxError{Line: l.line, Reason: fmt.Sprintf(format, args...)}
}

// inside reads the rest of a tag.
func (l *lexer) inside(kind byte) (strip, trim bool, err error) {
	switch kind {
	case '#':
		n := strings.Index(l.src[l.at:], "#}")
		if n < 0 {
			return false, false, l.errorf("comment without end")
		}
		body := l.src[l.at : l.at+n]
		l.line += strings.Count(body, "\n")
		l.at += n + 2
		return strings.HasSuffix(body, "-"), !strings.HasSuffix(body, "+"), nil
	case '{':
		l.emit(tokenPrint, "{{")
		strip, _, err = l.expression("}}", tokenPrintEnd)
		return strip, false, err
	default:
		if end, ok := l.raw(); ok {
			return l.rawBody(end)
		}
		l.emit(tokenBlock, "{%")
		return l.expression("%}", tokenBlockEnd)
	}
}

// raw recognises {% raw %} and returns the end of the tag.
func (l *lexer) raw() (int, bool) {
	rest := strings.TrimLeftFunc(l.src[l.at:], isSpace)
	after, ok := strings.CutPrefix(rest, "raw")
	if !ok {
		return 0, false
	}
	after = strings.TrimLeftFunc(after, isSpace)
	tail := strings.TrimLeft(after, "-+")
	if len(after)-len(tail) > 1 || !strings.HasPrefix(tail, "%}") {
		return 0, false
	}
	return len(l.src) - len(tail), true
}

// rawBody emits everything up to {% endraw %} as text.
func (l *lexer) rawBody(end int) (strip, trim bool, err error) {
	control := l.src[end-1]
	body := end + 2
	for at := body; ; {
		n := strings.Index(l.src[at:], "{%")
		if n < 0 {
			return false, false, l.errorf("raw without endraw")
		}
		open := at + n
		rest := strings.TrimLeftFunc(strings.TrimLeft(l.src[open+2:], "-+"), isSpace)
		after, ok := strings.CutPrefix(rest, "endraw")
		if ok {
			after = strings.TrimLeftFunc(after, isSpace)
			tail := strings.TrimLeft(after, "-+")
			if strings.HasPrefix(tail, "%}") {
				text := l.src[body:open]
				l.line += strings.Count(l.src[l.at:open], "\n")
				if control == '-' {
					text = strings.TrimLeftFunc(text, isSpace)
				}
				if l.src[open+2] == '-' {
					text = strings.TrimRightFunc(text, isSpace)
				} else if l.src[open+2] != '+' {
					text = l.leading(text, body, open)
				}
				l.emit(tokenText, text)
				l.at = len(l.src) - len(tail) + 2
				return strings.HasPrefix(after, "-"), !strings.HasPrefix(after, "+"), nil
			}
		}
		at = open + 2
	}
}

// operators lists the operators, longest first.
func operators() []string {
	return []string{"**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "<", ">", "=", ".", ":", "|", ",",
		";", "(", ")", "[", "]", "{", "}"}
}

// expression reads tokens up to the end of the tag.
func (l *lexer) expression(end string, endKind tokenKind) (strip, trim bool, err error) {
	ops := operators()
	var open []byte
	for {
		for l.at < len(l.src) {
			r, n := utf8.DecodeRuneInString(l.src[l.at:])
			if !isSpace(r) {
				break
			}
			if r == '\n' {
				l.line++
			}
			l.at += n
		}
		if l.at >= len(l.src) {
			return false, false, l.errorf("tag without %q", end)
		}
		rest := l.src[l.at:]
		if len(open) == 0 {
			if rest[0] == '-' && strings.HasPrefix(rest[1:], end) {
				l.emit(endKind, end)
				l.at += 1 + len(end)
				return true, false, nil
			}
			if rest[0] == '+' && strings.HasPrefix(rest[1:], end) {
				l.emit(endKind, end)
				l.at += 1 + len(end)
				return false, false, nil
			}
			if strings.HasPrefix(rest, end) {
				l.emit(endKind, end)
				l.at += len(end)
				return false, true, nil
			}
		}
		c := rest[0]
		switch {
		case c == '\'' || c == '"':
			if err := l.quoted(c); err != nil {
				return false, false, err
			}
		case c >= '0' && c <= '9':
			l.number()
		case isNameStart(rest):
			n := nameLength(rest)
			l.emit(tokenName, rest[:n])
			l.at += n
		default:
			op := ""
			for _, o := range ops {
				if strings.HasPrefix(rest, o) {
					op = o
					break
				}
			}
			switch op {
			case "":
				r, _ := utf8.DecodeRuneInString(rest)
				return false, false, l.errorf("unexpected %q", r)
			case "(", "[", "{":
				open = append(open, op[0])
			case ")", "]", "}":
				if len(open) == 0 || open[len(open)-1] != map[string]byte{")": '(', "]": '[', "}": '{'}[op] {
					return false, false, l.errorf("unexpected %q", op)
				}
				open = open[:len(open)-1]
			}
			l.emit(tokenOperator, op)
			l.at += len(op)
		}
	}
}

func isNameStart(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return r == '_' || unicode.IsLetter(r)
}

func nameLength(s string) int {
	for i, r := range s {
		if r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return i
		}
	}
	return len(s)
}

// number reads 1, 1_000, 1.5, 1e3 or 0x1f; a point without a digit after it is an
// operator.
func (l *lexer) number() {
	s := l.src[l.at:]
	digits := func(i int) int {
		for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '_') {
			i++
		}
		return i
	}
	n := 0
	if len(s) > 2 && s[0] == '0' && strings.IndexByte("xXoObB", s[1]) >= 0 {
		n = 2
		for n < len(s) && (s[n] == '_' || strings.IndexByte("0123456789abcdefABCDEF", s[n]) >= 0) {
			n++
		}
	} else {
		n = digits(0)
		// in x.10.5 the part after a point is an index, not a fraction
		index := len(l.tokens) > 0 && l.tokens[len(l.tokens)-1].text == "." &&
			l.tokens[len(l.tokens)-1].kind == tokenOperator
		if !index && n+1 < len(s) && s[n] == '.' && s[n+1] >= '0' && s[n+1] <= '9' {
			n = digits(n + 1)
		}
		if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
			e := n + 1
			if e < len(s) && (s[e] == '-' || s[e] == '+') {
				e++
			}
			if d := digits(e); d > e {
				n = d
			}
		}
	}
	l.emit(tokenNumber, s[:n])
	l.at += n
}

// quoted reads a string literal with Python's escapes.
func (l *lexer) quoted(quote byte) error {
	var b strings.Builder
	s := l.src
	start := l.line
	for i := l.at + 1; i < len(s); {
		c := s[i]
		switch {
		case c == quote:
			l.tokens = append(l.tokens, token{tokenString, b.String(), start})
			l.at = i + 1
			return nil
		case c != '\\':
			if c == '\n' {
				l.line++
			}
			b.WriteByte(c)
			i++
		case i+1 >= len(s):
			i++
		default:
			n := escape(&b, s[i+1:])
			if s[i+1] == '\n' {
				l.line++
			}
			i += 1 + n
		}
	}
	l.line = start
	return l.errorf("string without end")
}

// escape appends the character of an escape and returns the escape's length.
func escape(b *strings.Builder, s string) int {
	simple := map[byte]string{'n': "\n", 't': "\t", 'r': "\r", '\\': "\\", '\'': "'", '"': `"`, 'a': "\a", 'b': "\b",
		'f': "\f",
		'v': "\v", '\n': ""}
	if out, ok := simple[s[0]]; ok {
		b.WriteString(out)
		return 1
	}
	width := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[0]]
	if width > 0 && len(s) > width {
		r := rune(0)
		for _, c := range []byte(s[1 : 1+width]) {
			d := strings.IndexByte("0123456789abcdef", c|0x20)
			if d < 0 || c < '0' {
				r = -1
				break
			}
			r = r<<4 | rune(d)
		}
		if r >= 0 && utf8.ValidRune(r) {
			b.WriteRune(r)
			return 1 + width
		}
	}
	if s[0] >= '0' && s[0] <= '7' {
		n, r := 0, rune(0)
		for n < 3 && n < len(s) && s[n] >= '0' && s[n] <= '7' {
			r = r<<3 | rune(s[n]-'0')
			n++
		}
		b.WriteRune(r)
		return n
	}
	b.WriteByte('\\') // an unknown escape is kept unchanged
	return 0
}

func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }
