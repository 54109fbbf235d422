package vocab_test

import (
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

func TestFIM_FoundBySpelling(t *testing.T) {
	for name, want := range map[string][3]string{
		"qwen2":          {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"},
		"starcoder":      {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"},
		"deepseek-coder": {"<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"},
		"gpt-2":          {}, "llama-spm": {}, "phi-3": {},
	} {
		v, err := vocab.FromGGUF(readMeta(t, shared(t, "vectors/tokenizer", "ggml-vocab-"+name+".gguf")))
		if err != nil {
			t.Fatal(err)
		}
		f, ok := v.FIM()
		_, known := v.ID(want[0])
		if ok != (want[0] != "" && known) {
			t.Errorf("%s: fill-in-the-middle tokens: %v, want %v", name, ok, want)
			continue
		}
		if !ok {
			if _, ok, err := v.EncodeFIM("a", "b", vocab.Options{}); ok || err != nil {
				t.Errorf("%s: a prompt without the tokens: %v, %v", name, ok, err)
			}
			continue
		}
		for i, id := range []int32{f.Prefix, f.Suffix, f.Middle} {
			if s, err := v.Spelling(id); err != nil || s != want[i] {
				t.Errorf("%s: token %d is %q, want %q", name, i, s, want[i])
			}
		}
		ids, _, err := v.EncodeFIM("def f(x):\n  return <fim_suffix>", "\n", vocab.Options{BOS: true})
		if err != nil {
			t.Fatal(err)
		}
		before, _ := v.Encode("def f(x):\n  return <fim_suffix>", vocab.Options{})
		after, _ := v.Encode("\n", vocab.Options{})
		whole := slices.Concat([]int32{f.Prefix}, before, []int32{f.Suffix}, after, []int32{f.Middle})
		if bos, ok := v.BOS(); ok && v.AddBOS() {
			whole = append([]int32{bos}, whole...)
		}
		if !slices.Equal(ids, whole) {
			t.Errorf("%s: the prompt is %v, want %v", name, ids, whole)
		}
		n := 0
		for _, id := range ids {
			if id == f.Suffix {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s: %d suffix tokens: the user's text wrote one", name, n)
		}
	}
}

func TestFIM_FoundByMetadata(t *testing.T) {
	m := spmMeta()
	n := uint64(len(m["tokenizer.ggml.tokens"].([]string)))
	m["tokenizer.ggml.tokens"] = append(m["tokenizer.ggml.tokens"].([]string), "<one>", "<two>", "<three>", "<pad>")
	m["tokenizer.ggml.token_type"] = append(m["tokenizer.ggml.token_type"].([]int64), 3, 3, 3, 3)
	m["tokenizer.ggml.scores"] = append(m["tokenizer.ggml.scores"].([]float32), 0, 0, 0, 0)
	m["tokenizer.ggml.prefix_token_id"], m["tokenizer.ggml.fim_suf_token_id"], m["tokenizer.ggml.middle_token_id"] = n,
		n+1, n+2
	m["tokenizer.ggml.fim_pad_token_id"], m["tokenizer.ggml.eot_token_id"] = n+3, n+1
	v, err := vocab.FromGGUF(m)
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := v.FIM(); !ok || f != (vocab.FIM{Prefix: int32(n), Suffix: int32(n + 1), Middle: int32(n + 2)}) {
		t.Errorf("%v, %v", f, ok)
	}
	if eog := v.EOG(); !slices.Equal(eog, []int32{2, int32(n + 1), int32(n + 3)}) {
		t.Errorf("the ids that end a generation are %v", eog)
	}
}

func TestFIM_SuffixFirstWithoutAMiddleToken(t *testing.T) {
	m := spmMeta()
	n := int32(len(m["tokenizer.ggml.tokens"].([]string)))
	m["tokenizer.ggml.tokens"] = append(m["tokenizer.ggml.tokens"].([]string), "[PREFIX]", "[SUFFIX]")
	m["tokenizer.ggml.token_type"] = append(m["tokenizer.ggml.token_type"].([]int64), 3, 3)
	m["tokenizer.ggml.scores"] = append(m["tokenizer.ggml.scores"].([]float32), 0, 0)
	v, err := vocab.FromGGUF(m)
	if err != nil {
		t.Fatal(err)
	}
	ids, ok, err := v.EncodeFIM("a", "b", vocab.Options{BOS: true})
	if err != nil || !ok || len(ids) < 5 || ids[0] != 1 || ids[1] != n+1 || !slices.Contains(ids[2:], n) {
		t.Errorf("%v, %v, %v", ids, ok, err)
	}
}
