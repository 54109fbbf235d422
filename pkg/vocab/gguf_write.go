package vocab

import (
	"fmt"
	"slices"
	"strings"
)

// GGUFField is an entry of the metadata of a GGUF file. Value is a string, uint32, bool, []string, []int32 or
// []float32.
type GGUFField struct {
	Key   string
	Value any
}

// ggufFields is metadata that is about to be written, as FromGGUF reads it.
type ggufFields []GGUFField

// probeText has what pre-tokenizers treat differently: contractions, case, numbers of several lengths, runs of spaces
// and line ends, punctuation, symbols, code, and letters of several scripts.
const probeText = "Hello, world! It's what I'd've said: we'll see, they're HERE'S 'Tis\n" +
	"  two spaces\tand a tab\n\n\nthree lines \n \n\t\t\n        deep\r\n" +
	"1 22 333 4444 55555 666666 7777777 3.14 1,000,000 v1.2.3-rc4 0x1F ½ ² ٣٤٥ १२३\n" +
	"for (int i = 0; i < n; ++i) { a[i] += b->c * 2; } // done...!!! <<>> ==== $x ~/path_name#tag@site.org?q=1&r=2\n" +
	"CamelCase snake_case UPPER lower MiXeD naïve café Ünïcödé straße Привет мир Ελληνικά שלום مرحبا हिन्दी ไทย\n" +
	"你好世界 漢字かなカナ 한국어 한글 123한국 。、！？ “quotes” ‘single’ — – … € £ ™ 😀👍🏽 \u00a0nbsp\u2003em     "

// GGUF returns the metadata that describes the vocabulary in a GGUF file, for a model of size ids; ids beyond the
// vocabulary become unused tokens. FromGGUF reads it back as a vocabulary that encodes text alike, which is checked
// with a text of many kinds. The error is a *FormatError for a vocabulary that GGUF's families cannot express, and
// for one that was read from a GGUF file, whose metadata is to be copied instead.
func (v *Vocab) GGUF(size int) ([]GGUFField, error) {
	if v.source == nil {
		return nil, unsupported("write GGUF", "the vocabulary does not come from a tokenizer.json")
	}
	if size < len(v.tokens) {
		return nil, malformed("write GGUF", "%d tokens for a model of %d ids", len(v.tokens), size)
	}
	var f hfFile
	if err := parseJSON("tokenizer.json", v.source.tokenizer, &f); err != nil {
		return nil, err
	}
	texts, kinds := make([]string, size), make([]int32, size)
	for id := range size {
		texts[id], kinds[id] = fmt.Sprintf("[PAD%d]", id), int32(KindUnused)
		if id < len(v.tokens) && v.tokens[id].kind != KindUnused {
			texts[id], kinds[id] = v.tokens[id].text, int32(v.tokens[id].kind)
		}
	}
	var out ggufFields
	var err error
	switch v.family {
	case FamilyBPE:
		out, err = v.ggufByteLevel(&f, texts, kinds)
	case FamilyChar:
		out, err = v.ggufChars(texts, kinds)
	case FamilySPM:
		out, err = v.ggufSentencePiece(&f, texts, kinds)
	default:
		err = unsupported("write GGUF", "a %s vocabulary has no form that models of this build use", v.family)
	}
	if err != nil {
		return nil, err
	}
	out = append(out, v.ggufSpecial()...)
	return out, v.sameAs(out)
}

// ggufByteLevel describes byte-level BPE.
func (v *Vocab) ggufByteLevel(f *hfFile, texts []string, kinds []int32) (ggufFields, error) {
	m, ok := v.model.(*byteBPE)
	if !ok {
		return nil, unsupported("write GGUF", "byte-pair encoding with affixes")
	}
	pre, err := v.ggufPre(m.words != nil)
	if err != nil {
		return nil, err
	}
	merges := make([]string, len(f.Model.Merges))
	for i, p := range f.Model.Merges {
		merges[i] = p[0] + " " + p[1]
	}
	return ggufFields{
		{keyModel, "gpt2"},
		{keyPre, pre},
		{keyTokens, texts},
		{keyTypes, kinds},
		{keyMerges, merges},
	}, nil
}

