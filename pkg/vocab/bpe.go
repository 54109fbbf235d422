package vocab

import (
	"unicode/utf8"
)

// sink collects the ids of an encoding. It also holds the scratch buffers that are
// reused from piece to piece.
type sink struct {
	ids    []int32
	spans  [][2]int // byte range of each id in the piece, if record is set
	record bool

	syms  []symbol
	links []link
	queue queue
	lattice
}

// symbol is an id and the bytes of the piece that it stands for. A piece begins as one
// symbol per byte or character.
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

// room returns an empty list with capacity for n links.
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
	rank       uint32 // rank of the merge of this symbol with the next; noMerge if there is none
	start, end int32  // bytes of the piece
}

const noMerge = ^uint32(0)

// linearLimit is the number of symbols up to which a linear search for the best pair beats a
// heap.
const linearLimit = 32

// apply merges the symbols of one piece, the smallest rank first and the leftmost of
// equals, until no pair merges. It returns the symbols that remain; syms is
// overwritten.
//
// The symbols form a doubly linked list, and a queue holds the mergeable pairs by
// (priority, position). A merge changes at most two neighbouring pairs. Instead of
// removing their old entries from the queue, apply pushes new ones and drops an
// entry when it comes up if its pair has changed since, so the whole takes
// O(n log n) time.
func (m *merges) apply(syms []symbol, k *sink) []symbol {
	if len(syms) <= linearLimit {
		return m.applyFew(syms)
	}
	links, q := k.room(len(syms)), &k.queue
	q.reset(len(syms))
	for i, s := range syms {
		l := link{id: s.id, prev: int32(i) - 1, next: int32(i) + 1, rank: noMerge, start: s.start, end: s.end}
		if i+1 < len(syms) {
			if l.rank = m.rank(s.id, syms[i+1].id); l.rank != noMerge {
				q.push(uint64(m.priority(l.rank))<<32 | uint64(i))
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
			q.push(uint64(m.priority(l.rank))<<32 | uint64(uint32(i)))
		}
	}
	for {
		top, ok := q.pop()
		if !ok {
			break
		}
		i := int32(uint32(top))
		l := &links[i]
		if l.id < 0 || l.rank == noMerge || m.priority(l.rank) != uint32(top>>32) {
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
	out := syms[:0] // never longer than the symbols it overwrites
	for i := int32(0); i >= 0; i = links[i].next {
		out = append(out, symbol{links[i].id, links[i].start, links[i].end})
	}
	k.links = links
	return out
}

func (m *merges) applyFew(syms []symbol) []symbol {
	var ranks [linearLimit + 1]uint32
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

// byteBPE is byte-level BPE: merging starts from the bytes of a piece.
type byteBPE struct {
	merges *merges
	bytes  [256]int32       // the id of each byte, -1 where there is none
	words  map[string]int32 // tokens by their bytes, if a piece that is a token is not merged; else nil
	unk    int32            // replaces a byte without a token; -1 makes such a byte an error
	drop   bool             // drop such a byte, as Hugging Face does: the unknown token is a control token
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
				return &TextError{Offset: i, Piece: shorten(piece), Reason: "the vocabulary has no token for a byte"}
			}
			id = m.unk
		}
		syms = append(syms, symbol{id, int32(i), int32(i + 1)})
	}
	k.syms = syms
	k.emitAll(m.merges.apply(syms, k))
	return nil
}

// charBPE is BPE over characters. A character outside the vocabulary becomes its byte
// tokens, or the unknown token, or is dropped.
type charBPE struct {
	merges  *merges
	chars   map[string]int32
	ascii   [utf8.RuneSelf]int32 // ids of ASCII characters, -1 if not a token
	bytes   *[256]int32          // byte tokens, -1 where one is missing; nil where there is no byte fallback
	words   map[string]int32
	unk     int32
	fuseUnk bool
	strict  bool   // a character outside the vocabulary is an error
	prefix  string // put before every character of a piece but the first
	suffix  string // put after the last character of a piece
}

// index fills ascii.
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
				if id := m.bytes[piece[b]]; id >= 0 { // llama.cpp drops a byte without a token too
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
			return &TextError{Offset: i, Piece: shorten(piece), Reason: "the vocabulary has no token for a character"}
		}
		unknown = !ok && m.bytes == nil
		i += n
	}
	k.syms = syms
	k.emitAll(m.merges.apply(syms, k))
	return nil
}

// shorten limits the text that an error quotes.
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
