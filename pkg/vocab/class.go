package vocab

import (
	_ "embed" // the table of classes
	"unicode/utf8"
)

// class is a set of Unicode properties that pre-tokenizers test.
type class uint16

const (
	classLetter  class = 1 << iota // \p{L}
	classNumber                    // \p{N}
	classSpace                     // \s, White_Space
	classNewline                   // \r and \n
	classMark                      // \p{M}
	classPunct                     // \p{P}
	classSymbol                    // \p{S}
	classUpper                     // Lu, Lt, Lm, Lo, M: may begin a cased word
	classLower                     // Ll, Lm, Lo, M: may end one
	classHan                       // \p{Han}
	classDigit                     // \d, Nd
	classWord                      // \w: Alphabetic, marks, Nd, Pc, join controls
	classControl                   // Cc, Cf, Co, Cn: dropped by BERT
	classASCII                     // A to Z and a to z
)

// classBin holds the class of every character: a page number per 256 code points,
// then the pages with 16 bits per character, little-endian. It is Unicode 16.0, the
// version of Hugging Face's engine; package unicode may be older.
//
//go:embed class.bin
var classBin string

const classPages = 0x110000 >> 8

// classAt returns the class and width in bytes of the character at s[i:], which
// is valid UTF-8. At the end of s both are zero.
func classAt(s string, i int) (class, int) {
	if i >= len(s) {
		return 0, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return classOf(rune(c)), 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return classOf(r), n
}

func classOf(r rune) class {
	page := int(classBin[r>>8])
	at := classPages + page<<9 + int(r&0xff)<<1
	return class(classBin[at]) | class(classBin[at+1])<<8
}
