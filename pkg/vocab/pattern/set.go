package pattern

import (
	"sort"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// set is a set of characters with a fast lookup.
type set struct {
	low  [128]bool
	rest charset.Set // characters beyond ASCII
}

func newSet(from charset.Set) *set {
	s := &set{}
	for _, x := range from {
		for c := x.Lo; c <= min(x.Hi, 127); c++ {
			s.low[c] = true
		}
		if x.Hi > 127 {
			s.rest = append(s.rest, charset.Span{Lo: max(x.Lo, 128), Hi: x.Hi})
		}
	}
	return s
}

func (s *set) has(r rune) bool {
	if r < utf8.RuneSelf {
		return s.low[r]
	}
	i := sort.Search(len(s.rest), func(i int) bool { return s.rest[i].Hi >= r })
	return i < len(s.rest) && s.rest[i].Lo <= r
}

// width returns the length in bytes of the character at text[i:] if it is in the set,
// else 0.
func (s *set) width(text string, i int) int {
	if i >= len(text) {
		return 0
	}
	if c := text[i]; c < utf8.RuneSelf {
		if s.low[c] {
			return 1
		}
		return 0
	}
	r, n := utf8.DecodeRuneInString(text[i:])
	if s.has(r) {
		return n
	}
	return 0
}
