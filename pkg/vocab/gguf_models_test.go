package vocab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// builder collects a GGUF vocabulary.
type builder struct {
	tokens []string
	types  []int64
	scores []float32
}

func (b *builder) add(kind int64, tokens ...string) {
	for _, text := range tokens {
		b.tokens, b.types, b.scores = append(b.tokens, text), append(b.types, kind),
			append(b.scores, -float32(len(b.tokens)))
	}
}

func (b *builder) meta(model string, more meta) meta {
	m := meta{"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": b.tokens, "tokenizer.ggml.token_type": b.types,
		"tokenizer.ggml.scores": b.scores}
	for k, v := range more {
		m[k] = v
	}
	return m
}

const (
	normal  = 1
	unknown = 2
	control = 3
	user    = 4
	byteful = 6
)

// spellings encodes a text and returns the tokens as the vocabulary spells them.
func spellings(t *testing.T, v *vocab.Vocab, text string, o vocab.Options) []string {
	t.Helper()
	ids, err := v.Encode(text, o)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, id := range ids {
		s, err := v.Spelling(id)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// gemma4 returns a small vocabulary like that of Gemma 4.
func gemma4() (builder, []string) {
	var b builder
	b.add(control, "<pad>", "<eos>", "<bos>", "<unk>", "<turn|>")
	for c := range 256 {
		b.add(byteful, fmt.Sprintf("<0x%02X>", c))
	}
	b.add(normal, "\n", "\n\n", "\n\n\n", "▁", "a", "b", "c", "t", "h", "e")
	b.add(normal, "th", "he", "the", "▁the", "▁▁", "ab", "é")
	b.add(user, "<|tool>")
	return b, []string{"t h", "h e", "th e", "▁ the", "▁ ▁", "a b", "\n \n"}
}

func TestFromGGUF_Gemma4(t *testing.T) {
	b, merges := gemma4()
	more := meta{"tokenizer.ggml.merges": merges,
		"tokenizer.ggml.bos_token_id": uint64(2), "tokenizer.ggml.eos_token_id": uint64(1),
		"tokenizer.ggml.unknown_token_id": uint64(3), "tokenizer.ggml.add_bos_token": false,
		"tokenizer.ggml.pre": "whatever"}
	for _, m := range []meta{b.meta("gemma4", more), b.meta("gpt2", func() meta {
		named := meta{}
		for k, v := range more {
			named[k] = v
		}
		named["tokenizer.ggml.pre"] = "gemma4"
		return named
	}())} {
		v, err := vocab.FromGGUF(m)
		if err != nil {
			t.Fatal(err)
		}
		if v.Family() != vocab.FamilyBPE || !v.AddBOS() || !slices.Equal(v.EOG(), []int32{1, 4}) {
			t.Errorf("family %s, adds a begin token: %v, ends at %v", v.Family(), v.AddBOS(), v.EOG())
		}
		for text, want := range map[string]string{
			"the the":          "the ▁the",
			" the":             "▁the",
			"abé":              "ab é",
			"a  b":             "a ▁▁ b",
			"a\n\n\n\nb":       "a \n\n \n\n b", // four are no token: merges apply
			"a\n\n\nb":         "a \n\n\n b",    // three are one, though no merge makes it
			"x":                "<0x78>",
			"ü":                "<0xC3> <0xBC>",
			"<bos>a<|tool>":    "<0x3C> b <0x6F> <0x73> <0x3E> a <|tool>",
			"the\nthe <turn|>": "the \n the ▁ <0x3C> t <0x75> <0x72> <0x6E> <0x7C> <0x3E>",
		} {
			if got := strings.Join(spellings(t, v, text, vocab.Options{}), " "); got != want {
				t.Errorf("%q: %q, want %q", text, got, want)
			}
			ids, err := v.Encode(text, vocab.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if back, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil || back != text {
				t.Errorf("%q came back as %q, %v", text, back, err)
			}
		}
		got := spellings(t, v, "<bos>a", vocab.Options{Special: true, BOS: true})
		if !slices.Equal(got, []string{"<bos>", "<bos>", "a"}) {
			t.Errorf("with special tokens: %q", got)
		}
	}
}

// TestFromGGUF_Gemma4AgreesWithHuggingFace compares with the tokenizer.json of the same
// vocabulary, whose rules are Hugging Face's.
func TestFromGGUF_Gemma4AgreesWithHuggingFace(t *testing.T) {
	b, merges := gemma4()
	ids := map[string]int{}
	for i, text := range b.tokens {
		ids[text] = i
	}
	file, err := json.Marshal(map[string]any{
		"normalizer": map[string]any{"type": "Replace", "pattern": map[string]any{"String": " "}, "content": "▁"},
		"decoder": map[string]any{"type": "Sequence", "decoders": []any{
			map[string]any{"type": "Replace", "pattern": map[string]any{"String": "▁"}, "content": " "},
			map[string]any{"type": "ByteFallback"}, map[string]any{"type": "Fuse"}}},
		"model": map[string]any{"type": "BPE", "vocab": ids, "merges": merges,
			"byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>"},
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := vocab.FromFS(fstest.MapFS{"tokenizer.json": &fstest.MapFile{Data: file}})
	if err != nil {
		t.Fatal(err)
	}
	g, err := vocab.FromGGUF(b.meta("gemma4", meta{"tokenizer.ggml.merges": merges}))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	alphabet := []string{"a", "b", "the", "th", "e", " ", "  ", "é", "ü", "🦊", "▁", "x", "\n", "\n\n"}
	for range 3000 {
		text := ""
		for range r.IntN(12) {
			text += alphabet[r.IntN(len(alphabet))]
		}
		if strings.Contains(text, "\n\n\n") {
			continue // a token that no merge makes
		}
		want, err1 := h.Encode(text, vocab.Options{})
		got, err2 := g.Encode(text, vocab.Options{})
		if err1 != nil || err2 != nil || !slices.Equal(got, want) {
			t.Fatalf("%q: %v %v, want %v %v", text, got, err2, want, err1)
		}
	}
}

func TestFromGGUF_Bert(t *testing.T) {
	var b builder
	pieces := []string{"the", "qu", "##ick", "fox", "##es", "un", "##ber", ".", "?", "'", "s", "a", "##b", "漢", "u"}
	ids := map[string]int{}
	b.add(control, "[PAD]", "[CLS]", "[SEP]", "[MASK]")
	b.add(unknown, "[UNK]")
	for i, text := range b.tokens {
		ids[text] = i
	}
	for _, p := range pieces {
		ids[p] = len(b.tokens)
		if rest, ok := strings.CutPrefix(p, "##"); ok {
			b.add(normal, rest)
		} else {
			b.add(normal, "▁"+p)
		}
	}
	special := meta{"tokenizer.ggml.bos_token_id": uint64(1), "tokenizer.ggml.seperator_token_id": uint64(2),
		"tokenizer.ggml.unknown_token_id": uint64(4), "tokenizer.ggml.padding_token_id": uint64(0),
		"tokenizer.ggml.mask_token_id": uint64(3)}
	g, err := vocab.FromGGUF(b.meta("bert", special))
	if err != nil {
		t.Fatal(err)
	}
	var added []any
	for id, text := range b.tokens[:5] {
		added = append(added, map[string]any{"id": id, "content": text, "special": true})
	}
	file, err := json.Marshal(map[string]any{
		"added_tokens":   added,
		"normalizer":     map[string]any{"type": "BertNormalizer", "lowercase": true},
		"pre_tokenizer":  map[string]any{"type": "BertPreTokenizer"},
		"post_processor": map[string]any{"type": "BertProcessing", "sep": []any{"[SEP]", 2}, "cls": []any{"[CLS]", 1}},
		"decoder":        map[string]any{"type": "WordPiece", "prefix": "##", "cleanup": true},
		"model":          map[string]any{"type": "WordPiece", "unk_token": "[UNK]", "vocab": ids},
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := vocab.FromFS(fstest.MapFS{"tokenizer.json": &fstest.MapFile{Data: file}})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "The quick foxes.", "UNBER?", "the'S", "thé  漢漢 quux", "[MASK] the",
		"ab a b", strings.Repeat("a", 101), strings.Repeat("a", 100), "a\tb\n\x00c", "Ü u"} {
		for _, o := range []vocab.Options{{}, {Special: true, BOS: true}} {
			got, err1 := g.Encode(text, o)
			want, err2 := h.Encode(text, o)
			if err1 != nil || err2 != nil || !slices.Equal(got, want) {
				t.Errorf("%q: %v %v, want %v %v", text, got, err1, want, err2)
				continue
			}
			back, err1 := g.Decode(got, vocab.DecodeOptions{SkipSpecial: true})
			wanted, err2 := h.Decode(want, vocab.DecodeOptions{SkipSpecial: true})
			if err1 != nil || err2 != nil || back != wanted {
				t.Errorf("decode %v: %q %v, want %q %v", got, back, err1, wanted, err2)
			}
		}
	}
	got := spellings(t, g, "The foxes", vocab.Options{BOS: true})
	if strings.Join(got, " ") != "[CLS] ▁the ▁fox es [SEP]" {
		t.Errorf("%q", got)
	}
	special["tokenizer.ggml.normalizer.lowercase"] = false
	cased, err := vocab.FromGGUF(b.meta("bert", special))
	if err != nil {
		t.Fatal(err)
	}
	if got := spellings(t, cased, "The fox", vocab.Options{}); strings.Join(got, " ") != "[UNK] ▁fox" {
		t.Errorf("cased: %q", got)
	}
}

func TestFromGGUF_T5(t *testing.T) {
	var b builder
	b.add(control, "<pad>", "</s>")
	b.add(unknown, "<unk>")
	b.add(normal, "▁the", "▁", "a", "b", "ab", "▁a")
	b.add(user, "<x>")
	v, err := vocab.FromGGUF(b.meta("t5", meta{
		"tokenizer.ggml.eos_token_id": uint64(1), "tokenizer.ggml.unknown_token_id": uint64(2),
		"tokenizer.ggml.add_space_prefix": true, "tokenizer.ggml.remove_extra_whitespaces": true,
		"tokenizer.chat_template": "{{ x }}",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if v.Family() != vocab.FamilyUnigram || v.ChatTemplate() == "" || !slices.Equal(v.EOG(), []int32{1}) {
		t.Errorf("family %s, template %q, ends at %v", v.Family(), v.ChatTemplate(), v.EOG())
	}
	for text, want := range map[string]string{
		"the  ab": "▁the ▁ ab </s>",
		"ü the":   "▁ <unk> ▁the </s>",
		"a<x>b":   "▁a <x> b </s>",
		"</s>":    "</s> </s>",
	} {
		if got := strings.Join(spellings(t, v, text, vocab.Options{Special: true, BOS: true}), " "); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestFromGGUF_RefusesOtherModelsByName(t *testing.T) {
	var b builder
	b.add(normal, "a")
	for _, name := range []string{"rwkv", "plamo2", "plamo3", "hybriddna", "whitespace", "none", "no_vocab",
		"of the future"} {
		_, err := vocab.FromGGUF(b.meta(name, nil))
		var format *vocab.FormatError
		if !errors.As(err, &format) || !format.Unsupported || format.Field != "tokenizer.ggml.model" {
			t.Errorf("%s: %v", name, err)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
}

// TestFromGGUF_PieceThatIsNotUTF8 reads vocabularies that made newSPM index a table of
// ASCII with a byte beyond it.
func TestFromGGUF_PieceThatIsNotUTF8(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		v, err := vocab.FromGGUF(readMeta(t, shared(t, "cases", "gguf", "piece-not-utf8-"+name+".gguf")))
		if err != nil {
			t.Fatal(err)
		}
		text := "Once upon a time, über"
		ids, err := v.Encode(text, vocab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if back, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil || back != text {
			t.Errorf("%v: %q, %v", ids, back, err)
		}
	}
}

// TestFromGGUF_LlamaDefaultIDs reads a file that names no special token.
func TestFromGGUF_LlamaDefaultIDs(t *testing.T) {
	var b builder
	b.add(unknown, "<unk>")
	b.add(control, "<s>", "</s>")
	b.add(normal, "▁a", "▁", "a")
	v, err := vocab.FromGGUF(b.meta("llama", nil))
	if err != nil {
		t.Fatal(err)
	}
	if got := spellings(t, v, "a ü", vocab.Options{BOS: true}); strings.Join(got, " ") != "<s> ▁a ▁ <unk> <unk>" {
		t.Errorf("%q", got)
	}
	if eos, ok := v.EOS(); !ok || eos != 2 {
		t.Errorf("the end token is %d, %v", eos, ok)
	}
}
