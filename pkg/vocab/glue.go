package vocab

import "unicode/utf8"

// glue cuts text where no merge can ever reach across: between two characters
// that stand side by side in no token. It gives vocabularies without a
// pre-tokenizer short pieces, and the same ids.
type glue struct {
	// next[a] has a bit for each byte b such that some token holds a character that
	// ends with byte a before one that begins with b.
	after [256][4]uint64
}

// newGlue learns from the texts of tokens.
func newGlue(tokens func(yield func(text string) bool)) *glue {
	g := &glue{}
	for text := range tokens {
		for i := 1; i < len(text); i++ {
			if utf8.RuneStart(text[i]) {
				g.after[text[i-1]][text[i]>>6] |= 1 << (text[i] & 63)
			}
		}
	}
	return g
}

func (g *glue) next(s string, i, end int) int {
	for e := i + 1; e < end; e++ {
		b := s[e]
		if g.after[s[e-1]][b>>6]>>(b&63)&1 == 0 && utf8.RuneStart(b) {
			return e
		}
	}
	return end
}

// apartAtLines says that no token goes on from a line end into an ASCII letter.
func (g *glue) apartAtLines() bool {
	for c := 'A'; c <= 'z'; c++ {
		if asciiKinds[c] == kindLetter && g.after['\n'][c>>6]>>(c&63)&1 != 0 {
			return false
		}
	}
	return true
}
