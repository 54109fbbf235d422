package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestTokenize_VectorsWithoutSpecial(t *testing.T) {
	for _, name := range []string{"llama-spm", "gpt-2", "qwen2"} {
		t.Run(name, func(t *testing.T) {
			path := sharedPath(t, "vectors/tokenizer", "ggml-vocab-"+name+".gguf")
			input, err := os.ReadFile(path + ".inp")
			if err != nil {
				t.Fatal(err)
			}
			output, err := os.ReadFile(path + ".out")
			if err != nil {
				t.Fatal(err)
			}
			cases := strings.Split(string(input), "\n__ggml_vocab_test__\n")
			want := strings.Split(strings.TrimRight(string(output), "\n"), "\n")
			for i := 0; i < min(len(cases), len(want)); i += 6 {
				got := verbJSON[[]int32](t, cases[i], "tokenize", "-m", path, "--no-special")
				var ids []int32
				if err := json.Unmarshal([]byte("["+strings.Join(strings.Fields(want[i]), ",")+"]"), &ids); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, ids) {
					t.Errorf("case %d %q: %v, want %v", i, cases[i], got, ids)
				}
			}
		})
	}
}

func TestTokenize_BOSAndControlTokens(t *testing.T) {
	path := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	text := "Once upon a time</s>"
	all := verbJSON[[]int32](t, text, "tokenize", "-m", path)
	bare := verbJSON[[]int32](t, text, "tokenize", "-m", path, "--no-bos")
	plain := verbJSON[[]int32](t, text, "tokenize", "-m", path, "--no-special")
	if all[0] != 1 || !slices.Equal(all[1:], bare) {
		t.Errorf("with the begin token %v, without %v", all, bare)
	}
	if bare[len(bare)-1] != 2 || slices.Contains(plain, 1) || slices.Contains(plain, 2) {
		t.Errorf("ids %v, with --no-special %v: only the former may hold 2", bare, plain)
	}
	for _, ids := range [][]int32{all, bare, plain} {
		list, err := json.Marshal(ids)
		if err != nil {
			t.Fatal(err)
		}
		if got := verbOK(t, string(list), "tokenize", "-m", path, "--decode"); got != text {
			t.Errorf("decode %v: %q, want %q", ids, got, text)
		}
	}
	if got := verbOK(t, "[403,2]", "tokenize", "-m", path, "--decode", "--no-special"); strings.Contains(got, "</s>") {
		t.Errorf("decode with --no-special: %q", got)
	}
}

func TestTokenize_NothingIsAnEmptyList(t *testing.T) {
	path := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	if got := verbOK(t, "", "tokenize", "-m", path, "--no-special"); got != "[]\n" {
		t.Errorf("printed %q", got)
	}
}

func TestTokenize_BadInput(t *testing.T) {
	path := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	verbFails(t, 2, "JSON list", "1 2 3", "tokenize", "-m", path, "--decode")
	verbFails(t, 2, "4000", "[1, 4000]", "tokenize", "-m", path, "--decode")
	verbFails(t, 2, "invalid UTF-8 at byte 1", "a\xffb", "tokenize", "-m", path)
	verbFails(t, 1, "nowhere", "", "tokenize", "-m", "nowhere")
}

func TestTokenize_InputList(t *testing.T) {
	for _, name := range []string{"llama-spm", "gpt-2", "qwen2", "starcoder", "deepseek-coder", "phi-3"} {
		path := sharedPath(t, "vectors/tokenizer", "ggml-vocab-"+name+".gguf")
		output, err := os.ReadFile(path + ".out")
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimRight(string(output), "\n"), "\n")
		got := strings.Split(strings.TrimRight(verbOK(t, "", "tokenize", "-m", path, "--input-list", path+".inp"),
			"\n"), "\n")
		if len(got) != len(want) {
			t.Fatalf("%s: %d lists, want %d", name, len(got), len(want))
		}
		for i := range want {
			if list := "[" + strings.Join(strings.Fields(want[i]), ",") + "]"; got[i] != list {
				t.Errorf("%s: text %d is %s, want %s", name, i, got[i], list)
			}
		}
	}
}

func TestTokenize_SeparatorOfTheCallers(t *testing.T) {
	path := sharedPath(t, "vectors/tokenizer/ggml-vocab-gpt-2.gguf")
	list := t.TempDir() + "/list"
	for input, want := range map[string]string{
		"a\n--\nb\n":       "[64]\n[65]\n",
		"a\n--\nb":         "[64]\n[65]\n",
		"a\n--\n\n--\nb\n": "[64]\n[]\n[65]\n",
		"a\nb\n":           "[64,198,65]\n",
		"":                 "",
	} {
		if err := os.WriteFile(list, []byte(input), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := verbOK(t, "", "tokenize", "-m", path, "--input-list", list, "--separator=--"); got != want {
			t.Errorf("%q gives %q, want %q", input, got, want)
		}
	}
}