// ggufChars describes one token for each character as byte-level BPE without merges. That works for ASCII, whose
// characters are bytes.
func (v *Vocab) ggufChars(texts []string, kinds []int32) (ggufFields, error) {
	alphabet := newByteLevel()
	for id := range v.tokens {
		t := &v.tokens[id]
		if t.kind != KindNormal {
			continue
		}
		if len(t.text) != 1 || t.text[0] >= 0x80 {
			return nil, unsupported("write GGUF", "a character vocabulary with %q: GGUF has no family for it",
				shorten(t.text))
		}
		texts[id] = alphabet.spell[t.text[0]]
	}
	return ggufFields{{keyModel, "gpt2"}, {keyPre, "gpt-2"}, {keyTokens, texts}, {keyTypes, kinds},
		{keyMerges, []string{}}}, nil
}

// ggufSentencePiece describes BPE over characters with byte fallback. GGUF has scores in place of merges: the better
// of two tokens is made first, so a token's score falls with the rank of the first merge that makes it.
func (v *Vocab) ggufSentencePiece(f *hfFile, texts []string, kinds []int32) (ggufFields, error) {
	scores := make([]float32, len(texts))
	for i := range scores {
		scores[i] = -float32(len(f.Model.Merges)) - 1
	}
	for rank, p := range slices.Backward(f.Model.Merges) {
		if id, ok := v.ids[p[0]+p[1]]; ok {
			scores[id] = -float32(rank)
		}
	}
	if v.unk >= 0 {
		kinds[v.unk] = int32(KindUnknown)
	}
	for id, t := range v.tokens {
		if _, ok := byteToken(t.text); ok && t.kind == KindNormal {
			kinds[id] = int32(KindByte)
		}
	}
	// Most normalizers put a space before the text; a probe finds out.
	with, err := v.Encode("a", Options{})
	if err != nil {
		return nil, err
	}
	prefix := false
	if len(with) > 0 && with[0] >= 0 && int(with[0]) < len(v.tokens) {
		prefix = strings.HasPrefix(v.tokens[with[0]].text, wordMark)
	}
	return ggufFields{{keyModel, "llama"}, {keyPre, "default"}, {keyTokens, texts}, {keyScores, scores},
		{keyTypes, kinds}, {"tokenizer.ggml.add_space_prefix", prefix}}, nil
}

// ggufSpecial describes the special tokens and the chat template.
func (v *Vocab) ggufSpecial() (out ggufFields) {
	id := func(name string, id int32) {
		if id >= 0 {
			out = append(out, GGUFField{"tokenizer.ggml." + name + "_token_id", uint32(id)})
		}
	}
	id("bos", v.bos)
	id("eos", v.eos)
	id("unknown", v.unk)
	for _, e := range v.eog { // another one that ends a turn
		if e != v.eos {
			id("eot", e)
			break
		}
	}
	if pad, ok := v.padding(); ok {
		id("padding", pad)
	}
	out = append(out, GGUFField{"tokenizer.ggml.add_bos_token", v.bos >= 0 && slices.Contains(v.prefix, v.bos)},
		GGUFField{"tokenizer.ggml.add_eos_token", v.eos >= 0 && slices.Contains(v.suffix, v.eos)})
	if v.chatTemplate != "" {
		out = append(out, GGUFField{"tokenizer.chat_template", v.chatTemplate})
	}
	return out
}

// padding returns the padding token that tokenizer_config.json names.
func (v *Vocab) padding() (int32, bool) {
	var c struct {
		Pad hfName `json:"pad_token"`
	}
	if v.source.config == nil || parseJSON("tokenizer_config.json", v.source.config, &c) != nil || c.Pad == "" {
		return 0, false
	}
	id, ok := v.ids[string(c.Pad)]
	return id, ok
}

