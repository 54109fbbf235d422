package vocab

import (
	"unicode"
	"unicode/utf8"
)

// class is a set of Unicode properties that pre-tokenizers ask about.
type class uint16

const (
	classLetter  class = 1 << iota // \p{L}
	classNumber                    // \p{N}
	classSpace                     // \s, White_Space
	classNewline                   // \r and \n
	classMark                      // \p{M}
	classPunct                     // \p{P}
	classSymbol                    // \p{S}
	classUpper                     // Lu, Lt, Lm, Lo, M: what may begin a cased word
	classLower                     // Ll, Lm, Lo, M: what may end one
)

// classAt returns the class and width in bytes of the character at s[i:], which
// is valid UTF-8. At the end of s both are zero.
func classAt(s string, i int) (class, int) {
	if i >= len(s) {
		return 0, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return classASCII(c), 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return classOf(r), n
}

func classASCII(c byte) class {
	switch {
	case c >= 'a' && c <= 'z':
		return classLetter | classLower
	case c >= 'A' && c <= 'Z':
		return classLetter | classUpper
	case c >= '0' && c <= '9':
		return classNumber
	case c == '\n' || c == '\r':
		return classSpace | classNewline
	case c == ' ' || c >= '\t' && c <= '\r':
		return classSpace
	case c < ' ' || c == 0x7f:
		return 0
	case c == '$' || c == '+' || c == '<' || c == '=' || c == '>' || c == '^' || c == '`' || c == '|' || c == '~':
		return classSymbol
	default:
		return classPunct
	}
}

func classOf(r rune) class {
	switch {
	case r < utf8.RuneSelf:
		return classASCII(byte(r))
	case unicode.Is(unicode.L, r):
		switch {
		case unicode.Is(unicode.Ll, r):
			return classLetter | classLower
		case unicode.Is(unicode.Lu, r), unicode.Is(unicode.Lt, r):
			return classLetter | classUpper
		default:
			return classLetter | classUpper | classLower
		}
	case unicode.Is(unicode.M, r):
		return classMark | classUpper | classLower
	case unicode.Is(unicode.N, r):
		return classNumber
	case unicode.IsSpace(r):
		return classSpace
	case unicode.Is(unicode.P, r):
		return classPunct
	case unicode.Is(unicode.S, r):
		return classSymbol
	default:
		return 0
	}
}
