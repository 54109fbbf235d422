package model_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/model"
)

func TestParseHF_IDsOfTexts(t *testing.T) {
	for text, want := range map[string]struct{ bos, eos []int32 }{
		`}`: {},
		`,"bos_token_id":null,"eos_token_id":null}`:     {},
		`,"bos_token_id":1,"eos_token_id":2}`:           {[]int32{1}, []int32{2}},
		`,"bos_token_id":[1],"eos_token_id":[7,2,8]}`:   {[]int32{1}, []int32{7, 2, 8}},
		`,"bos_token_id":-1,"eos_token_id":[90,89,-2]}`: {nil, []int32{89}}, // 90 ids
	} {
		if c := parse(t, llamaText+text); !slices.Equal(c.BOS, want.bos) || !slices.Equal(c.EOS, want.eos) {
			t.Errorf("%s gives %v and %v, want %+v", text, c.BOS, c.EOS, want)
		}
	}
}

// TestOpen_GenerationConfigIDs has ids that generation_config.json gives, too.
func TestOpen_GenerationConfigIDs(t *testing.T) {
	for text, want := range map[string]struct{ bos, eos []int32 }{
		`{"eos_token_id":[3,2]}`:                  {[]int32{1}, []int32{3, 2}},
		`{"bos_token_id":4,"temperature":0.5}`:    {[]int32{4}, []int32{2}},
		`{"bos_token_id":null,"eos_token_id":[]}`: {[]int32{1}, []int32{2}},
	} {
		dir := t.TempDir()
		for _, name := range []string{"config.json", "model.safetensors"} {
			if err := os.Symlink(filepath.Join(shared(t, "models/tiny/llama"), name),
				filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "generation_config.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if c := open(t, dir).Spec; !slices.Equal(c.BOS, want.bos) || !slices.Equal(c.EOS, want.eos) {
			t.Errorf("%s gives %v and %v, want %+v", text, c.BOS, c.EOS, want)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"config.json": llamaText + "}", "generation_config.json": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := model.Open(dir); err == nil {
		t.Error("a torn generation_config.json is accepted")
	}
}

// TestOpen_AFolderWithoutAModel says what a folder of a model has.
func TestOpen_AFolderWithoutAModel(t *testing.T) {
	_, err := model.Open(t.TempDir())
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "want a GGUF file, or a folder") {
		t.Errorf("got %v", err)
	}
}
