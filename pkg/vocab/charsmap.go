package vocab

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// charsmap is SentencePiece's precompiled table of replacements: a double-array trie
// (J. Aoe, 1989, in the layout of Darts-clone) that maps byte strings to offsets in
// a pool of NUL-terminated texts.
//
// A unit of the trie is 32 bits. The low 8 bits are the label, the byte that leads to
// the node; bit 31 marks a leaf; bit 8 says that a value follows; the rest, shifted by 8
// if bit 9 is set, is an offset. The children of the node at position p with offset o
// lie at p^o^byte, and its value at p^o: the child with the label 0.
type charsmap struct {
	units []uint32
	pool  string
	plain [utf8.RuneSelf]bool // ASCII characters that no rule begins with
}

// newCharsmap reads the table. An empty table replaces nothing.
func newCharsmap(blob []byte) (*charsmap, error) {
	m := &charsmap{}
	if len(blob) > 0 {
		if len(blob) < 4 {
			return nil, errors.New("the table is shorter than its size field")
		}
		size := binary.LittleEndian.Uint32(blob)
		if size%4 != 0 || uint64(size) > uint64(len(blob)-4) {
			return nil, errors.New("the trie is longer than the table")
		}
		m.units = make([]uint32, size/4)
		for i := range m.units {
			m.units[i] = binary.LittleEndian.Uint32(blob[4+4*i:])
		}
		m.pool = string(blob[4+size:])
		if !utf8.ValidString(m.pool) {
			return nil, errors.New("the replacements are not UTF-8")
		}
	}
	for c := range m.plain {
		_, ok := m.step(m.root(), byte(c))
		m.plain[c] = !ok
	}
	return m, nil
}

func (m *charsmap) root() uint32 {
	if len(m.units) == 0 {
		return 0
	}
	return unitOffset(m.units[0])
}

func unitOffset(u uint32) uint32 { return u >> 10 << (u >> 6 & 8) }

// step follows a byte from the position at. It returns the position of the node, which
// is there only if its label is that byte.
func (m *charsmap) step(at uint32, c byte) (node uint32, ok bool) {
	node = at ^ uint32(c)
	if int64(node) >= int64(len(m.units)) || m.units[node]&(1<<31|0xff) != uint32(c) {
		return 0, false
	}
	return node, true
}

// find looks up the prefixes of s. It returns the replacement and the length of the
// shortest prefix with a rule, or of the longest; ok is false if there is none.
func (m *charsmap) find(s string, longest bool) (text string, n int, ok bool) {
	at := m.root()
	for i := 0; i < len(s); i++ {
		node, found := m.step(at, s[i])
		if !found {
			break
		}
		u := m.units[node]
		at = node ^ unitOffset(u)
		if u>>8&1 == 0 {
			continue
		}
		if int64(at) >= int64(len(m.units)) {
			break
		}
		place := int64(m.units[at] & (1<<31 - 1))
		if place >= int64(len(m.pool)) {
			break
		}
		text = m.pool[place:]
		if end := strings.IndexByte(text, 0); end >= 0 {
			text = text[:end]
		}
		n, ok = i+1, true
		if !longest {
			break
		}
	}
	return text, n, ok
}

// graphemes applies the normalizer as Hugging Face does: a grapheme cluster of fewer than 6 bytes
// is replaced as a whole if a rule matches its beginning; otherwise each character is replaced on
// its own.
func (m *charsmap) graphemes(s string, _ bool, ed *edits) string {
	var b strings.Builder
	from := 0
	put := func(i, n int, text string) {
		b.WriteString(s[from:i])
		ed.add(i-from, i-from, true)
		b.WriteString(text)
		ed.add(len(text), n, false)
		from = i + n
	}
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf && m.plain[c] && (i+1 == len(s) || s[i+1] < utf8.RuneSelf && c != '\r') {
			i++
			continue
		}
		n := clusterLength(s[i:])
		if n < 6 {
			if text, _, ok := m.find(s[i:i+n], false); ok {
				put(i, n, text)
				i += n
				continue
			}
		}
		for end := i + n; i < end; {
			_, w := utf8.DecodeRuneInString(s[i:])
			if text, _, ok := m.find(s[i:i+w], false); ok {
				put(i, w, text)
			}
			i += w
		}
	}
	ed.add(len(s)-from, len(s)-from, true)
	if from == 0 {
		return s
	}
	b.WriteString(s[from:])
	return b.String()
}

