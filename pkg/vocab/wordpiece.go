package vocab

import (
	"unicode/utf8"
)

// wordPiece splits a word into tokens from the left, always the longest that fits;
// tokens inside a word are spelled with a prefix. If no token fits, the whole word
// becomes the unknown token.
type wordPiece struct {
	head    *trie // tokens that may begin a word
	tail    *trie // tokens inside a word, without their prefix
	unk     int32
	longest int // maximum number of characters of a word; longer ones are unknown
}

// noWord is the reason in a *TextError for a word that cannot be encoded.
const noWord = "the vocabulary has neither a token for the word nor an unknown token"

// longestWord is the maximum number of characters of a word in BERT.
const longestWord = 100

// newWordPiece builds the model from the tokens that begin a word and those inside one,
// the latter without their prefix.
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
		return &TextError{Piece: shorten(piece), Reason: noWord}
	}
	k.emit(m.unk, 0, len(piece))
	return nil
}

// wordLevel has one token per word.
type wordLevel struct {
	ids map[string]int32
	unk int32
}

func (m *wordLevel) encode(piece string, k *sink) error {
	id, ok := m.ids[piece]
	if !ok {
		if id = m.unk; id < 0 {
			return &TextError{Piece: shorten(piece), Reason: noWord}
		}
	}
	k.emit(id, 0, len(piece))
	return nil
}

// fusedWords is a word-level model that splits its text itself and encodes adjacent
// unknown words as one token.
type fusedWords struct {
	wordLevel
	cut scanner
}

func (m *fusedWords) encode(piece string, k *sink) error {
	unknown := false // the previous token is the unknown token
	for i := 0; i < len(piece); {
		end := m.cut.next(piece, i, len(piece))
		id, ok := m.ids[piece[i:end]]
		switch {
		case ok:
			k.emit(id, i, end)
		case m.unk < 0:
			return &TextError{Piece: shorten(piece[i:end]), Reason: noWord}
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
