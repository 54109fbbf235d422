package vocab

import (
	"fmt"
	"slices"
)

// NewChar makes a vocabulary of a text's characters: first the special tokens
// as control tokens, then the distinct characters in order of code point.
// Encoding any other character is an error. NewChar returns an error for text that is
// empty or not UTF-8.
func NewChar(text string, special ...string) (*Vocab, error) {
	if text == "" {
		return nil, fmt.Errorf("make character vocabulary: empty text")
	}
	if n := invalidAt(text); n < len(text) {
		return nil, &TextError{Offset: n, Reason: "invalid UTF-8"}
	}
	seen := map[rune]bool{}
	for _, r := range text {
		seen[r] = true
	}
	l := layout{special: special}
	for _, s := range special {
		if !slices.Contains(l.tokens, s) {
			l.tokens = append(l.tokens, s)
		}
	}
	for _, r := range sorted(seen) {
		if !slices.Contains(special, string(r)) {
			l.tokens = append(l.tokens, string(r))
		}
	}
	return l.vocab()
}
