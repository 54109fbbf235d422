package vocab_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// separator separates the cases of a .inp file.
const separator = "\n__ggml_vocab_test__\n"

func TestFromGGUF_Vectors(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(shared(t, "vectors", "tokenizer"), "*.gguf"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			v, err := vocab.FromGGUF(readMeta(t, file))
			var format *vocab.FormatError
			if errors.As(err, &format) && format.Unsupported {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			inp, err := os.ReadFile(file + ".inp")
			if err != nil {
				t.Fatal(err)
			}
			out, err := os.ReadFile(file + ".out")
			if err != nil {
				t.Fatal(err)
			}
			cases := strings.Split(strings.TrimSuffix(string(inp), separator), separator)
			lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			if len(cases) != len(lines) {
				t.Fatalf("%d cases, %d lines", len(cases), len(lines))
			}
			for i, text := range cases {
				var want []int32
				for _, f := range strings.Fields(lines[i]) {
					id, err := strconv.Atoi(f)
					if err != nil {
						t.Fatal(err)
					}
					want = append(want, int32(id))
				}
				got, err := v.Encode(text, vocab.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%q\n got %v\nwant %v", text, got, want)
				}
				if back, err := v.Decode(got, vocab.DecodeOptions{}); err != nil || back != text {
					t.Errorf("decode %v: %q, %v; want %q", got, back, err, text)
				}
			}
		})
	}
}

type expected struct {
	Text   string  `json:"text"`
	Tokens []int32 `json:"token_ids_from_numpy_forward"`
	Cases  []struct {
		Prompt     string  `json:"prompt"`
		PromptIDs  []int32 `json:"prompt_ids"`
		GreedyIDs  []int32 `json:"greedy_ids"`
		GreedyText string  `json:"greedy_text"`
	} `json:"cases"`
}

func readExpected(t *testing.T, path string) (e expected) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestFromGGUF_ChatModel(t *testing.T) {
	dir := shared(t, "models", "smollm2-135m-instruct")
	v, err := vocab.FromGGUF(readMeta(t, filepath.Join(dir, "SmolLM2-135M-Instruct.Q4_1.gguf")))
	if err != nil {
		t.Fatal(err)
	}
	if v.AddBOS() {
		t.Error("adds a begin token")
	}
	if !slices.Contains(v.EOG(), 2) {
		t.Errorf("stop ids %v lack 2", v.EOG())
	}
	for _, c := range readExpected(t, filepath.Join(dir, "expected.json")).Cases {
		got, err := v.Encode(c.Prompt, vocab.Options{Special: true, BOS: true})
		if err != nil || !slices.Equal(got, c.PromptIDs) {
			t.Errorf("%q: %v, %v; want %v", c.Prompt, got, err, c.PromptIDs)
		}
		text, err := v.Decode(c.GreedyIDs, vocab.DecodeOptions{Prefix: c.PromptIDs})
		if err != nil || text != c.GreedyText {
			t.Errorf("decode: %q, %v; want %q", text, err, c.GreedyText)
		}
		if !strings.Contains(c.Prompt, "<|im_start|>") {
			continue
		}
		plain, err := v.Encode(c.Prompt, vocab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range plain {
			if _, kind, _ := v.Token(id); kind == vocab.KindControl {
				t.Errorf("plain text became control token %d", id)
			}
		}
	}
}

func TestFromGGUF_Stories(t *testing.T) {
	dir := shared(t, "models", "stories260K")
	v, err := vocab.FromGGUF(readMeta(t, filepath.Join(dir, "stories260K-f32.gguf")))
	if err != nil {
		t.Fatal(err)
	}
	e := readExpected(t, filepath.Join(dir, "expected.json"))
	text, err := v.Decode(e.Tokens, vocab.DecodeOptions{SkipSpecial: true})
	if err != nil || text != e.Text {
		t.Fatalf("%q, %v; want %q", text, err, e.Text)
	}
	ids, err := v.Encode(e.Text, vocab.Options{BOS: true})
	if err != nil {
		t.Fatal(err)
	}
	if back, err := v.Decode(ids, vocab.DecodeOptions{SkipSpecial: true}); err != nil || back != e.Text || ids[0] != 1 {
		t.Errorf("%v: %q, %v", ids, back, err)
	}
}

func TestTrainBPE_Vector(t *testing.T) {
	data, err := os.ReadFile(shared(t, "vectors", "tokenizer", "bpe-training.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		File   string      `json:"file"`
		Size   int         `json:"vocab_size"`
		Merges [][2]string `json:"merges"`
	}
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(shared(t, want.File))
	if err != nil {
		t.Fatal(err)
	}
	for _, workers := range []int{1, 3} {
		v, err := vocab.TrainBPE(t.Context(), strings.Lines(string(text)), want.Size,
			vocab.TrainOptions{Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := v.WriteHF(dir); err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Model struct {
				Merges [][2]string `json:"merges"`
			} `json:"model"`
		}
		if err := json.Unmarshal(written, &got); err != nil {
			t.Fatal(err)
		}
		if v.Size() != want.Size {
			t.Errorf("size %d, want %d", v.Size(), want.Size)
		}
		for i := range want.Merges {
			if got.Model.Merges[i] != want.Merges[i] {
				t.Fatalf("merge %d is %q, want %q", i, got.Model.Merges[i], want.Merges[i])
			}
		}
	}
}

func TestFromHF_Qwen3AgreesWithGGUF(t *testing.T) {
	v, err := vocab.FromHF(shared(t, "vectors", "tokenizer", "qwen3-hf"))
	if err != nil {
		t.Fatal(err)
	}
	file := shared(t, "vectors", "tokenizer", "ggml-vocab-qwen2.gguf")
	g, err := vocab.FromGGUF(readMeta(t, file))
	if err != nil {
		t.Fatal(err)
	}
	inp, err := os.ReadFile(file + ".inp")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range strings.Split(strings.TrimSuffix(string(inp), separator), separator) {
		a, err := v.Encode(text, vocab.Options{BOS: true})
		if err != nil {
			t.Fatal(err)
		}
		b, err := g.Encode(text, vocab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(a, b) {
			t.Errorf("%q\n hf %v\ngguf %v", text, a, b)
		}
	}
	if v.ChatTemplate() == "" || !slices.Contains(v.EOG(), 151645) {
		t.Errorf("template of %d bytes, stop ids %v", len(v.ChatTemplate()), v.EOG())
	}
}

func TestFromHF_TinyAgreesWithGGUF(t *testing.T) {
	dir := shared(t, "models", "tiny", "llama")
	v, err := vocab.FromHF(dir)
	if err != nil {
		t.Fatal(err)
	}
	g, err := vocab.FromGGUF(readMeta(t, filepath.Join(dir, "model-bf16.gguf")))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "The quick brown fox", "<s>hi</s>", "über  33 \n\n x"} {
		for _, special := range []bool{false, true} {
			a, err1 := v.Encode(text, vocab.Options{Special: special, BOS: true})
			b, err2 := g.Encode(text, vocab.Options{Special: special, BOS: true})
			if err1 != nil || err2 != nil || !slices.Equal(a, b) {
				t.Errorf("%q: %v %v, %v %v", text, a, err1, b, err2)
			}
		}
	}
}
