package vocab

import (
	"unicode/utf8"
)

// wordPiece cuts a word into the longest tokens from the left; tokens inside a
// word are spelled with a prefix. A word that cannot be cut so is unknown.
type wordPiece struct {
	head    *trie // tokens that may begin a word
	tail    *trie // tokens inside a word, without their prefix
	unk     int32
	longest int // characters of a word; longer ones are unknown
}

// longestWord is how many characters a word may have in BERT.
const longestWord = 100

// newWordPiece makes the model of the tokens that begin a word and of those inside
// one, the latter without their prefix.
func newWordPiece(heads, tails map[string]int32, unk int32, longest int) *wordPiece {
	of := func(ids map[string]int32) *trie {
		texts := sorted(ids)
		list := make([]int32, len(texts))
		for i, text := range texts {
			list[i] = ids[text]
		}
		return newTrie(texts, list)
	}
	return &wordPiece{head: of(heads), tail: of(tails), unk: unk, longest: longest}
}

func (m *wordPiece) encode(piece string, k *sink) error {
	if len(piece) > m.longest && utf8.RuneCountInString(piece) > m.longest {
		return m.unknown(piece, k)
	}
	ids, spans := len(k.ids), len(k.spans)
	t := m.head
	for i := 0; i < len(piece); t = m.tail {
		id, end := int32(-1), i
		node := int32(0)
		for e := i; e < len(piece); e++ {
			if node = t.step(node, piece[e]); node < 0 {
				break
			}
			if t.ids[node] >= 0 {
				id, end = t.ids[node], e+1
			}
		}
		if id < 0 {
			k.ids, k.spans = k.ids[:ids], k.spans[:spans]
			return m.unknown(piece, k)
		}
		k.emit(id, i, end)
		i = end
	}
	return nil
}

func (m *wordPiece) unknown(piece string, k *sink) error {
	if m.unk < 0 {
		return &TextError{Piece: shorten(piece), Reason: "the vocabulary lacks a word and has no unknown token that stands"}
	}
	k.emit(m.unk, 0, len(piece))
	return nil
}

// wordLevel has one token a word.
type wordLevel struct {
	ids map[string]int32
	unk int32
}

func (m *wordLevel) encode(piece string, k *sink) error {
	id, ok := m.ids[piece]
	if !ok {
		if id = m.unk; id < 0 {
			return &TextError{Piece: shorten(piece), Reason: "the vocabulary lacks a word and has no unknown token that stands"}
		}
	}
	k.emit(id, 0, len(piece))
	return nil
}

// fusedWords is a word-level model that cuts its text itself and gives unknown words
// that follow one another one token.
type fusedWords struct {
	wordLevel
	cut scanner
}

func (m *fusedWords) encode(piece string, k *sink) error {
	unknown := false // the last token is
	for i := 0; i < len(piece); {
		end := m.cut.next(piece, i, len(piece))
		id, ok := m.ids[piece[i:end]]
		switch {
		case ok:
			k.emit(id, i, end)
		case m.unk < 0:
			return &TextError{Piece: shorten(piece[i:end]), Reason: "the vocabulary lacks a word and has no unknown token that stands"}
		case !unknown:
			k.emit(m.unk, i, end)
		case k.record:
			k.spans[len(k.spans)-1][1] = end
		}
		unknown = !ok
		i = end
	}
	return nil
}
