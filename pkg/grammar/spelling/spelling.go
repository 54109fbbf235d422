package spelling

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Class is the byte automaton of one character of a set in one encoding. State 0 is the first.
// The end has no transitions, since no spelling is the beginning of another.
type Class struct {
	States [][]Edge
	Plain  charset.Set // the characters that may be spelled as themselves
}

// Edge leads from bytes lo to hi to a state, or to End.
type Edge struct {
	Lo, Hi byte
	To     int16
}

// End is the state in which a character is complete.
const End = -1

// Next returns the state after b in s, which may be End; ok is false if b does not fit.
func (c *Class) Next(s int16, b byte) (to int16, ok bool) {
	for _, e := range c.States[s] {
		if b >= e.Lo && b <= e.Hi {
			return e.To, true
		}
	}
	return 0, false
}

// ByteSet is a set of bytes.
type ByteSet [4]uint64

// Add adds a byte.
func (s *ByteSet) Add(b byte)      { s[b>>6] |= 1 << (b & 63) }
func (s *ByteSet) has(b byte) bool { return s[b>>6]>>(b&63)&1 != 0 }

// All lists the bytes, ascending.
func (s *ByteSet) All() iter.Seq[byte] {
	return func(yield func(byte) bool) {
		for i, w := range s {
			for ; w != 0; w &= w - 1 {
				if !yield(byte(64*i + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}

func byteRange(lo, hi byte) (s ByteSet) {
	for b := int(lo); b <= int(hi); b++ {
		s.Add(byte(b))
	}
	return s
}

// spellings is a list of byte sequences in which every place is a set of bytes.
type spellings [][]ByteSet

func (s *spellings) add(seq ...ByteSet) { *s = append(*s, seq) }

// addUTF8 adds the UTF-8 of the code points of p.
func (s *spellings) addUTF8(p charset.Span) {
	for _, limit := range []rune{0x7F, 0x7FF, 0xFFFF} {
		if p.Lo <= limit && p.Hi > limit {
			s.addUTF8(charset.Span{Lo: p.Lo, Hi: limit})
			s.addUTF8(charset.Span{Lo: limit + 1, Hi: p.Hi})
			return
		}
	}
	if p.Hi <= 0x7F {
		s.add(byteRange(byte(p.Lo), byte(p.Hi)))
		return
	}
	// Split the range until all continuation bytes cover their whole range.
	for i := 1; i < utf8.RuneLen(p.Hi); i++ {
		m := rune(1)<<(6*i) - 1
		if p.Lo&^m != p.Hi&^m {
			if p.Lo&m != 0 {
				s.addUTF8(charset.Span{Lo: p.Lo, Hi: p.Lo | m})
				s.addUTF8(charset.Span{Lo: p.Lo | m + 1, Hi: p.Hi})
				return
			}
			if p.Hi&m != m {
				s.addUTF8(charset.Span{Lo: p.Lo, Hi: p.Hi&^m - 1})
				s.addUTF8(charset.Span{Lo: p.Hi &^ m, Hi: p.Hi})
				return
			}
		}
	}
	var lo, hi [utf8.UTFMax]byte
	n := utf8.EncodeRune(lo[:], p.Lo)
	utf8.EncodeRune(hi[:], p.Hi)
	seq := make([]ByteSet, n)
	for i := range seq {
		seq[i] = byteRange(lo[i], hi[i])
	}
	*s = append(*s, seq)
}

// hexDigit returns the hexadecimal digits lo to hi in both cases.
func hexDigit(lo, hi int) (s ByteSet) {
	for d := lo; d <= hi; d++ {
		if d < 10 {
			s.Add(byte('0' + d))
		} else {
			s.Add(byte('a' + d - 10))
			s.Add(byte('A' + d - 10))
		}
	}
	return s
}

// hex4 yields sequences of four digit sets that together spell lo to hi.
func hex4(lo, hi int, yield func([]ByteSet)) {
	var walk func(lo, hi, place int, prefix []ByteSet)
	walk = func(lo, hi, place int, prefix []ByteSet) {
		if place < 0 {
			yield(slices.Clone(prefix))
			return
		}
		unit := 1 << (4 * place)
		a, b := lo/unit, hi/unit
		if lo%unit == 0 && hi%unit == unit-1 {
			prefix = append(prefix, hexDigit(a, b))
			for range place {
				prefix = append(prefix, hexDigit(0, 15))
			}
			yield(slices.Clone(prefix))
			return
		}
		if a == b {
			walk(lo%unit, hi%unit, place-1, append(prefix, hexDigit(a, a)))
			return
		}
		if lo%unit != 0 {
			walk(lo%unit, unit-1, place-1, append(prefix, hexDigit(a, a)))
			a++
		}
		if hi%unit != unit-1 {
			walk(0, hi%unit, place-1, append(prefix, hexDigit(b, b)))
			b--
		}
		if a <= b {
			walk(a*unit, b*unit+unit-1, place, prefix)
		}
	}
	walk(lo, hi, 3, nil)
}

func escape(after ...ByteSet) []ByteSet {
	return append([]ByteSet{byteRange('\\', '\\')}, after...)
}

// addHex adds \uXXXX, or pairs of them, for the code points of p.
func (s *spellings) addHex(p charset.Span) {
	u := byteRange('u', 'u')
	if p.Lo <= 0xFFFF {
		hex4(int(p.Lo), int(min(p.Hi, 0xFFFF)), func(digits []ByteSet) {
			*s = append(*s, escape(append([]ByteSet{u}, digits...)...))
		})
	}
	if p.Hi <= 0xFFFF {
		return
	}
	lo, hi := int(max(p.Lo, 0x10000))-0x10000, int(p.Hi)-0x10000
	pair := func(h1, h2, l1, l2 int) {
		hex4(0xD800+h1, 0xD800+h2, func(high []ByteSet) {
			hex4(0xDC00+l1, 0xDC00+l2, func(low []ByteSet) {
				seq := escape(append([]ByteSet{u}, high...)...)
				*s = append(*s, append(append(seq, escape(u)...), low...))
			})
		})
	}
	h1, h2, l1, l2 := lo>>10, hi>>10, lo&0x3FF, hi&0x3FF
	if h1 == h2 {
		pair(h1, h1, l1, l2)
		return
	}
	if l1 != 0 {
		pair(h1, h1, l1, 0x3FF)
		h1++
	}
	if l2 != 0x3FF {
		pair(h2, h2, 0, l2)
		h2--
	}
	if h1 <= h2 {
		pair(h1, h2, 0, 0x3FF)
	}
}

var shortEscapes = [...]struct {
	r rune
	b byte
}{{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}}

// mustEscape returns the characters that a JSON string must escape.
func mustEscape() charset.Set {
	return charset.Set{{Lo: 0, Hi: 0x1F}, {Lo: '"', Hi: '"'}, {Lo: '\\', Hi: '\\'}}
}

// spell lists the spellings of the characters of set.
func spell(set charset.Set, enc ast.Encoding) spellings {
	var s spellings
	switch enc {
	case ast.PlainUTF8:
		for _, p := range set {
			s.addUTF8(p)
		}
		return s
	case ast.SignOnly:
		s.add(byteRange(ast.ControlSign, ast.ControlSign))
		return s
	}
	must := mustEscape()
	for _, p := range set.Intersect(must.Negate()) {
		s.addUTF8(p)
	}
	for _, e := range shortEscapes {
		if set.Contains(e.r) && (enc == ast.JSONAny || e.r != '/') {
			s.add(escape(byteRange(e.b, e.b))...)
		}
	}
	if enc == ast.JSONUnique {
		s.addControls(set)
		return s
	}
	hex := set
	if enc == ast.JSONCanonical {
		hex = set.Intersect(must.Union(charset.Set{{Lo: 0x80, Hi: charset.MaxRune}}))
	}
	for _, p := range hex {
		s.addHex(p)
	}
	return s
}

// addControls adds \u00xx for the control characters of set that have no shorter
// escape.
func (s *spellings) addControls(set charset.Set) {
	short := func(r rune) bool {
		for _, e := range shortEscapes {
			if e.r == r {
				return true
			}
		}
		return false
	}
	const hex = "0123456789abcdef"
	zero, u := byteRange('0', '0'), byteRange('u', 'u')
	for r := rune(0); r < 0x20; r++ {
		if set.Contains(r) && !short(r) {
			high, low := hex[r>>4], hex[r&15]
			s.add(escape(u, zero, zero, byteRange(high, high), byteRange(low, low))...)
		}
	}
}

// suffix is the rest of a spelling: a set of bytes and the index of the suffix after it.
type suffix struct {
	set  ByteSet
	rest int32
}

// classBuilder builds a minimal automaton: spellings are lists of interned suffixes, and a
// state is the set of suffixes that may follow. Suffix 0 is the end.
type classBuilder struct {
	c        *Class
	suffixes []suffix
	known    map[suffix]int32
	states   map[string]int16
	limit    int
}

// New builds the automaton of set's spellings, or a LimitError.
func New(set charset.Set, enc ast.Encoding, limit int) (*Class, error) {
	plain := set
	if enc == ast.SignOnly {
		plain = nil
	} else if enc != ast.PlainUTF8 {
		plain = set.Intersect(mustEscape().Negate())
	}
	b := &classBuilder{c: &Class{Plain: plain}, suffixes: make([]suffix, 1), known: map[suffix]int32{},
		states: map[string]int16{}, limit: limit}
	var first []int32
	for _, seq := range spell(set, enc) {
		rest := int32(0)
		for _, place := range slices.Backward(seq) {
			s := suffix{place, rest}
			id, ok := b.known[s]
			if !ok {
				id = int32(len(b.suffixes))
				b.suffixes = append(b.suffixes, s)
				b.known[s] = id
			}
			rest = id
		}
		first = append(first, rest)
	}
	_, err := b.build(first)
	return b.c, err
}

// build returns the state before any of the given suffixes.
func (b *classBuilder) build(rests []int32) (int16, error) {
	slices.Sort(rests)
	rests = slices.Compact(rests)
	if rests[0] == 0 {
		return End, nil // no spelling is the beginning of another, so it is the only one
	}
	key := make([]byte, 0, 4*len(rests))
	for _, r := range rests {
		key = binary.LittleEndian.AppendUint32(key, uint32(r))
	}
	if id, ok := b.states[string(key)]; ok {
		return id, nil
	}
	if len(b.c.States) >= b.limit {
		return 0, &ast.LimitError{What: "states of a character class", Limit: b.limit}
	}
	id := int16(len(b.c.States))
	b.states[string(key)] = id
	b.c.States = append(b.c.States, nil)
	var edges []Edge
	var last, next []int32
	for v := range 256 {
		next = next[:0]
		for _, r := range rests {
			if s := &b.suffixes[r]; s.set.has(byte(v)) {
				next = append(next, s.rest)
			}
		}
		n := len(edges)
		if n > 0 && int(edges[n-1].Hi)+1 == v && slices.Equal(last, next) {
			edges[n-1].Hi = byte(v)
			continue
		}
		last = append(last[:0], next...)
		if len(next) == 0 {
			continue
		}
		to, err := b.build(slices.Clone(next))
		if err != nil {
			return 0, err
		}
		if n > 0 && int(edges[n-1].Hi)+1 == v && edges[n-1].To == to {
			edges[n-1].Hi = byte(v)
		} else {
			edges = append(edges, Edge{byte(v), byte(v), to})
		}
	}
	b.c.States[id] = edges
	return id, nil
}
