package vocab

import (
	"maps"
	"slices"
	"strings"
)

// Meta is the metadata of a GGUF file, by key. The second result is false where
// the key is missing or its value is of another type.
type Meta interface {
	String(key string) (string, bool)
	Uint(key string) (uint64, bool)
	Bool(key string) (bool, bool)
	Strings(key string) ([]string, bool)
	Floats(key string) ([]float32, bool)
	Ints(key string) ([]int64, bool)
}

const (
	keyModel  = "tokenizer.ggml.model"
	keyPre    = "tokenizer.ggml.pre"
	keyTokens = "tokenizer.ggml.tokens"
	keyScores = "tokenizer.ggml.scores"
	keyTypes  = "tokenizer.ggml.token_type"
	keyMerges = "tokenizer.ggml.merges"
)

// Limits of a file: the number of ids, and the bytes of a token.
const (
	maxTokens = 1 << 22
	maxToken  = 1 << 14
)

// FromGGUF reads the vocabulary in a GGUF file's metadata. It returns a
// *FormatError for metadata that is malformed or of a family not read here.
func FromGGUF(meta Meta) (*Vocab, error) {
	name, ok := meta.String(keyModel)
	if !ok {
		return nil, malformed(keyModel, "missing")
	}
	texts, ok := meta.Strings(keyTokens)
	if !ok || len(texts) == 0 || len(texts) > maxTokens {
		return nil, malformed(keyTokens, "missing, empty or longer than %d", maxTokens)
	}
	types, hasTypes := meta.Ints(keyTypes)
	if hasTypes && len(types) != len(texts) {
		return nil, malformed(keyTypes, "%d types for %d tokens", len(types), len(texts))
	}
	v := &Vocab{tokens: make([]token, len(texts)), ids: make(map[string]int32, len(texts))}
	for i, text := range texts {
		if len(text) > maxToken {
			return nil, malformed(keyTokens, "token %d is longer than %d bytes", i, maxToken)
		}
		k := KindNormal
		if hasTypes {
			if types[i] < 0 || types[i] > int64(KindByte) {
				return nil, malformed(keyTypes, "token %d is of type %d", i, types[i])
			}
			k = Kind(types[i])
		}
		if k == KindUserDefined && slices.Contains(endings(), text) {
			k = KindControl // some converters mark end-of-turn tokens as text
		}
		v.tokens[i] = token{text: text, bytes: text, kind: k}
		v.ids[text] = int32(i)
	}
	v.bos = v.metaID(meta, "tokenizer.ggml.bos_token_id")
	v.eos = v.metaID(meta, "tokenizer.ggml.eos_token_id")
	v.unk = v.metaID(meta, "tokenizer.ggml.unknown_token_id")
	v.chatTemplate, _ = meta.String("tokenizer.chat_template")

	// Defaults for files that do not say whether to add the begin and end tokens.
	addBOS, addEOS := false, false
	var err error
	switch name {
	case "gpt2", "gemma4":
		pre, _ := meta.String(keyPre)
		if name == "gemma4" {
			pre = name // whatever the file says
		}
		var c ggufPre
		if c, err = ggufPreTokenizer(pre); err == nil {
			addBOS = c.addBOS
			if c.raw {
				err = v.ggufRawBPE(meta, c)
			} else {
				err = v.ggufBPE(meta, c)
			}
		}
	case "llama":
		addBOS = true
		v.llamaDefaults()
		err = v.ggufSPM(meta)
	case "bert":
		addBOS, addEOS = true, true
		if v.bos < 0 {
			v.bos = v.defaultID(101)
		}
		if v.eos = v.metaID(
			meta,
			"tokenizer.ggml.seperator_token_id", // as files spell it
		); v.eos < 0 {
			v.eos = v.defaultID(102)
		}
		err = v.ggufWordPiece(meta)
	case "t5":
		addEOS = true
		template := v.chatTemplate
		if v, err = ggufUnigram(meta, v); err == nil {
			v.chatTemplate = template
		}
	case "rwkv", "plamo2", "plamo3", "hybriddna", "whitespace":
		err = unsupported(keyModel, "%q vocabularies are not supported (gpt2, llama, bert, t5 and gemma4 are)", name)
	case "none", "no_vocab":
		err = unsupported(keyModel, "%q: the file has no vocabulary", name)
	default:
		err = unsupported(keyModel, "unknown tokenizer model %q (gpt2, llama, bert, t5 and gemma4 are supported)", name)
	}
	if err != nil {
		return nil, err
	}
	if name != "t5" {
		v.ggufAdded(meta)
	}
	v.around(meta, addBOS, addEOS)
	var eog []int32
	for _, key := range []string{"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"} {
		if id := v.metaID(meta, key); id >= 0 {
			eog = append(eog, id)
		}
	}
	for _, role := range fimEnds() { // as llama.cpp has it
		if id := v.findRole(meta, role); id >= 0 {
			eog = append(eog, id)
		}
	}
	v.findFIM(meta)
	v.finish(eog)
	v.ready()
	return v, nil
}

