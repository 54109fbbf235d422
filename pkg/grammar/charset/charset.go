package charset

import (
	"cmp"
	"encoding/binary"
	"slices"
	"unicode"
)

// MaxRune is the last code point. Surrogates are not characters.
const MaxRune = unicode.MaxRune

// Span is the code points Lo to Hi, inclusive.
type Span struct{ Lo, Hi rune }

// Set is a set of code points: spans in ascending order that neither overlap nor touch. It
// contains no surrogates.
type Set []Span

// Any returns the set of all code points.
func Any() Set { return Set{{0, 0xD7FF}, {0xE000, MaxRune}} }

// New returns the set of the given spans, which may overlap.
func New(spans ...Span) Set {
	var in []Span
	for _, s := range spans {
		if s.Lo > s.Hi {
			continue
		}
		if s.Hi >= 0xD800 && s.Lo <= 0xDFFF {
			if s.Lo < 0xD800 {
				in = append(in, Span{s.Lo, 0xD7FF})
			}
			if s.Hi > 0xDFFF {
				in = append(in, Span{0xE000, s.Hi})
			}
			continue
		}
		in = append(in, s)
	}
	slices.SortFunc(in, func(a, b Span) int { return cmp.Compare(a.Lo, b.Lo) })
	var out Set
	for _, s := range in {
		if n := len(out); n > 0 && s.Lo <= out[n-1].Hi+1 {
			out[n-1].Hi = max(out[n-1].Hi, s.Hi)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// Single returns the set of one character.
func Single(r rune) Set { return Set{{r, r}} }

// Key returns a string that is the same for equal sets.
func (s Set) Key() string {
	b := make([]byte, 0, 8*len(s))
	for _, p := range s {
		b = binary.LittleEndian.AppendUint32(b, uint32(p.Lo))
		b = binary.LittleEndian.AppendUint32(b, uint32(p.Hi))
	}
	return string(b)
}

// Of returns the set of the characters of a text.
func Of(text string) Set {
	var spans []Span
	for _, r := range text {
		spans = append(spans, Span{r, r})
	}
	return New(spans...)
}

// Union returns the characters of s or t.
func (s Set) Union(t Set) Set { return New(slices.Concat(s, t)...) }

// Negate returns the characters up to MaxRune that are not in s.
func (s Set) Negate() Set {
	var spans []Span
	next := rune(0)
	for _, p := range s {
		if p.Lo > next {
			spans = append(spans, Span{next, p.Lo - 1})
		}
		next = p.Hi + 1
	}
	if next <= MaxRune {
		spans = append(spans, Span{next, MaxRune})
	}
	return New(spans...)
}

// Intersect returns the characters of both s and t.
func (s Set) Intersect(t Set) Set {
	var spans []Span
	for i, j := 0, 0; i < len(s) && j < len(t); {
		lo, hi := max(s[i].Lo, t[j].Lo), min(s[i].Hi, t[j].Hi)
		if lo <= hi {
			spans = append(spans, Span{lo, hi})
		}
		if s[i].Hi < t[j].Hi {
			i++
		} else {
			j++
		}
	}
	return New(spans...)
}

// Contains reports whether r is in s.
func (s Set) Contains(r rune) bool {
	_, found := slices.BinarySearchFunc(s, r, func(p Span, r rune) int {
		if r < p.Lo {
			return 1
		} else if r > p.Hi {
			return -1
		}
		return 0
	})
	return found
}

// Fold adds the other cases of every letter of s.
func (s Set) Fold() Set {
	spans := slices.Clone(s)
	for _, p := range s {
		if p.Hi-p.Lo > 0x3000 {
			// A span this wide is a negated class or a whole script: walk only
			// the code points that have another case, all below U+1E944.
			p.Hi = min(p.Hi, 0x1E943)
		}
		for r := p.Lo; r <= p.Hi; r++ {
			for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
				spans = append(spans, Span{f, f})
			}
		}
	}
	return New(spans...)
}

// FromTable returns the set of one of package unicode's tables.
func FromTable(t *unicode.RangeTable) Set {
	var spans []Span
	for _, r := range t.R16 {
		for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
			if r.Stride == 1 {
				spans = append(spans, Span{c, rune(r.Hi)})
				break
			}
			spans = append(spans, Span{c, c})
		}
	}
	for _, r := range t.R32 {
		for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
			if r.Stride == 1 {
				spans = append(spans, Span{c, rune(r.Hi)})
				break
			}
			spans = append(spans, Span{c, c})
		}
	}
	return New(spans...)
}

// Single returns the only character of s, if it has one.
func (s Set) Single() (rune, bool) {
	if len(s) == 1 && s[0].Lo == s[0].Hi {
		return s[0].Lo, true
	}
	return 0, false
}
