package ast

import (
	"slices"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// ControlSign is a byte that UTF-8 never contains. It encloses the spelling of a control token
// in a vocabulary, so that no text can spell the token.
const ControlSign = 0xFF

// ControlBytes represents a control token in a vocabulary's list of tokens. It fits only where
// a grammar asks for the token by its spelling, never where it asks for text.
func ControlBytes(spelling string) []byte {
	out := make([]byte, 0, len(spelling)+2)
	return append(append(append(out, ControlSign), spelling...), ControlSign)
}

// ControlSpelling returns the spelling of the control token that ControlBytes represented as
// token; ok is false for any other bytes.
func ControlSpelling(token []byte) (spelling string, ok bool) {
	if len(token) < 3 || token[0] != ControlSign || token[len(token)-1] != ControlSign {
		return "", false
	}
	inner := token[1 : len(token)-1]
	return string(inner), utf8.Valid(inner)
}

// Control returns the control token with that spelling.
func Control(spelling string) *Expr {
	sign := Char(charset.Single(0), SignOnly)
	return Seq(sign, Text(spelling), sign)
}

// WithoutSigns returns tokens without the bytes of those that contain a ControlSign but are not
// control tokens: they occur in no text, and could be taken for a part of a control token.
func WithoutSigns(tokens [][]byte) [][]byte {
	own := false
	for id, token := range tokens {
		if slices.Index(token, ControlSign) < 0 {
			continue
		}
		if _, ok := ControlSpelling(token); ok {
			continue
		}
		if !own {
			tokens, own = slices.Clone(tokens), true
		}
		tokens[id] = nil
	}
	return tokens
}
