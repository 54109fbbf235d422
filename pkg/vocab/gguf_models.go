package vocab

import (
	"maps"
	"strings"
)

// ggufRawBPE reads byte-pair encoding on plain UTF-8, as Gemma 4 has it: spaces are spelled "▁",
// merges run over characters, and a character outside the vocabulary becomes its bytes <0x00> to
// <0xFF>. Text is split only at runs of line ends.
func (v *Vocab) ggufRawBPE(meta Meta, c ggufPre) error {
	v.family = FamilyBPE
	pairs, err := ggufMerges(meta)
	if err != nil {
		return err
	}
	table, err := v.merges(keyMerges, pairs, "")
	if err != nil {
		return err
	}
	m := &charBPE{merges: table, chars: map[string]int32{}, unk: -1}
	byteIDs := [256]int32{}
	for c := range byteIDs {
		byteIDs[c] = -1
	}
	known := 0
	whole := map[string]int32{} // runs of line ends that are tokens, whatever merges make of them
	for i := range v.tokens {
		t := &v.tokens[i]
		switch t.kind {
		case KindByte:
			b, ok := byteToken(t.text)
			if !ok {
				return malformed(keyTokens, "token %d is a byte but is spelled %q", i, shorten(t.text))
			}
			t.bytes, byteIDs[b] = string([]byte{b}), int32(i)
			known++
		case KindNormal:
			t.bytes = strings.ReplaceAll(t.text, wordMark, " ")
			if singleRune(t.text) {
				m.chars[t.text] = int32(i)
			}
			if c.wholeLines && t.text != "" && strings.Trim(t.text, "\n") == "" {
				whole[t.text] = int32(i)
			}
		}
	}
	if known > 0 {
		m.bytes = &byteIDs
	}
	if len(whole) > 0 {
		m.words = whole
	}
	m.index()
	v.model = m
	v.normalize = spaceMarks(false)
	v.steps = c.steps
	if known == len(byteIDs) && !spellBytes(pairs) {
		// Long lines are cut further where no merge reaches across, but never inside
		// a run of line ends.
		v.steps = append(v.steps, scan{newMergeBoundary(func(yield func(string) bool) {
			for _, p := range pairs {
				if !yield(p[0] + p[1]) {
					return
				}
			}
			maps.Keys(whole)(yield)
		})})
	}
	return nil
}

// ggufWordPiece reads BERT's vocabulary. GGUF spells a token that begins a word with
// "▁" in front and one inside a word without Hugging Face's "##".
func (v *Vocab) ggufWordPiece(meta Meta) error {
	v.family = FamilyWordPiece
	if v.unk < 0 {
		v.unk = v.defaultID(100)
	}
	heads, tails := map[string]int32{}, map[string]int32{}
	for i := range v.tokens {
		t := &v.tokens[i]
		if t.kind != KindNormal || t.text == "" {
			continue
		}
		head, ok := strings.CutPrefix(t.text, wordMark)
		switch {
		case !ok:
			tails[t.text] = int32(i)
			t.set(t.text, cleanUp(t.text))
		case head != "":
			heads[head] = int32(i)
			t.set(cleanUp(head), cleanUp(" "+head))
		}
	}
	v.model = newWordPiece(heads, tails, v.unk, longestWord)
	lower := true
	if b, ok := meta.Bool("tokenizer.ggml.normalizer.lowercase"); ok {
		lower = b
	}
	accents := lower
	if b, ok := meta.Bool("tokenizer.ggml.normalizer.strip_accents"); ok {
		accents = b
	}
	v.normalize = normalizers{(&hfComponent{Lowercase: &lower, StripAccents: &accents}).bert()}
	pre, err := hfPretokenizer(&hfComponent{Type: "BertPreTokenizer"})
	v.steps = pre.steps
	return err
}

// defaultID returns the id that llama.cpp uses if a file names none, or -1 if the vocabulary is too
// small for it.
func (v *Vocab) defaultID(id int) int32 {
	if id < len(v.tokens) {
		return int32(id)
	}
	return -1
}

// ggufUnigram reads a "t5" vocabulary: SentencePiece's unigram model with its
// normalizer's table.
func ggufUnigram(meta Meta, v *Vocab) (*Vocab, error) {
	scores, ok := meta.Floats(keyScores)
	if !ok || len(scores) != len(v.tokens) {
		return nil, malformed(keyScores, "%d scores for %d tokens", len(scores), len(v.tokens))
	}
	m := &spmModel{kind: spmUnigram, scores: scores, bos: int64(v.bos), eos: int64(v.eos),
		unkSurface: unknownSurface, escape: true}
	if m.eos < 0 {
		m.eos = 1
	}
	for _, t := range v.tokens {
		m.texts, m.kinds = append(m.texts, t.text), append(m.kinds, t.kind)
	}
	m.dummy, _ = meta.Bool("tokenizer.ggml.add_space_prefix")
	m.squeeze, _ = meta.Bool("tokenizer.ggml.remove_extra_whitespaces")
	m.suffix, _ = meta.Bool("tokenizer.ggml.treat_whitespace_as_suffix")
	if table, ok := meta.Ints("tokenizer.ggml.precompiled_charsmap"); ok {
		m.charsmap = make([]byte, len(table))
		for i, b := range table {
			m.charsmap[i] = byte(b)
		}
	}
	return m.vocab()
}