// clusterLength returns the length in bytes of the first extended grapheme cluster (Unicode
// Standard Annex 29) as far as marks, joiners, Hangul and flags are concerned.
func clusterLength(s string) int {
	r, n := utf8.DecodeRuneInString(s)
	if r == '\r' && strings.HasPrefix(s[n:], "\n") {
		return 2
	}
	if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp) || r == 0x200b {
		return n
	}
	flag := isFlag(r)
	prev := r
	pictured := isPictograph(r)
	for n < len(s) {
		r, w := utf8.DecodeRuneInString(s[n:])
		switch {
		case extends(r):
		case flag && isFlag(r):
			flag = false
		case prev == 0x200d && pictured && isPictograph(r):
		case hangul(prev, r):
		case unicode.Is(unicode.Prepended_Concatenation_Mark, prev) && !unicode.IsControl(r):
		default:
			return n
		}
		if !isFlag(r) {
			flag = false
		}
		prev = r
		n += w
	}
	return n
}

func isFlag(r rune) bool { return r >= 0x1f1e6 && r <= 0x1f1ff }

func isPictograph(r rune) bool {
	return r == 0xa9 || r == 0xae || r == 0x203c || r == 0x2049 || r == 0x2122 || r == 0x2139 ||
		r >= 0x2190 && r <= 0x2bff && unicode.Is(unicode.So, r) ||
		r == 0x3030 || r == 0x303d || r == 0x3297 || r == 0x3299 ||
		r >= 0x1f000 && r <= 0x1fbff && (r < 0x1f3fb || r > 0x1f3ff) && !isFlag(r)
}

// extends reports whether a character never begins a cluster.
func extends(r rune) bool {
	return r == 0x200c || r == 0x200d || r >= 0x1f3fb && r <= 0x1f3ff || r >= 0xff9e && r <= 0xff9f ||
		r >= 0xe0020 && r <= 0xe007f ||
		unicode.In(r, unicode.Mn, unicode.Me) ||
		unicode.Is(unicode.Mc, r) && r != 0x102b && r != 0x102c && r != 0x1038 &&
			(r < 0x1062 || r > 0x1064) && (r < 0x1067 || r > 0x106d) && r != 0x1083 &&
			(r < 0x1087 || r > 0x108c) && r != 0x108f && (r < 0x109a || r > 0x109c) &&
			r != 0x1a61 && r != 0x1a63 && r != 0x1a64 ||
		r == 0xe33 || r == 0xeb3
}

// hangul reports whether two jamo belong to one syllable.
func hangul(a, b rune) bool {
	lead := func(r rune) bool { return r >= 0x1100 && r <= 0x115f || r >= 0xa960 && r <= 0xa97c }
	vowel := func(r rune) bool { return r >= 0x1160 && r <= 0x11a7 || r >= 0xd7b0 && r <= 0xd7c6 }
	trail := func(r rune) bool { return r >= 0x11a8 && r <= 0x11ff || r >= 0xd7cb && r <= 0xd7fb }
	syllable := func(r rune) bool { return r >= 0xac00 && r <= 0xd7a3 }
	open := func(r rune) bool { return syllable(r) && (r-0xac00)%28 == 0 }
	switch {
	case lead(a):
		return lead(b) || vowel(b) || syllable(b)
	case vowel(a), open(a):
		return vowel(b) || trail(b)
	case syllable(a), trail(a):
		return trail(b)
	}
	return false
}
