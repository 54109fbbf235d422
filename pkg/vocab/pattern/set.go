package pattern

import (
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ranges is a set of characters: sorted ranges that neither overlap nor touch.
type ranges [][2]rune

func (r ranges) normal() ranges {
	slices.SortFunc(r, func(a, b [2]rune) int { return int(a[0]) - int(b[0]) })
	out := r[:0]
	for _, x := range r {
		if x[0] > x[1] {
			continue
		}
		if n := len(out); n > 0 && x[0] <= out[n-1][1]+1 {
			out[n-1][1] = max(out[n-1][1], x[1])
			continue
		}
		out = append(out, x)
	}
	return out
}

func (r ranges) not() ranges {
	var out ranges
	at := rune(0)
	for _, x := range r {
		if x[0] > at {
			out = append(out, [2]rune{at, x[0] - 1})
		}
		at = x[1] + 1
	}
	if at <= unicode.MaxRune {
		out = append(out, [2]rune{at, unicode.MaxRune})
	}
	return out
}

func (r ranges) and(o ranges) ranges {
	var out ranges
	for i, j := 0, 0; i < len(r) && j < len(o); {
		lo, hi := max(r[i][0], o[j][0]), min(r[i][1], o[j][1])
		if lo <= hi {
			out = append(out, [2]rune{lo, hi})
		}
		if r[i][1] < o[j][1] {
			i++
		} else {
			j++
		}
	}
	return out
}

// foldable is how many characters of a range case folding looks at. All cased scripts
// are far smaller.
const foldable = 0x3000

// fold adds every character that differs from one in the set only by case.
func (r ranges) fold() ranges {
	out := slices.Clone(r)
	for _, x := range r {
		for c := x[0]; c <= min(x[1], x[0]+foldable); c++ {
			for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
				out = append(out, [2]rune{f, f})
			}
		}
	}
	return out.normal()
}

func fromTable(t *unicode.RangeTable) ranges {
	var out ranges
	for _, x := range t.R16 {
		out = appendStride(out, rune(x.Lo), rune(x.Hi), rune(x.Stride))
	}
	for _, x := range t.R32 {
		out = appendStride(out, rune(x.Lo), rune(x.Hi), rune(x.Stride))
	}
	return out.normal()
}

func appendStride(out ranges, lo, hi, stride rune) ranges {
	if stride == 1 {
		return append(out, [2]rune{lo, hi})
	}
	for c := lo; c <= hi; c += stride {
		out = append(out, [2]rune{c, c})
	}
	return out
}

// property returns the characters of a \p property.
func property(name string) (ranges, bool) {
	for _, p := range []string{"Script=", "sc=", "scx=", "General_Category=", "gc="} {
		name = strings.TrimPrefix(name, p)
	}
	clean := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", " ", "", "-", "").Replace(s))
	}
	want := clean(name)
	switch want {
	case "any":
		return ranges{{0, unicode.MaxRune}}, true
	case "ascii":
		return ranges{{0, 0x7f}}, true
	case "alpha", "alphabetic":
		return append(append(append(fromTable(unicode.L), fromTable(unicode.Nl)...), fromTable(unicode.Other_Alphabetic)...), [2]rune{0x345, 0x345}).normal(), true
	case "space", "whitespace":
		return fromTable(unicode.White_Space), true
	case "digit":
		return fromTable(unicode.Nd), true
	case "upper", "uppercase":
		return append(fromTable(unicode.Lu), fromTable(unicode.Other_Uppercase)...).normal(), true
	case "lower", "lowercase":
		return append(fromTable(unicode.Ll), fromTable(unicode.Other_Lowercase)...).normal(), true
	case "punct":
		return append(fromTable(unicode.P), ranges{{'$', '$'}, {'+', '+'}, {'<', '>'}, {'^', '^'}, {'`', '`'}, {'|', '|'}, {'~', '~'}}...).normal(), true
	case "alnum":
		return append(fromTable(unicode.L), fromTable(unicode.Nd)...).normal(), true
	case "word":
		return word(), true
	case "xdigit":
		return ranges{{'0', '9'}, {'A', 'F'}, {'a', 'f'}}, true
	case "cntrl":
		return fromTable(unicode.Cc), true
	case "l&", "lc", "casedletter":
		return append(append(fromTable(unicode.Lu), fromTable(unicode.Ll)...), fromTable(unicode.Lt)...).normal(), true
	case "cn", "unassigned":
		var all ranges
		for _, name := range []string{"L", "M", "N", "P", "S", "Z", "C"} {
			all = append(all, fromTable(unicode.Categories[name])...)
		}
		return all.normal().not(), true
	}
	if long, ok := map[string]string{
		"letter": "L", "mark": "M", "number": "N", "punctuation": "P", "symbol": "S", "separator": "Z", "other": "C",
		"uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt", "modifierletter": "Lm", "otherletter": "Lo",
		"nonspacingmark": "Mn", "spacingmark": "Mc", "enclosingmark": "Me", "decimalnumber": "Nd", "letternumber": "Nl", "othernumber": "No",
		"connectorpunctuation": "Pc", "dashpunctuation": "Pd", "control": "Cc", "format": "Cf", "spaceseparator": "Zs",
	}[want]; ok {
		return fromTable(unicode.Categories[long]), true
	}
	for _, tables := range []map[string]*unicode.RangeTable{unicode.Categories, unicode.Scripts, unicode.Properties} {
		for key, t := range tables {
			if k := clean(key); k == want || "is"+k == want {
				return fromTable(t), true
			}
		}
	}
	return nil, false
}

func word() ranges {
	w := append(fromTable(unicode.L), fromTable(unicode.M)...)
	w = append(append(w, fromTable(unicode.Nd)...), fromTable(unicode.Pc)...)
	return w.normal()
}

// set is a set of characters with a fast lookup.
type set struct {
	low  [128]bool
	rest ranges // characters beyond ASCII
}

func newSet(r ranges) *set {
	s := &set{}
	for _, x := range r {
		for c := x[0]; c <= min(x[1], 127); c++ {
			s.low[c] = true
		}
		if x[1] > 127 {
			s.rest = append(s.rest, [2]rune{max(x[0], 128), x[1]})
		}
	}
	return s
}

func (s *set) has(r rune) bool {
	if r < utf8.RuneSelf {
		return s.low[r]
	}
	i := sort.Search(len(s.rest), func(i int) bool { return s.rest[i][1] >= r })
	return i < len(s.rest) && s.rest[i][0] <= r
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
