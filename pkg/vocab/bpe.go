package vocab

import (
	"math/bits"
	"slices"
	"unicode/utf8"
)

// merges is an open-addressed table from a pair of adjacent ids to the rank of
// its merge and the id it makes. Rank 0 merges first.
type merges struct {
	keys []uint64 // left<<32 | right, plus one; 0 is free
	vals []uint64 // rank<<32 | made
	mask uint64
	n    int
}

func newMerges(n int) *merges {
	size := uint64(1) << bits.Len(uint(n)*2|15)
	return &merges{keys: make([]uint64, size), vals: make([]uint64, size), mask: size - 1}
}

func pairKey(left, right int32) uint64 {
	return (uint64(uint32(left))<<32 | uint64(uint32(right))) + 1
}

func (m *merges) slot(key uint64) uint64 {
	i := (key * 0x9e3779b97f4a7c15 >> 20) & m.mask
	for m.keys[i] != 0 && m.keys[i] != key {
		i = (i + 1) & m.mask
	}
	return i
}

// add records a merge; the first of two for the same pair stays.
func (m *merges) add(left, right int32, rank uint32, made int32) {
	key := pairKey(left, right)
	i := m.slot(key)
	if m.keys[i] != 0 {
		return
	}
	m.keys[i] = key
	m.vals[i] = uint64(rank)<<32 | uint64(uint32(made))
	m.n++
}

// find returns the rank of a pair's merge and the id it makes.
func (m *merges) find(left, right int32) (rank uint32, made int32, ok bool) {
	if m.n == 0 {
		return 0, 0, false
	}
	i := m.slot(pairKey(left, right))
	if m.keys[i] == 0 {
		return 0, 0, false
	}
	return uint32(m.vals[i] >> 32), int32(uint32(m.vals[i])), true
}

// scratch is what one encoding reuses from piece to piece.
type scratch struct {
	ids   []int32
	links []link
	queue queue
}

// room is an empty list with space for n links.
func (s *scratch) room(n int) []link {
	if cap(s.links) < n {
		s.links = make([]link, 0, n)
	}
	return s.links[:0]
}

// link is one symbol of a piece in a doubly linked list over positions.
type link struct {
	id         int32
	prev, next int32
	made       int32  // what this symbol and the next one merge into
	rank       uint32 // and how soon; noMerge where they do not
	start, end int32  // bytes of the piece (spm only)
}

const noMerge = ^uint32(0)

// few is the length up to which looking through all pairs beats a heap.
const few = 24

// apply merges the symbols of one piece, the smallest rank first and the
// leftmost among equals, and appends what is left to out. ids is overwritten.
func (m *merges) apply(ids []int32, s *scratch, out []int32) []int32 {
	if len(ids) <= few {
		return append(out, m.applyFew(ids)...)
	}
	links, q := s.room(len(ids)), &s.queue
	q.reset(len(ids))
	for i, id := range ids {
		l := link{id: id, prev: int32(i) - 1, next: int32(i) + 1, rank: noMerge}
		if i+1 < len(ids) {
			if rank, made, ok := m.find(id, ids[i+1]); ok {
				l.rank, l.made = rank, made
				q.push(uint64(rank)<<32 | uint64(i))
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
		if rank, made, ok := m.find(l.id, links[l.next].id); ok {
			l.rank, l.made = rank, made
			q.push(uint64(rank)<<32 | uint64(uint32(i)))
		}
	}
	for {
		top, ok := q.pop()
		if !ok {
			break
		}
		i := int32(uint32(top))
		l := &links[i]
		if l.id < 0 || l.rank != uint32(top>>32) {
			continue // the pair changed since it was queued
		}
		r := &links[l.next]
		l.id, l.next = l.made, r.next
		r.id, r.rank = -1, noMerge
		if l.next >= 0 {
			links[l.next].prev = i
		}
		pair(i)
		if l.prev >= 0 {
			pair(l.prev)
		}
	}
	for i := int32(0); i >= 0; i = links[i].next {
		out = append(out, links[i].id)
	}
	s.links = links
	return out
}

func (m *merges) applyFew(ids []int32) []int32 {
	var ranks [few]uint32
	var made [few]int32
	look := func(i int) {
		ranks[i] = noMerge
		if i+1 < len(ids) {
			if rank, id, ok := m.find(ids[i], ids[i+1]); ok {
				ranks[i], made[i] = rank, id
			}
		}
	}
	for i := range ids {
		look(i)
	}
	for {
		best := -1
		for i := 0; i+1 < len(ids); i++ {
			if ranks[i] != noMerge && (best < 0 || ranks[i] < ranks[best]) {
				best = i
			}
		}
		if best < 0 {
			return ids
		}
		ids[best] = made[best]
		n := len(ids)
		copy(ids[best+1:], ids[best+2:])
		copy(ranks[best+1:n-1], ranks[best+2:n])
		copy(made[best+1:n-1], made[best+2:n])
		ids = ids[:n-1]
		look(best)
		if best > 0 {
			look(best - 1)
		}
	}
}

// byteBPE is byte-level BPE: a piece starts as its bytes.
type byteBPE struct {
	merges *merges
	bytes  [256]int32       // the id of each byte, -1 where there is none
	words  map[string]int32 // tokens by their bytes, where whole words go unmerged
	unk    int32
}

func (m *byteBPE) encode(piece string, s *scratch, out []int32) ([]int32, error) {
	if m.words != nil {
		if id, ok := m.words[piece]; ok {
			return append(out, id), nil
		}
	}
	ids := slices.Grow(s.ids[:0], len(piece))
	for i := 0; i < len(piece); i++ {
		id := m.bytes[piece[i]]
		if id < 0 {
			if m.unk < 0 {
				return nil, &TextError{Offset: i, Piece: shorten(piece), Reason: "the vocabulary lacks a byte that stands"}
			}
			id = m.unk
		}
		ids = append(ids, id)
	}
	s.ids = ids
	return m.merges.apply(ids, s, out), nil
}

// charBPE starts from the characters of a piece; those outside the vocabulary
// become bytes, or the unknown token, or nothing.
type charBPE struct {
	merges  *merges
	chars   map[string]int32
	bytes   *[256]int32 // byte tokens, nil where there is no byte fallback
	words   map[string]int32
	unk     int32
	fuseUnk bool
	strict  bool // refuse a character outside the vocabulary
}

func (m *charBPE) encode(piece string, s *scratch, out []int32) ([]int32, error) {
	if m.words != nil {
		if id, ok := m.words[piece]; ok {
			return append(out, id), nil
		}
	}
	ids := s.ids[:0]
	unknown := false
	for i := 0; i < len(piece); {
		_, n := utf8.DecodeRuneInString(piece[i:])
		id, ok := m.chars[piece[i:i+n]]
		switch {
		case ok:
			ids = append(ids, id)
		case m.bytes != nil:
			for k := i; k < i+n; k++ {
				ids = append(ids, m.bytes[piece[k]])
			}
		case m.unk >= 0:
			if !m.fuseUnk || !unknown {
				ids = append(ids, m.unk)
			}
		case m.strict:
			return nil, &TextError{Offset: i, Piece: shorten(piece), Reason: "the vocabulary lacks a character that stands"}
		}
		unknown = !ok && m.bytes == nil
		i += n
	}
	s.ids = ids
	return m.merges.apply(ids, s, out), nil
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
