package vocab

import (
	"math"
	"unicode/utf8"
)

// unigram is SentencePiece's unigram model: it picks the segmentation of a piece whose
// tokens have the greatest sum of scores (T. Kudo, 2018).
type unigram struct {
	trie    *trie
	scores  []float64 // by id
	unk     int32
	unkCost float64 // the score of a character without a token
	bytes   *[256]int32
	fuseUnk bool
	single  bool // add scores in float32, as SentencePiece does
}

// lattice holds the best segmentation up to each byte of a piece.
type lattice struct {
	best []reached
	way  []symbol
}

type reached struct {
	score float64
	id    int32
	start int32 // -1: not reached
}

// unkPenalty is how far the score of an unknown character is below the worst token's.
const unkPenalty = 10

// newUnigram builds the model. texts and ids are the tokens that text can become;
// scores has an entry for each id of the vocabulary.
func newUnigram(texts []string, ids []int32, scores []float64, unk int32) (*unigram, error) {
	worst := math.Inf(1)
	for i := range texts {
		s := scores[ids[i]]
		if math.IsNaN(s) || math.IsInf(s, 0) {
			return nil, malformed("scores", "the score of token %d is not a finite number", ids[i])
		}
		worst = min(worst, s)
	}
	if math.IsInf(worst, 0) {
		worst = 0
	}
	return &unigram{trie: newTrie(texts, ids), scores: scores, unk: unk, unkCost: worst - unkPenalty}, nil
}

// encode finds the best segmentation with the Viterbi algorithm. best[e] is the best
// score of a segmentation of the first e bytes and its last token; every token that
// begins at a reached byte may improve the entry at its end. A character that is no
// token by itself can always be skipped as unknown, so every character boundary is
// reached. The tokens are then read backwards from the end.
func (m *unigram) encode(piece string, k *sink) error {
	if cap(k.best) < len(piece)+1 {
		k.best = make([]reached, len(piece)+1)
	}
	best := k.best[:len(piece)+1]
	for i := range best {
		best[i].start = -1
	}
	best[0] = reached{start: 0}
	for i := 0; i < len(piece); {
		n := 1
		if piece[i] >= utf8.RuneSelf {
			_, n = utf8.DecodeRuneInString(piece[i:])
		}
		single := false
		here := best[i].score
		node := int32(0)
		for e := i; e < len(piece); e++ {
			if node = m.trie.step(node, piece[e]); node < 0 {
				break
			}
			id := m.trie.ids[node]
			if id < 0 {
				continue
			}
			m.reach(&best[e+1], here, m.scores[id], id, i)
			single = single || e+1 == i+n
		}
		if !single {
			m.reach(&best[i+n], here, m.unkCost, m.unk, i)
		}
		i += n
	}
	way := k.way[:0]
	for e := len(piece); e > 0; e = int(best[e].start) {
		way = append(way, symbol{best[e].id, best[e].start, int32(e)})
	}
	k.way = way
	for i := len(way) - 1; i >= 0; i-- {
		w := way[i]
		switch {
		case w.id != m.unk:
			k.emit(w.id, int(w.start), int(w.end))
		case m.bytes != nil:
			for b := w.start; b < w.end; b++ {
				k.emit(m.bytes[piece[b]], int(b), int(b+1))
			}
		case m.unk < 0:
			return &TextError{Offset: int(w.start), Piece: shorten(piece),
				Reason: "the vocabulary has no token for a character"}
		default:
			if m.fuseUnk {
				for i > 0 && way[i-1].id == m.unk {
					i--
					w.end = way[i].end
				}
			}
			k.emit(m.unk, int(w.start), int(w.end))
		}
	}
	return nil
}

func (m *unigram) reach(to *reached, here, score float64, id int32, from int) {
	sum := here + score
	if m.single && id == m.unk {
		sum = float64(float32(here) + float32(score))
	}
	if to.start < 0 || sum > to.score {
		if m.single {
			sum = float64(float32(sum))
		}
		*to = reached{sum, id, int32(from)}
	}
}
