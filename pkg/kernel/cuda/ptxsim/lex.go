package ptxsim

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenName
	tokenDirective // a name that begins with a dot
	tokenInt
	tokenFloat
	tokenString
	tokenPunct
)

// token is a token of PTX. Names of instructions keep their modifiers: "add.rn.f32" is one token.
type token struct {
	kind       tokenKind
	text       string
	line       int
	begin, end int    // offsets in the source
	int        uint64 // value of an integer, or the bits that 0f and 0d wrote
	float      float64
	single     bool // the float was written as 0f
}

// lexer splits a source into tokens. It holds no more than the source.
type lexer struct {
	src  string
	pos  int
	line int
}

func nameStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '$' || c == '%'
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func nameByte(c byte) bool { return nameStart(c) && c != '%' || digit(c) }

// skip passes blanks and comments.
func (l *lexer) skip() error {
	for l.pos < len(l.src) {
		switch c := l.src[l.pos]; {
		case c == '\n':
			l.line++
			l.pos++
		case c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f':
			l.pos++
		case strings.HasPrefix(l.src[l.pos:], "//"):
			if i := strings.IndexByte(l.src[l.pos:], '\n'); i >= 0 {
				l.pos += i
			} else {
				l.pos = len(l.src)
			}
		case strings.HasPrefix(l.src[l.pos:], "/*"):
			i := strings.Index(l.src[l.pos+2:], "*/")
			if i < 0 {
				return &SourceError{Line: l.line, Text: "comment does not end"}
			}
			l.line += strings.Count(l.src[l.pos:l.pos+2+i], "\n")
			l.pos += i + 4
		default:
			return nil
		}
	}
	return nil
}

// next returns the next token.
func (l *lexer) next() (token, error) {
	if err := l.skip(); err != nil {
		return token{}, err
	}
	t := token{line: l.line, begin: l.pos, end: l.pos}
	if l.pos == len(l.src) {
		return t, nil
	}
	c := l.src[l.pos]
	switch {
	case digit(c):
		return l.number(t)
	case c == '"':
		i := strings.IndexAny(l.src[l.pos+1:], "\"\n")
		if i < 0 || l.src[l.pos+1+i] == '\n' {
			return token{}, &SourceError{Line: l.line, Text: "string does not end"}
		}
		l.pos += i + 2
		t.kind = tokenString
	case nameStart(c), c == '.' && l.pos+1 < len(l.src) && nameByte(l.src[l.pos+1]):
		t.kind = tokenName
		if c == '.' {
			t.kind = tokenDirective
		}
		l.pos++
		l.name()
	default:
		if c < ' ' || c > '~' {
			return token{}, &SourceError{Line: l.line, Text: fmt.Sprintf("byte %#02x is not PTX", c)}
		}
		l.pos++
		t.kind = tokenPunct
	}
	t.end = l.pos
	t.text = l.src[t.begin:t.end]
	return t, nil
}

// name passes the rest of a name with its modifiers, which may hold "::" as in .shared::cta.
func (l *lexer) name() {
	for l.pos < len(l.src) {
		rest := l.src[l.pos:]
		switch {
		case nameByte(rest[0]):
			l.pos++
		case rest[0] == '.' && len(rest) > 1 && nameByte(rest[1]):
			l.pos += 2
		case len(rest) > 2 && rest[0] == ':' && rest[1] == ':' && nameByte(rest[2]):
			l.pos += 3
		default:
			return
		}
	}
}

// number reads an integer, a decimal float, or the bits of a float as 0f and 0d write them.
func (l *lexer) number(t token) (token, error) {
	rest := l.src[l.pos:]
	n := 0
	for n < len(rest) && (nameByte(rest[n]) || rest[n] == '.' ||
		(rest[n] == '+' || rest[n] == '-') && (rest[n-1] == 'e' || rest[n-1] == 'E') && decimal(rest[:n-1])) {
		n++
	}
	t.text = rest[:n]
	l.pos += n
	t.end = l.pos
	bad := func() (token, error) {
		return token{}, &SourceError{Line: l.line, Text: fmt.Sprintf("number %q is not well-formed", t.text)}
	}
	if n > 2 && t.text[0] == '0' && strings.ContainsRune("fFdD", rune(t.text[1])) {
		wide := t.text[1] == 'd' || t.text[1] == 'D'
		v, err := strconv.ParseUint(t.text[2:], 16, 64)
		if err != nil || wide && n != 18 || !wide && n != 10 {
			return bad()
		}
		t.kind, t.int, t.single = tokenFloat, v, !wide
		t.float = math.Float64frombits(v)
		if !wide {
			t.float = float64(math.Float32frombits(uint32(v)))
		}
		return t, nil
	}
	if decimal(t.text) && strings.ContainsAny(t.text, ".eE") {
		v, err := strconv.ParseFloat(t.text, 64)
		if err != nil {
			return bad()
		}
		t.kind, t.float, t.int = tokenFloat, v, math.Float64bits(v)
		return t, nil
	}
	v, err := strconv.ParseUint(strings.TrimSuffix(t.text, "U"), 0, 64)
	if err != nil || strings.Contains(t.text, "_") {
		return bad()
	}
	t.kind, t.int = tokenInt, v
	return t, nil
}

// decimal reports whether s has only what a decimal float has.
func decimal(s string) bool { return strings.Trim(s, "0123456789.eE+-") == "" }
