package vocab

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is matched in text before the model runs.
type addedToken struct {
	id         int32
	text       string
	control    bool // matched only with Options.Special
	lstrip     bool // swallows the white space before it
	rstrip     bool // swallows the white space after it
	singleWord bool // matched only between non-word characters
}

// matcher finds added tokens in text: the leftmost one, and of several that begin
// there the longest.
type matcher struct {
	nodes   []node
	tokens  []addedToken
	first   [256]bool
	only    byte // the first byte of all tokens, if single
	single  bool
	control bool // some tokens are control tokens
}

type node struct {
	next  map[byte]int32
	token int32 // index into tokens, -1 for none
}

func newMatcher(tokens []addedToken) *matcher {
	if len(tokens) == 0 {
		return nil
	}
	m := &matcher{nodes: []node{{token: -1}}, tokens: tokens}
	for k, t := range tokens {
		if t.text == "" {
			continue
		}
		m.single = len(m.nodes) == 1 || m.single && t.text[0] == m.only
		m.only = t.text[0]
		m.control = m.control || t.control
		m.first[t.text[0]] = true
		at := int32(0)
		for i := 0; i < len(t.text); i++ {
			n := &m.nodes[at]
			next, ok := n.next[t.text[i]]
			if !ok {
				if n.next == nil {
					n.next = map[byte]int32{}
				}
				next = int32(len(m.nodes))
				n.next[t.text[i]] = next
				m.nodes = append(m.nodes, node{token: -1})
			}
			at = next
		}
		m.nodes[at].token = int32(k)
	}
	return m
}

// found is an added token in a text: the bytes [start, end) that it covers, and where
// the search for the next one continues. White space that a token swallows may
// itself contain the next token.
type found struct {
	start, end, resume int
	id                 int32
}

// next returns the first added token at or after s[from:]. Everything before
// s[taken:] belongs to tokens already found.
func (m *matcher) next(s string, from, taken int, o *Options, plain *plainSpans) (found, bool) {
	for i := from; i < len(s); i++ {
		if m.single {
			n := strings.IndexByte(s[i:], m.only)
			if n < 0 {
				break
			}
			i += n
		}
		if !m.first[s[i]] {
			continue
		}
		best := int32(-1)
		at := int32(0)
		for e := i; e < len(s); {
			next, ok := m.nodes[at].next[s[e]]
			if !ok {
				break
			}
			at = next
			e++
			k := m.nodes[at].token
			if k < 0 {
				continue
			}
			t := &m.tokens[k]
			if t.control && (!o.Special || plain.overlap(i, e)) {
				continue
			}
			best = k
		}
		if best < 0 {
			continue
		}
		t := &m.tokens[best]
		if t.singleWord && (wordBefore(s, i) || wordAfter(s, i+len(t.text))) {
			i += len(t.text) - 1
			continue
		}
		f := found{start: max(i, taken), end: i + len(t.text), resume: i + len(t.text), id: t.id}
		for t.lstrip && f.start > taken {
			r, n := utf8.DecodeLastRuneInString(s[taken:f.start])
			if !unicode.IsSpace(r) {
				break
			}
			f.start -= n
		}
		for t.rstrip && f.end < len(s) {
			r, n := utf8.DecodeRuneInString(s[f.end:])
			if !unicode.IsSpace(r) {
				break
			}
			f.end += n
		}
		f.end = max(f.end, taken)
		return f, true
	}
	return found{}, false
}

func wordBefore(s string, i int) bool {
	r, n := utf8.DecodeLastRuneInString(s[:i])
	return n > 0 && isWord(r)
}

func wordAfter(s string, i int) bool {
	r, n := utf8.DecodeRuneInString(s[i:])
	return n > 0 && isWord(r)
}

// isWord is \w as in Unicode Technical Standard 18, including join controls.
func isWord(r rune) bool {
	return classOf(r)&classWord != 0 || r == 0x200c || r == 0x200d ||
		unicode.In(r, unicode.Nl, unicode.Other_Alphabetic)
}

// plainSpans walks through Options.Plain as the scan moves forward. back, unless
// nil, maps a position in the scanned text to one in the input text.
type plainSpans struct {
	ranges [][2]int
	back   func(start, end int) (int, int)
}

// overlap reports whether [start, end) overlaps a plain range. start never decreases
// between calls.
func (p *plainSpans) overlap(start, end int) bool {
	if len(p.ranges) == 0 {
		return false
	}
	if p.back != nil {
		start, end = p.back(start, end)
	}
	for len(p.ranges) > 0 && p.ranges[0][1] <= start {
		p.ranges = p.ranges[1:]
	}
	for _, r := range p.ranges {
		if r[0] >= end {
			return false
		}
		if r[0] < r[1] {
			return true
		}
	}
	return false
}
