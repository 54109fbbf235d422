package vocab

import "unicode/utf8"

// mergeBoundary splits text between two characters that no token contains side by
// side. No merge can reach across such a boundary, so the ids stay the same, and
// vocabularies without a pre-tokenizer get short pieces, which merge faster.
type mergeBoundary struct {
	// after[a] has a bit for each byte b such that some token contains a character that
	// ends in byte a followed by one that begins with byte b.
	after [256][4]uint64
}

// newMergeBoundary collects the neighbouring characters of all tokens.
func newMergeBoundary(tokens func(yield func(text string) bool)) *mergeBoundary {
	g := &mergeBoundary{}
	for text := range tokens {
		for i := 1; i < len(text); i++ {
			if utf8.RuneStart(text[i]) {
				g.after[text[i-1]][text[i]>>6] |= 1 << (text[i] & 63)
			}
		}
	}
	return g
}

func (g *mergeBoundary) next(s string, i, end int) int {
	for e := i + 1; e < end; e++ {
		b := s[e]
		if g.after[s[e-1]][b>>6]>>(b&63)&1 == 0 && utf8.RuneStart(b) {
			return e
		}
	}
	return end
}

// splitsAtLines reports whether no token contains a line feed followed by an ASCII
// letter.
func (g *mergeBoundary) splitsAtLines() bool {
	for c := 'A'; c <= 'z'; c++ {
		if asciiKinds[c] == kindLetter && g.after['\n'][c>>6]>>(c&63)&1 != 0 {
			return false
		}
	}
	return true
}
