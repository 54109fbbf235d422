package grammar

import (
	"slices"
	"unicode/utf8"
)

// controlSign is a byte that no text has. It stands around a control token's spelling
// wherever tokens are bytes, so that no text spells one and no part of one is a token.
const controlSign = 0xFF

// ControlBytes is what stands for a control token in a vocabulary's list: it fits only
// where a grammar asks for the token by its spelling, never where text is asked for.
func ControlBytes(spelling string) []byte {
	out := make([]byte, 0, len(spelling)+2)
	return append(append(append(out, controlSign), spelling...), controlSign)
}

// ControlSpelling is the spelling of the control token that the bytes of ControlBytes
// stand for; ok is false for any other bytes.
func ControlSpelling(token []byte) (spelling string, ok bool) {
	if len(token) < 3 || token[0] != controlSign || token[len(token)-1] != controlSign {
		return "", false
	}
	inner := token[1 : len(token)-1]
	return string(inner), utf8.Valid(inner)
}

// control is the control token of a spelling, as one token.
func control(spelling string) *expr {
	sign := char(oneRune(0), signOnly)
	return seq(sign, lit(spelling), sign)
}

// withoutSigns is tokens without those that have a controlSign and are no control
// token: they are part of no text, and would be taken for a part of such a token.
func withoutSigns(tokens [][]byte) [][]byte {
	own := false
	for id, token := range tokens {
		if slices.Index(token, controlSign) < 0 {
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
