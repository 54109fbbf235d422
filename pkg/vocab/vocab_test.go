package vocab_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

const prose = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.\n" +
	"However little known the feelings or views of such a man may be on his first entering a neighbourhood: don't we've 1813!\n"

func trained(t testing.TB, size int) *vocab.Vocab {
	t.Helper()
	v, err := vocab.TrainBPE(t.Context(), strings.Lines(prose), size, vocab.TrainOptions{
		Special: []string{"<|bos|>", "<|eos|>"}, BOS: "<|bos|>", EOS: "<|eos|>"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// spmMeta returns the metadata of a small SentencePiece vocabulary.
func spmMeta() meta {
	m := meta{"tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": uint64(1),
		"tokenizer.ggml.eos_token_id":     uint64(2),
		"tokenizer.ggml.unknown_token_id": uint64(0)}
	tokens := []string{"<unk>", "<s>", "</s>"}
	types := []int64{2, 3, 3}
	scores := []float32{0, 0, 0}
	for c := range 256 {
		const digits = "0123456789ABCDEF"
		tokens = append(tokens, "<0x"+digits[c>>4:c>>4+1]+digits[c&15:c&15+1]+">")
		types = append(types, 6)
		scores = append(scores, 0)
	}
	for i, piece := range []string{"▁a", "▁b", "aa", "▁the", "he", "▁t", "th", "ab", "▁▁", "aaaa", "s>", "▁", "a", "b",
		"h", "e", "t", "s", "<", ">", "/"} {
		tokens = append(tokens, piece)
		types = append(types, 1)
		scores = append(scores, -float32(i))
	}
	m["tokenizer.ggml.tokens"], m["tokenizer.ggml.token_type"], m["tokenizer.ggml.scores"] = tokens, types, scores
	return m
}

func TestVocab_SPMNeverMergesIntoControl(t *testing.T) {
	v, err := vocab.FromGGUF(spmMeta())
	if err != nil {
		t.Fatal(err)
	}
	if bos, ok := v.BOS(); !ok || bos != 1 || !v.AddBOS() {
		t.Errorf("begin token %d %v, added %v", bos, ok, v.AddBOS())
	}
	ids, err := v.Encode("<s></s> the <0x0A>", vocab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if _, kind, _ := v.Token(id); kind == vocab.KindControl {
			t.Errorf("%v holds control token %d", ids, id)
		}
	}
	if text, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil || text != "<s></s> the <0x0A>" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestVocab_PlainRangesHoldNoControl(t *testing.T) {
	v := trained(t, 300)
	const text = "<|bos|>a<|eos|>b<|eos|>"
	at := strings.Index(text, "<|eos|>")
	for _, plain := range [][2]int{{at, at + 7}, {at + 3, at + 4}, {at - 1, at + 1}, {at + 6, at + 8}} {
		ids, err := v.Encode(text, vocab.Options{Special: true, Plain: [][2]int{plain}})
		if err != nil {
			t.Fatal(err)
		}
		eos := 0
		for _, id := range ids {
			if id == 1 {
				eos++
			}
		}
		if eos != 1 || ids[0] != 0 || ids[len(ids)-1] != 1 {
			t.Errorf("plain %v: %v", plain, ids)
		}
	}
	for _, plain := range [][][2]int{{{0, 99}}, {{5, 4}}, {{4, 6}, {5, 7}}, {{-1, 2}}} {
		var bad *vocab.TextError
		if _, err := v.Encode(text, vocab.Options{Plain: plain}); !errors.As(err, &bad) {
			t.Errorf("%v: %v", plain, err)
		}
	}
}

func TestVocab_InvalidUTF8NamesTheByte(t *testing.T) {
	var bad *vocab.TextError
	if _, err := trained(t, 258).Encode("ab\xffc", vocab.Options{}); !errors.As(err, &bad) || bad.Offset != 2 {
		t.Errorf("%v", err)
	}
}

func TestNewChar_OrderSpecialsAndUnknown(t *testing.T) {
	v, err := vocab.NewChar("hello, wörld\n", "<|end|>")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := v.Encode("hö\n", vocab.Options{BOS: true})
	if err != nil || v.Family() != vocab.FamilyChar || v.Size() != 12 {
		t.Fatalf("%v %v %s %d", ids, err, v.Family(), v.Size())
	}
	if want := []int32{6, 11, 1}; !slices.Equal(ids, want) {
		t.Errorf("%v, want %v", ids, want)
	}
	if text, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil || text != "hö\n" {
		t.Errorf("%q, %v", text, err)
	}
	var bad *vocab.TextError
	if _, err := v.Encode("hex", vocab.Options{}); !errors.As(err, &bad) || bad.Offset != 2 {
		t.Errorf("%v", err)
	}
	if ids, err := v.Encode("h<|end|>", vocab.Options{Special: true}); err != nil || !slices.Equal(ids, []int32{6, 0}) {
		t.Errorf("%v, %v", ids, err)
	}
}

func TestVocab_WriteHFReadsBack(t *testing.T) {
	char, err := vocab.NewChar(prose+"<>&\u2028\"\\ü", "<s>")
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]*vocab.Vocab{"bpe": trained(t, 320), "char": char} {
		dir := t.TempDir()
		if err := v.WriteHF(dir); err != nil {
			t.Fatal(err)
		}
		back, err := vocab.FromHF(dir)
		if err != nil {
			t.Fatal(name, err)
		}
		if back.Family() != v.Family() || back.Size() != v.Size() || !slices.Equal(back.EOG(), v.EOG()) ||
			back.AddBOS() != v.AddBOS() {
			t.Errorf("%s: %s of %d, stop ids %v", name, back.Family(), back.Size(), back.EOG())
		}
		for id := range int32(v.Size()) {
			a, ak, _ := v.Token(id)
			b, bk, _ := back.Token(id)
			if string(a) != string(b) || ak != bk {
				t.Errorf("%s: token %d is %q, was %q", name, id, b, a)
			}
		}
		a, err1 := v.Encode(prose, vocab.Options{BOS: true})
		b, err2 := back.Encode(prose, vocab.Options{BOS: true})
		if err1 != nil || err2 != nil || !slices.Equal(a, b) {
			t.Errorf("%s: %v %v", name, err1, err2)
		}
		again := t.TempDir()
		if err := back.WriteHF(again); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"tokenizer.json", "tokenizer_config.json"} {
			x, _ := os.ReadFile(filepath.Join(dir, file))
			y, err := os.ReadFile(filepath.Join(again, file))
			if err != nil || string(x) != string(y) {
				t.Errorf("%s: %s changed: %v", name, file, err)
			}
		}
	}
}

func TestVocab_WriteHFRefusesGGUF(t *testing.T) {
	v, err := vocab.FromGGUF(spmMeta())
	if err != nil {
		t.Fatal(err)
	}
	var bad *vocab.FormatError
	if err := v.WriteHF(t.TempDir()); !errors.As(err, &bad) {
		t.Errorf("%v", err)
	}
}

func TestTrainBPE_BadInput(t *testing.T) {
	texts := strings.Lines(prose)
	for name, o := range map[string]vocab.TrainOptions{
		"twice": {Special: []string{"a", "a"}}, "empty": {Special: []string{""}}, "unknown": {EOS: "x"},
	} {
		if _, err := vocab.TrainBPE(t.Context(), texts, 300, o); err == nil {
			t.Error(name)
		}
	}
	if _, err := vocab.TrainBPE(t.Context(), texts, 255, vocab.TrainOptions{}); err == nil {
		t.Error("a size below the alphabet's was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := vocab.TrainBPE(ctx, texts, 300, vocab.TrainOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestTrainBPE_WorkersAndProgress(t *testing.T) {
	var lines []string
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = "aabbc de\n"[r.IntN(9)]
		}
		lines = append(lines, string(b))
	}
	var first []byte
	for _, workers := range []int{1, 2, 7} {
		last := 0
		v, err := vocab.TrainBPE(t.Context(), slices.Values(lines), 400,
			vocab.TrainOptions{Workers: workers, Progress: func(done, total int) {
				if total != 400 || done < last {
					t.Errorf("progress %d of %d after %d", done, total, last)
				}
				last = done
			}})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := v.WriteHF(dir); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		}
		if string(data) != string(first) || last != v.Size() {
			t.Errorf("%d workers learned something else, or progress ended at %d of %d", workers, last, v.Size())
		}
	}
}

func TestDecoder_ReturnsCompleteCharacters(t *testing.T) {
	v := trained(t, 258) // bytes only
	const text = "aé漢🦊 z"
	ids, err := v.Encode(text, vocab.Options{})
	if err != nil || len(ids) != len(text) {
		t.Fatal(ids, err)
	}
	d := v.NewDecoder(vocab.DecodeOptions{})
	var got string
	for _, id := range ids {
		s, err := d.Push(id)
		if err != nil || !utf8.ValidString(s) || utf8.RuneCountInString(s) > 1 {
			t.Errorf("%q, %v", s, err)
		}
		got += s
	}
	if got+d.Flush() != text {
		t.Errorf("%q", got)
	}
	broken, err := v.Decode(ids[1:2], vocab.DecodeOptions{})
	if err != nil || broken != "\ufffd" {
		t.Errorf("%q, %v", broken, err)
	}
	var bad *vocab.TokenError
	for _, id := range []int32{-1, 258} {
		if _, err := d.Push(id); !errors.As(err, &bad) {
			t.Errorf("%d: %v", id, err)
		}
	}
}

func TestFromFS_EndTokensAndTemplates(t *testing.T) {
	dir := t.TempDir()
	if err := trained(t, 270).WriteHF(dir); err != nil {
		t.Fatal(err)
	}
	tokenizer, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{
		"tokenizer.json": {Data: tokenizer},
		"tokenizer_config.json": {Data: []byte(
			`{"bos_token":{"content":"<|bos|>"},"eos_token":null,"add_bos_token":true,"chat_template":[{"name":"x","template":"no"},{"name":"default","template":"yes"}]}`,
		)},
		"generation_config.json": {Data: []byte(`{"eos_token_id":[1,5]}`)},
	}
	v, err := vocab.FromFS(files)
	if err != nil {
		t.Fatal(err)
	}
	eos, ok := v.EOS()
	if !v.AddBOS() || !ok || eos != 1 || !slices.Equal(v.EOG(), []int32{1, 5}) || v.ChatTemplate() != "yes" {
		t.Errorf("%v %d %v %v %q", v.AddBOS(), eos, ok, v.EOG(), v.ChatTemplate())
	}
	files["chat_template.jinja"] = &fstest.MapFile{Data: []byte("file")}
	if v, err = vocab.FromFS(files); err != nil || v.ChatTemplate() != "file" {
		t.Errorf("%v", err)
	}
	delete(files, "tokenizer.json")
	if _, err = vocab.FromFS(files); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestFromFS_MalformedNamesTheField(t *testing.T) {
	for text, field := range map[string]string{
		`{`:  "tokenizer.json",
		`{}`: "vocab",
		`{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}`:                                                             "vocab",
		`{"model":{"type":"BPE","vocab":{"a":999999},"merges":[]}}`:                                                              "vocab",
		`{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}`:                                                                  "vocab",
		`{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}`:                                                              "merges",
		`{"model":{"type":"BPE","vocab":{"a":0},"merges":["a"]}}`:                                                                "tokenizer.json",
		`{"model":{"type":"Unigram","vocab":{"a":0}}}`:                                                                           "model",
		`{"model":{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"u"}}`:                                                   "unk_token",
		`{"normalizer":{"type":"Nope"},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`:                                      "normalizer",
		`{"pre_tokenizer":{"type":"Nope"},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`:                                   "pre_tokenizer",
		`{"decoder":{"type":"Nope"},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`:                                         "decoder",
		`{"added_tokens":[{"id":7,"content":"a"}],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`:                           "added_tokens",
		`{"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"},"model":{"vocab":{"a":0},"merges":[]}}`: "pre_tokenizer",
	} {
		_, err := vocab.FromFS(fstest.MapFS{"tokenizer.json": {Data: []byte(text)}})
		var bad *vocab.FormatError
		if !errors.As(err, &bad) || !strings.Contains(bad.Field, field) {
			t.Errorf("%s: %v, want %s", text, err, field)
		}
	}
}

// hostile returns texts of n characters that are slow for tokenizers that backtrack.
func hostile() map[string]func(n int) string {
	rep := func(s string) func(int) string {
		return func(n int) string { return strings.Repeat(s, n/utf8.RuneCountInString(s)) }
	}
	return map[string]func(int) string{
		"a": rep("a"), "spaces": rep(" "), "newlines": rep("\n"), "space newline": rep(" \n"), "digits": rep("1"),
		"punctuation": rep("!"), "ab": rep("ab"), "emoji": rep("🦊"), "cjk": rep("漢"), "marks": rep("e\u0301"),
		"specials": rep("<|bos|>"), "half specials": rep("<|bo"), "mixed case": rep("aB"), "apostrophes": rep("'s"),
		"tabs": rep("\t x"),
	}
}

func TestVocab_EncodingIsLinear(t *testing.T) {
	spm, err := vocab.FromGGUF(spmMeta())
	if err != nil {
		t.Fatal(err)
	}
	const n = 1 << 17
	for vname, v := range map[string]*vocab.Vocab{"bpe": trained(t, 340), "spm": spm} {
		for name, text := range hostile() {
			measure := func(n int) time.Duration {
				s := text(n)
				best := time.Hour
				for range 3 {
					start := cputime.Process()
					if _, err := v.Encode(s, vocab.Options{Special: true}); err != nil {
						t.Fatal(err)
					}
					best = min(best, cputime.Process()-start)
				}
				return best
			}
			// A quadratic encoder takes 16 times as long for 4 times the text. The test is repeated
			// in case the machine was busy.
			short, long := measure(n/4), measure(n)
			for try := 0; try < 5 && long > 9*short+20*time.Millisecond; try++ {
				long = min(long, measure(n))
			}
			if long > 9*short+20*time.Millisecond {
				t.Errorf("%s, %s: %v for %d characters, %v for %d", vname, name, short, n/4, long, n)
			}
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", prose, "<|bos|>", " \n\n x", "é漢🦊\u0301", "'S'll 123 4567", "a\xff"} {
		f.Add(s)
	}
	bpe := trained(f, 300)
	spm, err := vocab.FromGGUF(spmMeta())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, v := range []*vocab.Vocab{bpe, spm} {
			ids, err := v.Encode(text, vocab.Options{})
			if err != nil {
				if utf8.ValidString(text) {
					t.Fatal(err)
				}
				continue
			}
			for _, id := range ids {
				if _, kind, err := v.Token(id); err != nil || kind == vocab.KindControl {
					t.Fatalf("%q became %d, kind %d, %v", text, id, kind, err)
				}
			}
			if back, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil || back != text {
				t.Fatalf("%q came back as %q, %v", text, back, err)
			}
			if _, err := v.Encode(text, vocab.Options{Special: true, BOS: true}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzFromHF(f *testing.F) {
	dir := f.TempDir()
	if err := trained(f, 262).WriteHF(dir); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(seed), "{}")
	f.Add(
		`{"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","byte_fallback":true,"unk_token":"u","vocab":{"u":0,"▁":1,"a":2,"▁a":3},"merges":[["▁","a"]]}}`,
		`{"bos_token":"u","add_bos_token":true}`,
	)
	f.Add(
		`{"added_tokens":[{"id":1,"content":"b","lstrip":true,"rstrip":true,"single_word":true}],"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"a+"},"behavior":"MergedWithNext"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"b"}},{"Sequence":{"id":"A"}}],"special_tokens":{"b":{"ids":[1]}}},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`,
		`{"chat_template":"x"}`,
	)
	f.Fuzz(func(t *testing.T, tokenizer, config string) {
		v, err := vocab.FromFS(fstest.MapFS{"tokenizer.json": {Data: []byte(tokenizer)},
			"tokenizer_config.json": {Data: []byte(config)}})
		if err != nil {
			return
		}
		ids, err := v.Encode("a b  ab\n é 🦊 12", vocab.Options{Special: true, BOS: true})
		if err != nil {
			return
		}
		for _, id := range ids {
			if _, _, err := v.Token(id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil {
			t.Fatal(err)
		}
	})
}
