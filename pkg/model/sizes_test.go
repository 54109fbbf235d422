package model_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// The sizes of all parts add up to those of all tensors, in both formats of every tiny model.
func TestFiles_SizesAddUp(t *testing.T) {
	dir := fixtures.Path(t, "models/tiny")
	var folders []string
	for _, dir := range []string{dir, "testdata/encoders"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			folders = append(folders, filepath.Join(dir, e.Name()))
		}
	}
	for _, folder := range folders {
		for _, file := range []string{"", "model-bf16.gguf"} {
			path := filepath.Join(folder, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			t.Run(filepath.Join(filepath.Base(folder), file), func(t *testing.T) {
				f, err := model.OpenHeader(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				want := int64(0)
				for _, name := range f.Source.Names() {
					info, _ := f.Source.Info(name)
					want += info.Bytes
				}
				sizes := f.Sizes()
				got := sizes.Embedding + sizes.Head
				for l, n := range sizes.Layers {
					got += n
					experts := f.Spec.Layers[l].FFN.Experts != nil
					if read := sizes.Read[l]; n <= 0 || read <= 0 || (read < n) != experts {
						t.Errorf("layer %d has %d bytes, and a row reads %d", l, n, read)
					}
				}
				if f.Spec.Head.Tied { // the embedding counts twice
					for _, name := range []string{"token_embd", "wte", "transformer.wte", "model.embed_tokens"} {
						if info, ok := f.Source.Info(name + ".weight"); ok {
							got -= info.Bytes
						}
					}
				}
				if got != want {
					t.Errorf("the parts have %d bytes, and the tensors %d", got, want)
				}
			})
		}
	}
}