// ggufPre finds the name of the pre-tokenizer that splits the probe text as the vocabulary's own one does. The first
// names are those of the widest use.
func (v *Vocab) ggufPre(wholeWords bool) (string, error) {
	want, err := splitBy(v.steps)
	if err != nil {
		return "", err
	}
	for _, name := range []string{"gpt-2", "llama-bpe", "qwen2", "smollm", "deepseek-llm", "deepseek-coder",
		"deepseek-v3", "tekken", "gpt-4o", "dbrx", "falcon", "qwen35", "bloom", "viking", "jais-2", "seed-coder",
		"exaone-moe", "superbpe", "kimi-k2", "youtu", "minicpm5", "granite-embed-multi-97m", "tiny_aya", "afmoe", "laguna",
		"ufakzeka", "spark2_5", "chameleon", "default"} {
		p, err := ggufPreTokenizer(name)
		if err != nil {
			return "", err
		}
		if p.raw || p.wholeWords != wholeWords {
			continue
		}
		if got, err := splitBy(p.steps); err == nil && slices.Equal(got, want) {
			return name, nil
		}
	}
	return "", unsupported("write GGUF", "no pre-tokenizer that llama.cpp knows splits text as this one does")
}

// pieceRecorder is a model that records its pieces.
type pieceRecorder struct{ pieces []string }

func (r *pieceRecorder) encode(piece string, _ *sink) error {
	r.pieces = append(r.pieces, piece)
	return nil
}

// splitBy returns the pieces into which a pre-tokenizer splits the probe text.
func splitBy(steps []step) ([]string, error) {
	r := &pieceRecorder{}
	v := &Vocab{steps: steps, model: r}
	_, err := v.encode(probeText, &Options{}, false)
	return r.pieces, err
}

// sameAs reads the metadata back and compares the two vocabularies.
func (v *Vocab) sameAs(fields ggufFields) error {
	again, err := FromGGUF(fields)
	if err != nil {
		return err
	}
	return v.encodesLike(again)
}

// encodesLike compares what two vocabularies make of the probe text, or of its ASCII part or less if the vocabulary
// cannot encode the rest.
func (v *Vocab) encodesLike(w *Vocab) error {
	ascii := strings.Map(func(r rune) rune {
		if r < 0x80 {
			return r
		}
		return -1
	}, probeText)
	for _, text := range []string{probeText, ascii, "The quick brown fox", "a", "\n"} {
		want, err := v.Encode(text, Options{BOS: true})
		if err != nil {
			continue // a character outside the vocabulary
		}
		got, err := w.Encode(text, Options{BOS: true})
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return unsupported("write vocabulary", "the other format would encode text in another way")
		}
		return nil
	}
	return nil
}

// value returns a field's value.
func value[T any](f ggufFields, key string) (out T, ok bool) {
	for _, x := range f {
		if x.Key == key {
			out, ok = x.Value.(T)
			return out, ok
		}
	}
	return out, false
}

func (f ggufFields) String(key string) (string, bool)    { return value[string](f, key) }
func (f ggufFields) Bool(key string) (bool, bool)        { return value[bool](f, key) }
func (f ggufFields) Strings(key string) ([]string, bool) { return value[[]string](f, key) }
func (f ggufFields) Floats(key string) ([]float32, bool) { return value[[]float32](f, key) }
func (f ggufFields) Uint(key string) (uint64, bool) {
	v, ok := value[uint32](f, key)
	return uint64(v), ok
}

func (f ggufFields) Ints(key string) ([]int64, bool) {
	list, ok := value[[]int32](f, key)
	out := make([]int64, len(list))
	for i, v := range list {
		out[i] = int64(v)
	}
	return out, ok
}
