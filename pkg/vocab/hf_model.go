package vocab

import "strings"

// model builds the model that a tokenizer.json names.
func (f *hfFile) model(v *Vocab, byteLevel bool) error {
	m := &f.Model
	kind := m.Type
	if kind == "" { // missing in older files
		switch {
		case m.Merges != nil:
			kind = "BPE"
		case m.Vocab.scores != nil:
			kind = "Unigram"
		case m.SubwordPrefix != nil:
			kind = "WordPiece"
		}
	}
	if (kind == "Unigram") != (m.Vocab.scores != nil) {
		return unsupported("tokenizer.json: model", "type %q does not fit the form of the vocabulary", m.Type)
	}
	switch kind {
	case "BPE":
		return f.bpe(v, byteLevel)
	case "Unigram":
		return f.unigram(v)
	case "WordPiece":
		v.family = FamilyWordPiece
		prefix, longest := "##", longestWord
		if m.SubwordPrefix != nil {
			prefix = *m.SubwordPrefix
		}
		if m.MaxChars != nil {
			longest = *m.MaxChars
		}
		heads, tails := f.modelIDs(v), map[string]int32{}
		delete(heads, "")
		for text, id := range heads { // as in Hugging Face, a token with the prefix may begin a word too
			if rest, ok := strings.CutPrefix(text, prefix); ok && rest != "" {
				tails[rest] = id
			}
		}
		v.model = newWordPiece(heads, tails, v.unk, longest)
		return nil
	case "WordLevel":
		v.family = FamilyWord
		v.model = &wordLevel{ids: f.modelIDs(v), unk: v.unk}
		return nil
	}
	return unsupported("tokenizer.json: model", "type %q", m.Type)
}

// modelIDs returns the tokens that text can become: all of the model's tokens except
// control tokens.
func (f *hfFile) modelIDs(v *Vocab) map[string]int32 {
	ids := make(map[string]int32, len(f.Model.Vocab.ids))
	for text, id := range f.Model.Vocab.ids {
		if v.tokens[id].kind != KindControl {
			ids[text] = int32(id)
		}
	}
	return ids
}

func (f *hfFile) unigram(v *Vocab) error {
	m := &f.Model
	v.family = FamilyUnigram
	var texts []string
	var ids []int32
	scores := make([]float64, len(v.tokens))
	copy(scores, m.Vocab.scores)
	for _, text := range sorted(m.Vocab.ids) {
		if id := int32(m.Vocab.ids[text]); text != "" && v.tokens[id].kind != KindControl {
			texts, ids = append(texts, text), append(ids, id)
		}
	}
	model, err := newUnigram(texts, ids, scores, v.unk)
	if err != nil {
		return err
	}
	worst := 0.0
	for i, s := range m.Vocab.scores {
		if i == 0 || s < worst {
			worst = s
		}
	}
	model.unkCost, model.fuseUnk = worst-unkPenalty, true
	if m.ByteFallback {
		if model.bytes, err = v.byteTokens(); err != nil {
			return err
		}
	}
	v.model = model
	return nil
}

func (f *hfFile) bpe(v *Vocab, byteLevel bool) error {
	m := &f.Model
	if m.Dropout != nil && *m.Dropout != 0 {
		return unsupported("tokenizer.json: dropout", "%g", *m.Dropout)
	}
	prefix, suffix := "", ""
	if m.SubwordPrefix != nil {
		prefix = *m.SubwordPrefix
	}
	if m.WordSuffix != nil {
		suffix = *m.WordSuffix
	}
	pairs := make([][2]string, len(m.Merges))
	for i, p := range m.Merges {
		pairs[i] = p
	}
	if byteLevel && prefix == "" && suffix == "" {
		v.family = FamilyBPE
		model, err := v.byteBPE("tokenizer.json: merges", pairs)
		if err != nil {
			return err
		}
		if m.IgnoreMerges {
			model.words = v.words()
		}
		v.model = model
		return nil
	}
	if byteLevel { // affixes are part of spellings, so pieces are spelled as well
		alphabet := newByteLevel()
		v.steps = append(v.steps, stepFunc(func(p piece, emit func(piece) error) error {
			ed := &edits{}
			for i := 0; i < len(p.text); i++ {
				ed.add(len(alphabet.spell[p.text[i]]), 1, false)
			}
			return emit(p.rewritten(alphabet.encode(p.text), ed))
		}))
	}
	table, err := v.merges("tokenizer.json: merges", pairs, prefix)
	if err != nil {
		return err
	}
	model := &charBPE{merges: table, chars: map[string]int32{}, unk: v.unk, fuseUnk: m.FuseUnk,
		prefix: prefix, suffix: suffix}
	longest := 0
	for text, id := range v.ids {
		if k := v.tokens[id].kind; k != KindNormal && k != KindUserDefined {
			continue
		} else if singleRune(text) || prefix != "" || suffix != "" {
			model.chars[text] = id
		} else if k == KindNormal {
			longest = max(longest, len(text))
		}
	}
	v.family = FamilySPM
	if len(pairs) == 0 && longest == 0 && !m.ByteFallback && v.unk < 0 {
		v.family = FamilyChar
		model.strict = true
	}
	if byteLevel || suffix != "" {
		v.family = FamilyBPE
	}
	if m.ByteFallback {
		if model.bytes, err = v.byteTokens(); err != nil {
			return err
		}
	}
	model.index()
	if m.IgnoreMerges {
		model.words = map[string]int32{}
		for i, t := range v.tokens {
			if t.kind == KindNormal && !t.added {
				model.words[t.text] = int32(i)
			}
		}
	}
	v.model = model
	if model.words == nil && prefix == "" && suffix == "" && !strings.HasPrefix(v.family, FamilyChar) {
		f.addMergeBoundaries(v, model, pairs)
	}
	return nil
}

// spellBytes reports whether a merge joins tokens of bytes, whose spelling is not the
// text they stand for.
func spellBytes(pairs [][2]string) bool {
	for _, p := range pairs {
		for _, token := range p {
			if _, ok := byteToken(token); ok {
				return true
			}
		}
	}
	return false
}

// addMergeBoundaries splits text further, where no merge can reach across.
func (f *hfFile) addMergeBoundaries(v *Vocab, m *charBPE, pairs [][2]string) {
	if m.bytes == nil && m.fuseUnk {
		return // adjacent unknown characters are one token, so they must stay in one piece
	}
	if m.bytes != nil && spellBytes(pairs) {
		return
	}
	v.steps = append(v.steps, scan{newMergeBoundary(func(yield func(string) bool) {
		for _, p := range pairs {
			if !yield(p[0] + p[1]) {
				return
			}
		}
	})})
}
