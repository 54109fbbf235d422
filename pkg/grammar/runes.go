package grammar

import (
	"cmp"
	"encoding/binary"
	"slices"
	"unicode"
)

// maxRune is the last code point, surrogates not being characters.
const maxRune = unicode.MaxRune

// span is the code points lo to hi, both included.
type span struct{ lo, hi rune }

// runeSet is a set of code points: spans in ascending order with gaps between
// them, none of them a surrogate.
type runeSet []span

// anyRune is every code point.
func anyRune() runeSet { return runeSet{{0, 0xD7FF}, {0xE000, maxRune}} }

// newRuneSet makes a set of spans in any order.
func newRuneSet(spans ...span) runeSet {
	var in []span
	for _, s := range spans {
		if s.lo > s.hi {
			continue
		}
		if s.hi >= 0xD800 && s.lo <= 0xDFFF {
			if s.lo < 0xD800 {
				in = append(in, span{s.lo, 0xD7FF})
			}
			if s.hi > 0xDFFF {
				in = append(in, span{0xE000, s.hi})
			}
			continue
		}
		in = append(in, s)
	}
	slices.SortFunc(in, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	var out runeSet
	for _, s := range in {
		if n := len(out); n > 0 && s.lo <= out[n-1].hi+1 {
			out[n-1].hi = max(out[n-1].hi, s.hi)
		} else {
			out = append(out, s)
		}
	}
	return out
}

func oneRune(r rune) runeSet { return runeSet{{r, r}} }

// key tells sets apart.
func (s runeSet) key() string {
	b := make([]byte, 0, 8*len(s))
	for _, p := range s {
		b = binary.LittleEndian.AppendUint32(b, uint32(p.lo))
		b = binary.LittleEndian.AppendUint32(b, uint32(p.hi))
	}
	return string(b)
}

// runesOf is the set of a text's characters.
func runesOf(text string) runeSet {
	var spans []span
	for _, r := range text {
		spans = append(spans, span{r, r})
	}
	return newRuneSet(spans...)
}

func (s runeSet) union(t runeSet) runeSet { return newRuneSet(slices.Concat(s, t)...) }

func (s runeSet) negate() runeSet {
	var spans []span
	next := rune(0)
	for _, p := range s {
		if p.lo > next {
			spans = append(spans, span{next, p.lo - 1})
		}
		next = p.hi + 1
	}
	if next <= maxRune {
		spans = append(spans, span{next, maxRune})
	}
	return newRuneSet(spans...)
}

func (s runeSet) intersect(t runeSet) runeSet {
	var spans []span
	for i, j := 0, 0; i < len(s) && j < len(t); {
		lo, hi := max(s[i].lo, t[j].lo), min(s[i].hi, t[j].hi)
		if lo <= hi {
			spans = append(spans, span{lo, hi})
		}
		if s[i].hi < t[j].hi {
			i++
		} else {
			j++
		}
	}
	return newRuneSet(spans...)
}

func (s runeSet) contains(r rune) bool {
	_, found := slices.BinarySearchFunc(s, r, func(p span, r rune) int {
		if r < p.lo {
			return 1
		} else if r > p.hi {
			return -1
		}
		return 0
	})
	return found
}

// fold adds the other cases of every letter in s.
func (s runeSet) fold() runeSet {
	spans := slices.Clone(s)
	for _, p := range s {
		if p.hi-p.lo > 0x3000 {
			// A span this wide is a negated class or a whole script: walk only
			// the code points that have another case, all below U+1E944.
			p.hi = min(p.hi, 0x1E943)
		}
		for r := p.lo; r <= p.hi; r++ {
			for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
				spans = append(spans, span{f, f})
			}
		}
	}
	return newRuneSet(spans...)
}

// fromTable is the set of one of package unicode's tables.
func fromTable(t *unicode.RangeTable) runeSet {
	var spans []span
	for _, r := range t.R16 {
		for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
			if r.Stride == 1 {
				spans = append(spans, span{c, rune(r.Hi)})
				break
			}
			spans = append(spans, span{c, c})
		}
	}
	for _, r := range t.R32 {
		for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
			if r.Stride == 1 {
				spans = append(spans, span{c, rune(r.Hi)})
				break
			}
			spans = append(spans, span{c, c})
		}
	}
	return newRuneSet(spans...)
}