// llamaDefaults sets the ids that a "llama" file leaves out: <unk>, <s> and </s> are 0, 1
// and 2 in SentencePiece, and llama.cpp takes them as defaults.
func (v *Vocab) llamaDefaults() {
	for _, d := range []struct {
		id     *int32
		number int32
		kind   Kind
	}{{&v.unk, 0, KindUnknown}, {&v.bos, 1, KindControl}, {&v.eos, 2, KindControl}} {
		if *d.id < 0 && int(d.number) < len(v.tokens) && v.tokens[d.number].kind == d.kind {
			*d.id = d.number
		}
	}
}

// around sets the tokens that are put before and after a text.
func (v *Vocab) around(meta Meta, addBOS, addEOS bool) {
	if add, ok := meta.Bool("tokenizer.ggml.add_bos_token"); ok && !v.forceBOS(meta) {
		addBOS = add
	}
	if add, ok := meta.Bool("tokenizer.ggml.add_eos_token"); ok {
		addEOS = add
	}
	v.prefix, v.suffix = nil, nil
	if addBOS && v.bos >= 0 {
		v.prefix = []int32{v.bos}
	}
	if addEOS && v.eos >= 0 {
		v.suffix = []int32{v.eos}
	}
}

// forceBOS reports whether the begin token is added even if add_bos_token is false:
// BERT always has [CLS] and [SEP], and some Gemma 4 files have the wrong value.
func (v *Vocab) forceBOS(meta Meta) bool {
	name, _ := meta.String(keyModel)
	pre, _ := meta.String(keyPre)
	return name == "bert" || name == "gemma4" || name == "gpt2" &&
		(pre == "gemma4" || pre == "granite-embed-multi-311m")
}

// metaID reads a token id. It returns -1 for a missing id and for one outside the vocabulary; some
// writers use 2^32-1 for "no token".
func (v *Vocab) metaID(meta Meta, key string) int32 {
	id, ok := meta.Uint(key)
	if !ok || id >= uint64(len(v.tokens)) {
		return -1
	}
	return int32(id)
}

// ggufMerges reads the merges, each of two tokens separated by a space. The first byte
// belongs to the first token even if it is a space.
func ggufMerges(meta Meta) ([][2]string, error) {
	lines, ok := meta.Strings(keyMerges)
	if !ok {
		return nil, malformed(keyMerges, "missing")
	}
	pairs := make([][2]string, len(lines))
	for i, line := range lines {
		n := -1
		if line != "" {
			n = strings.IndexByte(line[1:], ' ') + 1
		}
		if n <= 0 {
			return nil, malformed(keyMerges, "merge %d is not two tokens", i)
		}
		pairs[i] = [2]string{line[:n], line[n+1:]}
	}
	return pairs, nil
}

func (v *Vocab) ggufBPE(meta Meta, c ggufPre) error {
	v.family = FamilyBPE
	v.steps = c.steps
	pairs, err := ggufMerges(meta)
	if err != nil {
		return err
	}
	m, err := v.byteBPE(keyMerges, pairs)
	if err != nil {
		return err
	}
	if c.wholeWords {
		m.words = v.words()
	}
	v.model = m
	return nil
}

// byteBPE builds the model of a byte-level vocabulary and sets the bytes that its
// normal tokens decode to.
func (v *Vocab) byteBPE(field string, pairs [][2]string) (*byteBPE, error) {
	alphabet := newByteLevel()
	for i := range v.tokens {
		if t := &v.tokens[i]; t.kind == KindNormal && !t.added {
			t.bytes = alphabet.decode(t.text)
		}
	}
	table, err := v.merges(field, pairs, "")
	if err != nil {
		return nil, err
	}
	m := &byteBPE{merges: table, unk: v.unk, drop: v.unk >= 0 && v.tokens[v.unk].kind == KindControl}
	for c, s := range alphabet.spell {
		m.bytes[c] = -1
		if id, ok := v.ids[s]; ok && v.tokens[id].kind == KindNormal {
			m.bytes[c] = id
		}
	}
	return m, nil
}

