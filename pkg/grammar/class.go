package grammar

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
	"unicode/utf8"
)

// class is the byte automaton of one character of a set in one spelling. State 0
// is the first; an end has no way on, since no spelling is the beginning of
// another.
type class struct {
	states [][]byteEdge
	plain  runeSet // the characters that may be spelled as themselves
}

// byteEdge leads bytes lo to hi to a state, or to classEnd.
type byteEdge struct {
	lo, hi byte
	to     int16
}

const classEnd = -1

// next returns the state after b from s: classEnd, another, or dead.
func (c *class) next(s int16, b byte) (to int16, ok bool) {
	for _, e := range c.states[s] {
		if b >= e.lo && b <= e.hi {
			return e.to, true
		}
	}
	return 0, false
}

// byteSet is a set of bytes.
type byteSet [4]uint64

func (s *byteSet) add(b byte)      { s[b>>6] |= 1 << (b & 63) }
func (s *byteSet) has(b byte) bool { return s[b>>6]>>(b&63)&1 != 0 }

// all lists the bytes, ascending.
func (s *byteSet) all() iter.Seq[byte] {
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

func byteRange(lo, hi byte) (s byteSet) {
	for b := int(lo); b <= int(hi); b++ {
		s.add(byte(b))
	}
	return s
}

// spellings are byte sequences, each place a set.
type spellings [][]byteSet

func (s *spellings) add(seq ...byteSet) { *s = append(*s, seq) }

// addUTF8 adds the UTF-8 of the code points of p.
func (s *spellings) addUTF8(p span) {
	for _, limit := range []rune{0x7F, 0x7FF, 0xFFFF} {
		if p.lo <= limit && p.hi > limit {
			s.addUTF8(span{p.lo, limit})
			s.addUTF8(span{limit + 1, p.hi})
			return
		}
	}
	if p.hi <= 0x7F {
		s.add(byteRange(byte(p.lo), byte(p.hi)))
		return
	}
	// Split until all the lower places run over their whole range.
	for i := 1; i < utf8.RuneLen(p.hi); i++ {
		m := rune(1)<<(6*i) - 1
		if p.lo&^m != p.hi&^m {
			if p.lo&m != 0 {
				s.addUTF8(span{p.lo, p.lo | m})
				s.addUTF8(span{p.lo | m + 1, p.hi})
				return
			}
			if p.hi&m != m {
				s.addUTF8(span{p.lo, p.hi&^m - 1})
				s.addUTF8(span{p.hi &^ m, p.hi})
				return
			}
		}
	}
	var lo, hi [utf8.UTFMax]byte
	n := utf8.EncodeRune(lo[:], p.lo)
	utf8.EncodeRune(hi[:], p.hi)
	seq := make([]byteSet, n)
	for i := range seq {
		seq[i] = byteRange(lo[i], hi[i])
	}
	*s = append(*s, seq)
}

// hexDigit is the digits lo to hi in both cases.
func hexDigit(lo, hi int) (s byteSet) {
	for d := lo; d <= hi; d++ {
		if d < 10 {
			s.add(byte('0' + d))
		} else {
			s.add(byte('a' + d - 10))
			s.add(byte('A' + d - 10))
		}
	}
	return s
}

// hex4 calls with every four-digit sequence that together are lo to hi.
func hex4(lo, hi int, yield func([]byteSet)) {
	var walk func(lo, hi, place int, prefix []byteSet)
	walk = func(lo, hi, place int, prefix []byteSet) {
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

func escape(after ...byteSet) []byteSet {
	return append([]byteSet{byteRange('\\', '\\')}, after...)
}

// addHex adds \uXXXX, or pairs of them, for the code points of p.
func (s *spellings) addHex(p span) {
	u := byteRange('u', 'u')
	if p.lo <= 0xFFFF {
		hex4(int(p.lo), int(min(p.hi, 0xFFFF)), func(digits []byteSet) {
			*s = append(*s, escape(append([]byteSet{u}, digits...)...))
		})
	}
	if p.hi <= 0xFFFF {
		return
	}
	lo, hi := int(max(p.lo, 0x10000))-0x10000, int(p.hi)-0x10000
	pair := func(h1, h2, l1, l2 int) {
		hex4(0xD800+h1, 0xD800+h2, func(high []byteSet) {
			hex4(0xDC00+l1, 0xDC00+l2, func(low []byteSet) {
				seq := escape(append([]byteSet{u}, high...)...)
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

// mustEscape is the characters that JSON's strings do not hold as they are.
func mustEscape() runeSet { return runeSet{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}} }

// spell lists how the characters of set are written.
func spell(set runeSet, enc encoding) spellings {
	var s spellings
	switch enc {
	case plainUTF8:
		for _, p := range set {
			s.addUTF8(p)
		}
		return s
	case signOnly:
		s.add(byteRange(controlSign, controlSign))
		return s
	}
	must := mustEscape()
	for _, p := range set.intersect(must.negate()) {
		s.addUTF8(p)
	}
	for _, e := range shortEscapes {
		if set.contains(e.r) && (enc == jsonAny || e.r != '/') {
			s.add(escape(byteRange(e.b, e.b))...)
		}
	}
	if enc == jsonUnique {
		s.addControls(set)
		return s
	}
	hex := set
	if enc == jsonCanonical {
		hex = set.intersect(must.union(runeSet{{0x80, maxRune}}))
	}
	for _, p := range hex {
		s.addHex(p)
	}
	return s
}

// addControls adds \u00xx for the control characters of set that have no shorter
// escape.
func (s *spellings) addControls(set runeSet) {
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
		if set.contains(r) && !short(r) {
			high, low := hex[r>>4], hex[r&15]
			s.add(escape(u, zero, zero, byteRange(high, high), byteRange(low, low))...)
		}
	}
}

// suffix is the rest of a spelling: a place and what follows it, by index.
type suffix struct {
	set  byteSet
	rest int32
}

// classBuilder makes the automaton of spellings whose rests it keeps once each.
// Rest 0 is the end.
type classBuilder struct {
	c        *class
	suffixes []suffix
	known    map[suffix]int32
	states   map[string]int16
	limit    int
}

// newClass builds the automaton of set's spellings, or a LimitError.
func newClass(set runeSet, enc encoding, limit int) (*class, error) {
	plain := set
	if enc == signOnly {
		plain = nil
	} else if enc != plainUTF8 {
		plain = set.intersect(mustEscape().negate())
	}
	b := &classBuilder{c: &class{plain: plain}, suffixes: make([]suffix, 1), known: map[suffix]int32{}, states: map[string]int16{}, limit: limit}
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

// build returns the state of being before any of the rests.
func (b *classBuilder) build(rests []int32) (int16, error) {
	slices.Sort(rests)
	rests = slices.Compact(rests)
	if rests[0] == 0 {
		return classEnd, nil // no spelling begins another, so it is alone
	}
	key := make([]byte, 0, 4*len(rests))
	for _, r := range rests {
		key = binary.LittleEndian.AppendUint32(key, uint32(r))
	}
	if id, ok := b.states[string(key)]; ok {
		return id, nil
	}
	if len(b.c.states) >= b.limit {
		return 0, &LimitError{What: "states of a character class", Limit: b.limit}
	}
	id := int16(len(b.c.states))
	b.states[string(key)] = id
	b.c.states = append(b.c.states, nil)
	var edges []byteEdge
	var last, next []int32
	for v := range 256 {
		next = next[:0]
		for _, r := range rests {
			if s := &b.suffixes[r]; s.set.has(byte(v)) {
				next = append(next, s.rest)
			}
		}
		n := len(edges)
		if n > 0 && int(edges[n-1].hi)+1 == v && slices.Equal(last, next) {
			edges[n-1].hi = byte(v)
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
		if n > 0 && int(edges[n-1].hi)+1 == v && edges[n-1].to == to {
			edges[n-1].hi = byte(v)
		} else {
			edges = append(edges, byteEdge{byte(v), byte(v), to})
		}
	}
	b.c.states[id] = edges
	return id, nil
}
