package vocab

import (
	"unicode/utf8"
)

// sink gathers what an encoding makes, and holds what it reuses from piece to
// piece.
type sink struct {
	ids    []int32
	spans  [][2]int // of each id: bytes of the piece; only where record is set
	record bool

	syms  []symbol
	links []link
	queue queue
	lattice
}

// symbol is what a piece begins as: ids with the bytes they came from.
type symbol struct {
	id         int32
	start, end int32
}

// emit appends an id that stands for bytes [start, end) of the piece.
func (k *sink) emit(id int32, start, end int) {
	k.ids = append(k.ids, id)
	if k.record {
		k.spans = append(k.spans, [2]int{start, end})
	}
}

func (k *sink) emitAll(syms []symbol) {
	for _, s := range syms {
		k.emit(s.id, int(s.start), int(s.end))
	}
}

// room is an empty list with space for n links.
func (k *sink) room(n int) []link {
	if cap(k.links) < n {
		k.links = make([]link, 0, n)
	}
	return k.links[:0]
}

// link is one symbol of a piece in a doubly linked list over positions.
type link struct {
	id         int32
	prev, next int32
	rank       uint32 // how soon this symbol and the next one merge; noMerge where they do not
	start, end int32  // bytes of the piece
}

const noMerge = ^uint32(0)

// few is the length up to which looking through all pairs beats a heap.
const few = 32

// apply merges the symbols of one piece, the smallest rank first and the
// leftmost among equals, and returns what is left. syms is overwritten.
func (m *merges) apply(syms []symbol, k *sink) []symbol {
	if len(syms) <= few {
		return m.applyFew(syms)
	}
	links, q := k.room(len(syms)), &k.queue
	q.reset(len(syms))
	for i, s := range syms {
		l := link{id: s.id, prev: int32(i) - 1, next: int32(i) + 1, rank: noMerge, start: s.start, end: s.end}
		if i+1 < len(syms) {
			if l.rank = m.rank(s.id, syms[i+1].id); l.rank != noMerge {
				q.push(uint64(m.turn(l.rank))<<32 | uint64(i))
			}
		} else {
			l.next = -1
		}
		links = append(links, l)
	}
	pair := func(i int32) {
		l := &links[i]
		l.rank = noMerge
		if l.next < 0 {
			return
		}
		if l.rank = m.rank(l.id, links[l.next].id); l.rank != noMerge {
			q.push(uint64(m.turn(l.rank))<<32 | uint64(uint32(i)))
		}
	}
	for {
		top, ok := q.pop()
		if !ok {
			break
		}
		i := int32(uint32(top))
		l := &links[i]
		if l.id < 0 || l.rank == noMerge || m.turn(l.rank) != uint32(top>>32) {
			continue // the pair changed since it was queued
		}
		r := &links[l.next]
		l.id, l.next, l.end = m.made[l.rank], r.next, r.end
		r.id, r.rank = -1, noMerge
		if l.next >= 0 {
			links[l.next].prev = i
		}
		pair(i)
		if l.prev >= 0 {
			pair(l.prev)
		}
	}
	out := syms[:0] // never longer than what it overwrites
	for i := int32(0); i >= 0; i = links[i].next {
		out = append(out, symbol{links[i].id, links[i].start, links[i].end})
	}
	k.links = links
	return out
}

func (m *merges) applyFew(syms []symbol) []symbol {
	var ranks [few + 1]uint32
	n := len(syms)
	if n < 2 {
		return syms
	}
	for i := 0; i+1 < n; i++ {
		ranks[i] = m.rank(syms[i].id, syms[i+1].id)
	}
	for {
		best, at := noMerge, 0
		if m.order == nil {
			for i, r := range ranks[:n-1] {
				if r < best {
					best, at = r, i
				}
			}
		} else {
			soon := noMerge
			for i, r := range ranks[:n-1] {
				if r != noMerge && m.order[r] < soon {
					soon, best, at = m.order[r], r, i
				}
			}
		}
		if best == noMerge {
			return syms[:n]
		}
		syms[at].id, syms[at].end = m.made[best], syms[at+1].end
		copy(syms[at+1:n], syms[at+2:n])
		copy(ranks[at:n-2], ranks[at+1:n-1])
		n--
		if n < 2 {
			return syms[:n]
		}
		if at+1 < n {
			ranks[at] = m.rank(syms[at].id, syms[at+1].id)
		}
		if at > 0 {
			ranks[at-1] = m.rank(syms[at-1].id, syms[at].id)
		}
	}
}

