package ast

import (
	"slices"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// ControlSign is a byte that no text has. It stands around a control token's spelling
// wherever tokens are bytes, so that no text spells one and no part of one is a token.
const ControlSign = 0xFF

// ControlBytes is what stands for a control token in a vocabulary's list: it fits only
// where a grammar asks for the token by its spelling, never where text is asked for.
func ControlBytes(spelling string) []byte {
	out := make([]byte, 0, len(spelling)+2)
	return append(append(append(out, ControlSign), spelling...), ControlSign)
}

// ControlSpelling is the spelling of the control token that the bytes of ControlBytes
// stand for; ok is false for any other bytes.
func ControlSpelling(token []byte) (spelling string, ok bool) {
	if len(token) < 3 || token[0] != ControlSign || token[len(token)-1] != ControlSign {
		return "", false
	}
	inner := token[1 : len(token)-1]
	return string(inner), utf8.Valid(inner)
}

// Control is the control token of a spelling, as one token.
func Control(spelling string) *Expr {
	sign := Char(charset.Single(0), SignOnly)
	return Seq(sign, Text(spelling), sign)
}

// WithoutSigns is tokens without those that have a controlSign and are no control
// token: they are part of no text, and would be taken for a part of such a token.
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
