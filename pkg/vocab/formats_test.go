package vocab_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// message writes fields of a protocol buffer.
type message []byte

func (m *message) varint(field int, v uint64) {
	*m = binary.AppendUvarint(binary.AppendUvarint(*m, uint64(field<<3)), v)
}

func (m *message) bytes(field int, v []byte) {
	*m = append(binary.AppendUvarint(binary.AppendUvarint(*m, uint64(field<<3|2)), uint64(len(v))), v...)
}

func (m *message) float(field int, v float32) {
	*m = binary.LittleEndian.AppendUint32(binary.AppendUvarint(*m, uint64(field<<3|5)), math.Float32bits(v))
}

// sentencePiece writes a model of a type: 1 unigram, 2 BPE, 3 words, 4 characters.
func sentencePiece(kind uint64, pieces ...string) []byte {
	var m message
	for i, p := range append([]string{"<unk>", "<s>", "</s>"}, pieces...) {
		var piece message
		piece.bytes(1, []byte(p))
		piece.float(2, -float32(i))
		piece.varint(3, map[bool]uint64{true: 1, false: []uint64{2, 3, 3, 1}[min(i, 3)]}[i > 2])
		m.bytes(1, piece)
	}
	var trainer, normalizer message
	trainer.varint(3, kind)
	normalizer.bytes(1, []byte("identity"))
	normalizer.varint(3, 1)
	normalizer.varint(4, 1)
	m.bytes(2, trainer)
	m.bytes(3, normalizer)
	return m
}

func TestFromSentencePiece_Kinds(t *testing.T) {
	for _, c := range []struct {
		kind uint64
		text string
		want []string
	}{
		{1, "ab cab", []string{"▁ab", "▁", "c", "ab"}},
		{2, "ab cab", []string{"▁ab", "▁", "c", "ab"}},
		{3, "ab x y ab", []string{"▁ab", "<unk>", "▁ab"}},
		{4, "ab xyc", []string{"▁", "a", "b", "▁", "<unk>", "c"}},
	} {
		v, err := vocab.FromSentencePiece(sentencePiece(c.kind, "▁ab", "ab", "▁", "a", "b", "c"))
		if err != nil {
			t.Fatal(err)
		}
		ids, err := v.Encode(c.text, vocab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, id := range ids {
			spelling, err := v.Spelling(id)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, spelling)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("kind %d: %q becomes %q, want %q", c.kind, c.text, got, c.want)
		}
	}
}

// use encodes and decodes with a vocabulary from a fuzzed file.
func use(t *testing.T, v *vocab.Vocab) {
	ids, err := v.Encode("a b  ab\n é 🦊 12<s>", vocab.Options{Special: true, BOS: true})
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
}

func FuzzFromSentencePiece(f *testing.F) {
	for kind := range uint64(5) {
		f.Add(sentencePiece(kind, "▁ab", "ab", "▁", "a", "b"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := vocab.FromSentencePiece(data); err == nil {
			use(t, v)
		}
	})
}

func FuzzFromTiktoken(f *testing.F) {
	var ranks strings.Builder
	for i := range 256 {
		fmt.Fprintf(&ranks, "%s %d\n", base64.StdEncoding.EncodeToString([]byte{byte(i)}), i)
	}
	f.Add([]byte(ranks.String() + "YWI= 256\n"))
	f.Add([]byte("YQ== 0\nYg== 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := vocab.FromTiktoken(data, vocab.TiktokenOptions{}); err == nil {
			use(t, v)
		}
	})
}

// FuzzFromGGUF takes a vocabulary's metadata from the fuzzer: its kind, tokens, scores
// and types.
func FuzzFromGGUF(f *testing.F) {
	f.Add("llama", "", "<unk>\x00<s>\x00</s>\x00▁a\x00a\x00b\x00ab", []byte{2, 3, 3, 1, 1, 1, 1}, "")
	f.Add("gpt2", "qwen2", "a\x00b\x00ab\x00Ġ\x00<s>", []byte{1, 1, 1, 1, 3}, "a b")
	f.Add("bert", "", "[UNK]\x00[CLS]\x00[SEP]\x00a\x00##b", []byte{2, 3, 3, 1, 1}, "")
	f.Add("t5", "", "<pad>\x00</s>\x00<unk>\x00▁\x00a", []byte{3, 3, 2, 1, 1}, "")
	f.Fuzz(func(t *testing.T, kind, pre, tokens string, types []byte, merges string) {
		m := meta{"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": strings.Split(tokens, "\x00")}
		if pre != "" {
			m["tokenizer.ggml.pre"] = pre
		}
		var list []int64
		var scores []float32
		for i, k := range types {
			list, scores = append(list, int64(k)), append(scores, -float32(i))
		}
		m["tokenizer.ggml.token_type"], m["tokenizer.ggml.scores"] = list, scores
		if merges != "" {
			m["tokenizer.ggml.merges"] = strings.Split(merges, "\x00")
		}
		if v, err := vocab.FromGGUF(m); err == nil {
			use(t, v)
		}
	})
}