// merges builds the table of merges. inner is the prefix of tokens inside a word; it
// is removed when such a token is joined to the one before.
func (v *Vocab) merges(field string, pairs [][2]string, inner string) (*merges, error) {
	table := newMerges(len(pairs), len(v.tokens))
	for rank, p := range pairs {
		left, ok1 := v.ids[p[0]]
		right, ok2 := v.ids[p[1]]
		made, ok3 := v.ids[p[0]+strings.TrimPrefix(p[1], inner)]
		if !ok1 || !ok2 || !ok3 {
			return nil, malformed(field, "merge %d of %q and %q names a token outside the vocabulary", rank, p[0], p[1])
		}
		if k := v.tokens[made].kind; k == KindControl || k == KindUnknown {
			continue // text must never become a control token
		}
		table.add(left, right, uint32(rank), made)
	}
	return table, nil
}

// words maps the bytes of normal tokens to their ids.
func (v *Vocab) words() map[string]int32 {
	words := make(map[string]int32, len(v.tokens))
	for i, t := range v.tokens {
		if t.kind == KindNormal && !t.added {
			words[t.bytes] = int32(i)
		}
	}
	return words
}

// wordMark is how SentencePiece spells a space.
const wordMark = "▁"

func (v *Vocab) ggufSPM(meta Meta) error {
	v.family = FamilySPM
	scores, ok := meta.Floats(keyScores)
	if !ok || len(scores) != len(v.tokens) {
		return malformed(keyScores, "%d scores for %d tokens", len(scores), len(v.tokens))
	}
	pieces := make(map[string]int32, len(v.tokens))
	bytes := [256]int32{}
	for c := range bytes {
		bytes[c] = -1
	}
	for i := range v.tokens {
		t := &v.tokens[i]
		switch t.kind {
		case KindByte:
			c, ok := byteToken(t.text)
			if !ok {
				return malformed(keyTokens, "token %d is a byte but is spelled %q", i, shorten(t.text))
			}
			t.bytes = string([]byte{c})
			bytes[c] = int32(i)
		case KindNormal, KindUserDefined, KindUnused:
			if t.text != "" {
				pieces[t.text] = int32(i)
			}
			if t.kind != KindUserDefined {
				t.bytes = strings.ReplaceAll(t.text, wordMark, " ")
			}
		}
	}
	m, err := newSPM(pieces, scores, bytes, v.unk)
	if err != nil {
		return err
	}
	v.model = m
	prefix := true
	if add, ok := meta.Bool("tokenizer.ggml.add_space_prefix"); ok {
		prefix = add
	}
	v.decoding.stripSpace = prefix
	v.normalize = spaceMarks(prefix)
	v.addMergeBoundaries(pieces, m.bytes[:])
	return nil
}

// ggufAdded collects the tokens that are matched in text before the model runs.
func (v *Vocab) ggufAdded(meta Meta) {
	name, _ := meta.String("general.name")
	name = strings.ToLower(name)
	phi3 := strings.Contains(name, "phi-3") || strings.Contains(name, "phi3")
	var added []addedToken
	for i := range v.tokens {
		t := &v.tokens[i]
		switch t.kind {
		case KindControl, KindUnknown, KindUserDefined:
		default:
			continue
		}
		t.added = true
		a := addedToken{id: int32(i), text: t.text, control: t.kind != KindUserDefined}
		if phi3 { // Phi-3's turn markers swallow the white space after them
			a.rstrip = t.text != "<unk>" && t.text != "<s>" && t.text != "<|endoftext|>"
		}
		added = append(added, a)
	}
	v.raw = newMatcher(added)
}

// spaceMarks replaces spaces with SentencePiece's mark "▁". With prefix, a space is
// put before the text first.
func spaceMarks(prefix bool) normalizers {
	marks := normalizer(func(s string, _ bool, ed *edits) string { return replaced(s, " ", wordMark, ed) })
	if !prefix {
		return normalizers{marks}
	}
	return normalizers{prepend(" "), marks}
}

// addMergeBoundaries splits text between characters that no token contains side by
// side. That keeps the ids only with byte fallback, where a character without a token
// becomes byte tokens.
func (v *Vocab) addMergeBoundaries(pieces map[string]int32, bytes []int32) {
	for _, id := range bytes {
		if id < 0 {
			return
		}
	}
	v.steps = append(v.steps, scan{newMergeBoundary(maps.Keys(pieces))})
}

// ready finds out which fast paths the vocabulary allows.
func (v *Vocab) ready() {
	var scanners []scanner
	v.restart = true
	for _, s := range v.steps {
		c, ok := s.(scan)
		if !ok {
			return
		}
		scanners = append(scanners, c.scanner)
		switch c := c.scanner.(type) {
		case *style, *isolate:
		case *mergeBoundary:
			v.restart = v.restart && c.splitsAtLines()
		default:
			v.restart = false
		}
	}
	if len(scanners) > 0 {
		v.scanners = scanners
	}
}
