package vocab

import (
	"strings"
	"unicode/utf8"
)

// byteLevel is GPT-2's mapping of bytes to printable characters: a byte that is
// printable in Latin-1 maps to itself, the others to the characters from U+0100 on.
type byteLevel struct {
	spell [256]string
	byte  map[rune]byte
}

func newByteLevel() *byteLevel {
	b := &byteLevel{byte: make(map[rune]byte, 256)}
	next := rune(0x100)
	for c := rune(0); c < 256; c++ {
		r := c
		if shown := c >= '!' && c <= '~' || c >= 0xa1 && c <= 0xac || c >= 0xae; !shown {
			r = next
			next++
		}
		b.spell[c] = string(r)
		b.byte[r] = byte(c)
	}
	return b
}

// decode returns the bytes that a spelling stands for. A spelling with other
// characters is returned as it is.
func (b *byteLevel) decode(spelling string) string {
	out := make([]byte, 0, len(spelling))
	for _, r := range spelling {
		c, ok := b.byte[r]
		if !ok {
			return spelling
		}
		out = append(out, c)
	}
	return string(out)
}

// encode returns the spelling of bytes.
func (b *byteLevel) encode(bytes string) string {
	var s strings.Builder
	for i := 0; i < len(bytes); i++ {
		s.WriteString(b.spell[bytes[i]])
	}
	return s.String()
}

// byteToken returns the byte that a token like <0x0A> stands for.
func byteToken(spelling string) (byte, bool) {
	if len(spelling) != 6 || spelling[:3] != "<0x" || spelling[5] != '>' {
		return 0, false
	}
	hi, ok1 := hex(spelling[3])
	lo, ok2 := hex(spelling[4])
	return hi<<4 | lo, ok1 && ok2
}

func hex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

func singleRune(s string) bool {
	_, n := utf8.DecodeRuneInString(s)
	return n > 0 && n == len(s)
}