// byteBPE is byte-level BPE: a piece starts as its bytes.
type byteBPE struct {
	merges *merges
	bytes  [256]int32       // the id of each byte, -1 where there is none
	words  map[string]int32 // tokens by their bytes, where whole words go unmerged
	unk    int32            // for a byte that is none; -1 refuses it
	drop   bool             // such a byte goes, as it does elsewhere: the unknown token is a control token
}

func (m *byteBPE) encode(piece string, k *sink) error {
	if m.words != nil {
		if id, ok := m.words[piece]; ok {
			k.emit(id, 0, len(piece))
			return nil
		}
	}
	syms := k.syms[:0]
	for i := 0; i < len(piece); i++ {
		id := m.bytes[piece[i]]
		if id < 0 {
			if m.drop {
				continue
			}
			if m.unk < 0 {
				return &TextError{Offset: i, Piece: shorten(piece), Reason: "the vocabulary lacks a byte that stands"}
			}
			id = m.unk
		}
		syms = append(syms, symbol{id, int32(i), int32(i + 1)})
	}
	k.syms = syms
	k.emitAll(m.merges.apply(syms, k))
	return nil
}

// charBPE starts from the characters of a piece; those outside the vocabulary
// become bytes, or the unknown token, or nothing.
type charBPE struct {
	merges  *merges
	chars   map[string]int32
	ascii   [utf8.RuneSelf]int32 // chars of one byte, -1 where there is none
	bytes   *[256]int32          // byte tokens, -1 where one is missing; nil where there is no byte fallback
	words   map[string]int32
	unk     int32
	fuseUnk bool
	strict  bool   // refuse a character outside the vocabulary
	prefix  string // before every character but a piece's first
	suffix  string // after a piece's last character
}

// index fills in ascii.
func (m *charBPE) index() {
	for c := range m.ascii {
		m.ascii[c] = -1
		if id, ok := m.chars[string(rune(c))]; ok {
			m.ascii[c] = id
		}
	}
}

func (m *charBPE) encode(piece string, k *sink) error {
	if m.words != nil {
		if id, ok := m.words[piece]; ok {
			k.emit(id, 0, len(piece))
			return nil
		}
	}
	affixed := m.prefix != "" || m.suffix != ""
	syms := k.syms[:0]
	unknown := false
	for i := 0; i < len(piece); {
		n := 1
		if piece[i] >= utf8.RuneSelf {
			_, n = utf8.DecodeRuneInString(piece[i:])
		}
		var id int32
		ok := false
		switch {
		case affixed:
			text := piece[i : i+n]
			if i > 0 {
				text = m.prefix + text
			}
			if i+n == len(piece) {
				text += m.suffix
			}
			id, ok = m.chars[text]
		case n == 1:
			id = m.ascii[piece[i]]
			ok = id >= 0
		default:
			id, ok = m.chars[piece[i:i+n]]
		}
		switch {
		case ok:
			syms = append(syms, symbol{id, int32(i), int32(i + n)})
		case m.bytes != nil:
			for b := i; b < i+n; b++ {
				if id := m.bytes[piece[b]]; id >= 0 { // a byte without a token goes, as it does in llama.cpp
					syms = append(syms, symbol{id, int32(b), int32(b + 1)})
				}
			}
		case m.unk >= 0:
			if m.fuseUnk && unknown {
				syms[len(syms)-1].end = int32(i + n)
			} else {
				syms = append(syms, symbol{m.unk, int32(i), int32(i + n)})
			}
		case m.strict:
			return &TextError{Offset: i, Piece: shorten(piece), Reason: "the vocabulary lacks a character that stands"}
		}
		unknown = !ok && m.bytes == nil
		i += n
	}
	k.syms = syms
	k.emitAll(m.merges.apply(syms, k))
	return nil
}

// shorten keeps an error's quotation readable.
func shorten(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

func runeAt(s string, i int) (rune, int) {
	if i >= len(s) {
		return 0, 0
	}
	return utf8.DecodeRuneInString(s[i:])
}
