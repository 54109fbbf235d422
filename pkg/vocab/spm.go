package vocab

import (
	"cmp"
	"math"
	"slices"
	"unicode/utf8"
)

// spm is SentencePiece's BPE: adjacent symbols merge into the token with the best
// score, the leftmost of equals, until no pair makes a token (T. Kudo and J.
// Richardson, 2018).
//
// SentencePiece looks up the joined text of a pair. newSPM lists once which pairs of
// ids make which token, so that merging needs no strings. Characters that are no token
// but occur in one get ids beyond the vocabulary's.
type spm struct {
	chars  charIDs
	merges *merges // ordered by score
	size   int32
	bytes  [256]int32
	unk    int32
	fuse   bool // adjacent unknown characters are one token
	unused map[int32][]int32
}

// charIDs maps characters to ids.
type charIDs struct {
	ascii [utf8.RuneSelf]int32
	rest  map[string]int32
}

func newCharIDs() charIDs {
	c := charIDs{rest: map[string]int32{}}
	for i := range c.ascii {
		c.ascii[i] = -1
	}
	return c
}

func (c *charIDs) add(text string, id int32) {
	if len(text) == 1 && text[0] < utf8.RuneSelf { // one byte beyond ASCII is a character of an invalid piece
		c.ascii[text[0]] = id
		return
	}
	c.rest[text] = id
}

func (c *charIDs) find(text string) int32 {
	if len(text) == 1 && text[0] < utf8.RuneSelf {
		return c.ascii[text[0]]
	}
	if id, ok := c.rest[text]; ok {
		return id
	}
	return -1
}

// newSPM builds the table of merges. pieces are the tokens that text can become;
// scores has an entry for each token.
func newSPM(pieces map[string]int32, scores []float32, bytes [256]int32, unk int32) (*spm, error) {
	m := &spm{chars: newCharIDs(), size: int32(len(scores)), bytes: bytes, unk: unk}
	texts := make([]string, 0, len(pieces))
	next := m.size
	for _, text := range sorted(pieces) {
		if s := scores[pieces[text]]; math.IsNaN(float64(s)) {
			return nil, malformed("scores", "the score of token %d is not a number", pieces[text])
		}
		if singleRune(text) {
			m.chars.add(text, pieces[text])
		} else {
			texts = append(texts, text)
		}
	}
	// The best score comes first. Tokens with equal scores keep their order; order below
	// gives them one priority, so that the leftmost of their merges comes first.
	slices.SortStableFunc(texts, func(a, b string) int { return cmp.Compare(scores[pieces[b]], scores[pieces[a]]) })
	for _, text := range texts {
		for i := 0; i < len(text); {
			_, n := utf8.DecodeRuneInString(text[i:])
			if m.chars.find(text[i:i+n]) < 0 {
				m.chars.add(text[i:i+n], next)
				next++
			}
			i += n
		}
	}
	symbolID := func(text string) int32 {
		if singleRune(text) {
			return m.chars.find(text)
		}
		if id, ok := pieces[text]; ok {
			return id
		}
		return -1
	}
	type pair struct{ left, right, made int32 }
	var pairs []pair
	for _, text := range texts {
		for i := range text {
			if i == 0 {
				continue
			}
			left, right := symbolID(text[:i]), symbolID(text[i:])
			if left >= 0 && right >= 0 {
				pairs = append(pairs, pair{left, right, pieces[text]})
			}
		}
	}
	// All pairs that make one token have one priority. If all scores differ, the rank of
	// a token in the list is that priority and order is not needed.
	m.merges = newMerges(len(pairs)+1, int(next))
	apart := true
	for i := 1; i < len(pairs); i++ {
		apart = apart && (pairs[i].made == pairs[i-1].made || scores[pairs[i].made] != scores[pairs[i-1].made])
	}
	if !apart {
		m.merges.order = make([]uint32, len(pairs))
	}
	rank := uint32(0)
	for i, p := range pairs {
		if i > 0 && scores[p.made] != scores[pairs[i-1].made] {
			rank++
		}
		if apart {
			m.merges.add(p.left, p.right, rank, p.made)
			continue
		}
		m.merges.order[i] = rank
		m.merges.add(p.left, p.right, uint32(i), p.made)
	}
	return m, nil
}

func (m *spm) encode(piece string, k *sink) error {
	syms := k.syms[:0]
	for i := 0; i < len(piece); {
		n := 1
		if piece[i] >= utf8.RuneSelf {
			_, n = utf8.DecodeRuneInString(piece[i:])
		}
		syms = append(syms, symbol{m.chars.find(piece[i : i+n]), int32(i), int32(i + n)})
		i += n
	}
	k.syms = syms
	fused := -1
	for _, s := range m.merges.apply(syms, k) {
		if s.id >= 0 && s.id < m.size {
			fused = -1
			if parts, ok := m.unused[s.id]; ok {
				m.parts(parts, s, k)
				continue
			}
			k.emit(s.id, int(s.start), int(s.end))
			continue
		}
		if m.bytes[piece[s.start]] < 0 && m.unk >= 0 {
			if m.fuse && fused == len(k.ids) {
				if k.record {
					k.spans[len(k.spans)-1][1] = int(s.end)
				}
				continue
			}
			n := 1
			if !m.fuse {
				n = int(s.end - s.start) // one token per byte
			}
			for b := range n {
				end := int(s.end)
				if n > 1 {
					end = int(s.start) + b + 1
				}
				k.emit(m.unk, int(s.start)+b, end)
			}
			fused = len(k.ids)
			continue
		}
		for b := s.start; b < s.end; b++ {
			id := m.bytes[piece[b]]
			if id < 0 {
				id = m.unk
			}
			if id < 0 {
				return &TextError{Offset: int(b), Piece: shorten(piece),
					Reason: "the vocabulary has no token for a character"}
			}
			k.emit(id, int(b), int(b+1))
		}
	}
	return nil
}

// parts emits the tokens that an unused token is split into. They all get the span of
// the whole.
func (m *spm) parts(ids []int32, s symbol, k *sink) {
	for _, id := range ids {
		k.emit(id, int(s.start), int(s.end))
	}
}

// split splits an unused token into the two tokens of its last merge, recursively,
// down to tokens that text can become.
func (m *spm) split(v *Vocab, text string, k *sink) {
	id, ok := v.ids[text]
	if ok && v.tokens[id].kind != KindUnused || utf8.RuneCountInString(text) < 2 {
		if !ok {
			id = m.unk
		}
		if id >= 0 {
			k.ids = append(k.ids, id)
		}
		return
	}
	best, cut := noMerge, 0
	for i := range text {
		if i == 0 {
			continue
		}
		left, right := m.symbol(v, text[:i]), m.symbol(v, text[i:])
		if left < 0 || right < 0 {
			continue
		}
		if r := m.merges.rank(left, right); r < best {
			best, cut = r, i
		}
	}
	if cut == 0 {
		_, cut = utf8.DecodeRuneInString(text)
	}
	m.split(v, text[:cut], k)
	m.split(v, text[cut:], k)
}

func (m *spm) symbol(v *Vocab, text string) int32 {
	if singleRune(text) {
		return m.chars.find(text)
	}
	if id, ok := v.ids[text]; ok {
		return id
	}
	return -1
}
