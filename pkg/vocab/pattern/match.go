package pattern

import (
	"unicode"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

// Matcher finds the matches of a pattern in one text. It belongs to one goroutine.
type Matcher struct {
	p     *Pattern
	text  string
	bad   []uint64 // one bit per choice and position: tried without a match
	good  []uint64 // the same within look-aheads: tried with a match
	stack []frame
	path  []int
	runs  [][2]int // the last position of each possessive run
}

// frame is a choice to come back to.
type frame struct {
	at, pos int32
	path    int32
}

// Matcher returns a matcher for a text, which must be valid UTF-8.
func (p *Pattern) Matcher(text string) *Matcher {
	words := (p.choices*(len(text)+1) + 63) / 64
	m := &Matcher{p: p, text: text, bad: make([]uint64, words), runs: make([][2]int, p.runs)}
	for i := range p.prog {
		if p.prog[i].op == opLook {
			m.good = make([]uint64, words)
			break
		}
	}
	return m
}

// Next returns the first match that begins at or after byte from.
func (m *Matcher) Next(from int) (start, end int, ok bool) {
	for i := from; i <= len(m.text); {
		if m.p.empty || i < len(m.text) && m.p.first[m.text[i]] {
			if e := m.run(m.p.start, i, false); e >= 0 {
				return i, e, true
			}
		}
		if i == len(m.text) {
			break
		}
		_, n := utf8.DecodeRuneInString(m.text[i:])
		i += n
	}
	return 0, 0, false
}

// All calls yield with every match in order. After an empty match the search moves on
// by one character, and an empty match directly after another match is skipped.
func (m *Matcher) All(yield func(start, end int) bool) {
	last := -1
	for at := 0; at <= len(m.text); {
		s, e, ok := m.Next(at)
		if !ok {
			return
		}
		if s == e {
			_, n := utf8.DecodeRuneInString(m.text[e:])
			at = e + max(n, 1)
			if e == last {
				continue
			}
		} else {
			at = e
		}
		last = e
		if !yield(s, e) {
			return
		}
	}
}

// run returns the end of the match of a program at pos, or -1. In a look-ahead only the
// existence of a match counts, so successful choices are recorded as well.
//
// walk marks each choice it takes as bad in advance and lists it in path. When a match
// is found, the choices on the path are unmarked: they did not fail.
func (m *Matcher) run(at int32, pos int, look bool) int {
	base, basePath := len(m.stack), len(m.path)
	defer func() { m.stack, m.path = m.stack[:base], m.path[:basePath] }()
	for {
		end := m.walk(at, &pos, look)
		if end >= 0 {
			for _, bit := range m.path[basePath:] {
				m.bad[bit>>6] &^= 1 << (bit & 63)
				if look {
					m.good[bit>>6] |= 1 << (bit & 63)
				}
			}
			return end
		}
		if len(m.stack) == base {
			return -1
		}
		f := m.stack[len(m.stack)-1]
		m.stack = m.stack[:len(m.stack)-1]
		m.path = m.path[:f.path]
		at, pos = f.at, int(f.pos)
	}
}

// walk takes first choices until it finds a match or a dead end.
func (m *Matcher) walk(at int32, from *int, look bool) int {
	pos := *from
	for {
		i := &m.p.prog[at]
		switch i.op {
		case opSet:
			n := i.set.width(m.text, pos)
			if n == 0 {
				return -1
			}
			pos += n
		case opSplit:
			bit := int(i.choice)*(len(m.text)+1) + pos
			if look && m.good[bit>>6]>>(bit&63)&1 != 0 {
				return pos
			}
			if m.bad[bit>>6]>>(bit&63)&1 != 0 {
				return -1
			}
			m.bad[bit>>6] |= 1 << (bit & 63)
			m.path = append(m.path, bit)
			m.stack = append(m.stack, frame{i.alt, int32(pos), int32(len(m.path))})
		case opAssert:
			if !m.holds(i.assert, pos) {
				return -1
			}
		case opLook:
			if !m.look(i, pos) {
				return -1
			}
		case opAtomic:
			end := m.run(i.alt, pos, false)
			if end < 0 {
				return -1
			}
			pos = end
		case opRun:
			r := &m.runs[i.choice]
			if pos < r[0] || pos >= r[1] {
				r[0], r[1] = pos, pos
				for n := i.set.width(m.text, r[1]); n > 0; n = i.set.width(m.text, r[1]) {
					r[1] += n
				}
			}
			pos = r[1]
		case opFail:
			return -1
		default:
			return pos
		}
		at = i.next
	}
}

// look evaluates a look-ahead or look-behind, at most once per position.
func (m *Matcher) look(i *inst, pos int) bool {
	bit := int(i.choice)*(len(m.text)+1) + pos
	word, mask := bit>>6, uint64(1)<<(bit&63)
	if m.good[word]&mask != 0 {
		return !i.not
	}
	if m.bad[word]&mask != 0 {
		return i.not
	}
	start, found := pos, true
	for k := 0; k < i.behind; k++ {
		_, n := utf8.DecodeLastRuneInString(m.text[:start])
		start, found = start-n, found && n > 0
	}
	if found {
		end := m.run(i.alt, start, true)
		found = end >= 0
	}
	if found {
		m.good[word] |= mask
	} else {
		m.bad[word] |= mask
	}
	return found != i.not
}

func (m *Matcher) holds(assert regex.Op, pos int) bool {
	switch assert {
	case regex.Begin:
		return pos == 0
	case regex.End:
		return pos == len(m.text)
	case regex.FinalEnd:
		return pos == len(m.text) || pos == len(m.text)-1 && m.text[pos] == '\n'
	case regex.LineBegin:
		return pos == 0 || m.text[pos-1] == '\n'
	case regex.LineEnd:
		return pos == len(m.text) || m.text[pos] == '\n'
	}
	before, _ := utf8.DecodeLastRuneInString(m.text[:pos])
	after, _ := utf8.DecodeRuneInString(m.text[pos:])
	edge := (pos > 0 && wordRune(before)) != (pos < len(m.text) && wordRune(after))
	return edge == (assert == regex.WordBoundary)
}

func wordRune(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Pc)
}
