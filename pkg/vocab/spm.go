package vocab

import (
	"cmp"
	"math"
	"slices"
	"unicode/utf8"
)

// spm is SentencePiece's BPE: adjacent symbols merge into the token with the
// best score, the leftmost among equals, until none can (T. Kudo and J.
// Richardson, 2018).
type spm struct {
	pieces  map[string]int32
	rank    []uint32 // of each token's score; equal scores share one
	longest int      // bytes of the longest piece
	bytes   [256]int32
	unk     int32
}

// newSPM ranks the scores. scores has one entry for each token; only tokens in
// pieces take part.
func newSPM(pieces map[string]int32, scores []float32, bytes [256]int32, unk int32) (*spm, error) {
	order := make([]int32, 0, len(pieces))
	longest := 0
	for text, id := range pieces {
		if math.IsNaN(float64(scores[id])) {
			return nil, malformed("scores", "token %d has no number", id)
		}
		order = append(order, id)
		longest = max(longest, len(text))
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(scores[b], scores[a]) })
	rank := make([]uint32, len(scores))
	n := uint32(0)
	for i, id := range order {
		if i > 0 && scores[id] != scores[order[i-1]] {
			n++
		}
		rank[id] = n
	}
	return &spm{pieces: pieces, rank: rank, longest: longest, bytes: bytes, unk: unk}, nil
}

func (m *spm) encode(piece string, s *scratch, out []int32) ([]int32, error) {
	links, q := s.room(utf8.RuneCountInString(piece)), &s.queue
	for i := 0; i < len(piece); {
		_, n := utf8.DecodeRuneInString(piece[i:])
		k := int32(len(links))
		links = append(links, link{prev: k - 1, next: k + 1, start: int32(i), end: int32(i + n), rank: noMerge})
		i += n
	}
	if len(links) == 0 {
		return out, nil
	}
	links[len(links)-1].next = -1
	q.reset(len(links))
	pair := func(i int32) {
		l := &links[i]
		l.rank = noMerge
		if l.next < 0 {
			return
		}
		end := links[l.next].end
		if int(end-l.start) > m.longest {
			return
		}
		if id, ok := m.pieces[piece[l.start:end]]; ok {
			l.rank = m.rank[id]
			q.push(uint64(l.rank)<<32 | uint64(uint32(i)))
		}
	}
	for i := range links {
		pair(int32(i))
	}
	for {
		top, ok := q.pop()
		if !ok {
			break
		}
		i := int32(uint32(top))
		l := &links[i]
		if l.end == l.start || l.rank != uint32(top>>32) {
			continue // the pair changed since it was queued
		}
		r := &links[l.next]
		l.end, l.next = r.end, r.next
		r.end, r.rank = r.start, noMerge
		if l.next >= 0 {
			links[l.next].prev = i
		}
		pair(i)
		if l.prev >= 0 {
			pair(l.prev)
		}
	}
	s.links = links
	for i := int32(0); i >= 0; i = links[i].next {
		l := &links[i]
		if id, ok := m.pieces[piece[l.start:l.end]]; ok {
			out = append(out, id)
			continue
		}
		for k := l.start; k < l.end; k++ {
			id := m.bytes[piece[k]]
			if id < 0 {
				id = m.unk
			}
			if id < 0 {
				return nil, &TextError{Offset: int(k), Piece: shorten(piece), Reason: "the vocabulary lacks a character that stands"}
			}
			out = append(out, id)
		}
	}
	return out, nil
}
