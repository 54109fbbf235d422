package export

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// tokenizerFiles are the files of a Hugging Face folder that belong to its vocabulary and its generation settings.
func tokenizerFiles() []string {
	return []string{
		"tokenizer.json",
		"tokenizer_config.json",
		"special_tokens_map.json",
		"added_tokens.json",
		"vocab.json",
		"merges.txt",
		"tokenizer.model",
		"chat_template.jinja",
		"chat_template.json",
		"generation_config.json",
	}
}

// ToHF writes a model to a Hugging Face folder with weights of type F32 or BF16. The files of the tokenizer are copied
// from the model's folder; if it is a GGUF file, they are made from its metadata by writeVocab.
func ToHF(dir string, f *model.Files, dtype tensor.DType, writeVocab func(dir string) error) error {
	if dtype != tensor.F32 && dtype != tensor.BF16 {
		return fault.Field("type", "%v: a Hugging Face folder has weights of type F32 or BF16", dtype)
	}
	spec, params, err := f.Exported()
	if err != nil {
		return err
	}
	return writeHF(dir, f, spec, params, dtype, writeVocab)
}

// MergedToHF is ToHF for a model with an adapter, which is merged into the weights.
func MergedToHF(dir string, f *model.Files, a *adapter.Adapter, dtype tensor.DType,
	writeVocab func(dir string) error) error {
	params, spec, err := model.Merged(f, a)
	if err != nil {
		return err
	}
	return writeHF(dir, f, spec, params, dtype, writeVocab)
}

func writeHF(dir string, f *model.Files, spec model.Spec, params []model.Exported, dtype tensor.DType,
	writeVocab func(dir string) error) error {
	if err := model.ExportFiles(dir, spec, relaxed(params, f.Source), model.ExportOptions{DType: dtype}); err != nil {
		return err
	}
	if f.GGUF() != nil {
		return writeVocab(dir)
	}
	for _, name := range tokenizerFiles() {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(f.Path, name)); err != nil {
			return err
		}
	}
	return nil
}

// relaxed has the pages of each parameter dropped before the next one is read.
func relaxed(params []model.Exported, source weights.Source) []model.Exported {
	out := make([]model.Exported, len(params))
	for i, p := range params {
		out[i] = p
		out[i].Open = func() (model.Values, error) {
			source.Relax()
			return p.Open()
		}
	}
	return out
}

// copyFile copies a file if it exists.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	return weights.WriteFile(to, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}
