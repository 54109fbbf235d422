package tokenizer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Load reads the vocabulary and chat template of a GGUF file or a Hugging Face
// directory. An empty name becomes the path's last part without ".gguf"; an
// empty digest is computed, which reads the whole model. The error is a
// fault.Error: NotFound where there is no such file or no tokenizer in it,
// Unimplemented for a tokenizer of a family not read here, Invalid for one that
// is malformed.
func Load(path, name, digest string) (Model, error) {
	v, err := LoadVocab(path)
	if err != nil {
		return Model{}, err
	}
	if name == "" {
		name = strings.TrimSuffix(filepath.Base(filepath.Clean(path)), ".gguf")
	}
	if digest == "" {
		if digest, err = weights.Digest(path); err != nil {
			return Model{}, fault.Wrap(fault.Invalid, err, "compute the digest of %s", path)
		}
	}
	return Model{Name: name, Digest: digest, Vocab: v}, nil
}

// LoadVocab is Load for the vocabulary alone.
func LoadVocab(path string) (*vocab.Vocab, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, loadFault(path, err)
	}
	if stat.IsDir() {
		v, err := vocab.FromHF(path)
		if err != nil {
			return nil, loadFault(path, err)
		}
		return v, nil
	}
	file, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, loadFault(path, err)
	}
	defer file.Close()
	if !file.Meta().Has("tokenizer.ggml.model") {
		return nil, fault.New(fault.NotFound, "load the vocabulary of %s: the file holds no tokenizer", path)
	}
	v, err := vocab.FromGGUF(file.Meta())
	if err != nil {
		return nil, loadFault(path, err)
	}
	return v, nil
}

func loadFault(path string, err error) error {
	var format *vocab.FormatError
	code := fault.Invalid
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = fault.NotFound
	case errors.As(err, &format) && format.Unsupported:
		code = fault.Unimplemented
	}
	return fault.Wrap(code, err, "load the vocabulary of %s", path)
}
