package model

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Files is an open model whose weights have not been read yet.
type Files struct {
	Spec   Spec
	Path   string
	Source weights.Source
	gguf   *weights.GGUF
}

// Open reads a GGUF model (a file, any part of a split one, or a folder that holds
// one) or a Hugging Face folder. An architecture that this build does not run is an
// *UnsupportedError.
func Open(path string) (*Files, error) {
	at, err := weights.Locate(path)
	if err != nil {
		return nil, err
	}
	if stat, err := os.Stat(path); err != nil || !stat.IsDir() || at.Format == weights.FormatGGUF {
		return openGGUF(path)
	}
	text, err := os.ReadFile(filepath.Join(path, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open model: want a GGUF file, or a folder as of Hugging Face: %w", err)
	}
	if err != nil {
		return nil, err
	}
	spec, err := ParseHF(text)
	if err == nil {
		err = spec.generationIDs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	source, err := weights.OpenSafetensors(path)
	if err != nil {
		return nil, err
	}
	f := NewFiles(spec, path, source)
	f.Spec = spec.biasesOf(f.has)
	if f.Spec.Head.Tied && f.ownHead() {
		f.Spec.Head.Tied = false // the weights decide, not the setting
	}
	return f, nil
}

// ownHead reports whether the files of a model with a tied head hold a head that differs
// from the embedding. Equal copies are common, for GPT-2 above all.
func (f *Files) ownHead() bool {
	head, err := f.Source.Data(f.tensor(f.Spec.Head.Name, ".weight"))
	if err != nil {
		return false
	}
	tied, err := f.Source.Data(f.tensor(f.Spec.Embedding.Tokens, ".weight"))
	return err == nil && !bytes.Equal(head, tied)
}

// NewFiles returns a model whose tensors come from the caller's source, with their Hugging Face
// names. path is its name in errors.
func NewFiles(s Spec, path string, source weights.Source) *Files {
	return &Files{Spec: s, Path: path, Source: source}
}

func openGGUF(path string) (*Files, error) {
	g, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	f, err := FromGGUF(g, path)
	if err != nil {
		_ = g.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

// FromGGUF returns the model of an open GGUF file. Close closes the file. path is the model's name
// in errors.
func FromGGUF(g *weights.GGUF, path string) (*Files, error) {
	s, err := specOfGGUF(g)
	if err != nil {
		return nil, err
	}
	return &Files{Spec: s, Path: path, Source: g, gguf: g}, nil
}

// tensor returns the name of a parameter in the model's files. Hugging Face's files may
// leave out the prefix "model.", or put the prefix of a multimodal model in front.
func (f *Files) tensor(n Name, end string) string {
	if f.gguf != nil {
		return n.GGUF + end
	}
	for _, name := range []string{n.Param, n.HF} {
		if name == "" {
			continue
		}
		bare := strings.TrimPrefix(strings.TrimPrefix(name, "model."), "transformer.")
		for _, candidate := range []string{
			name, bare, "language_model." + name, "model.language_model." + bare, "language_model." + bare,
			"model.text_model." + bare,
		} {
			if _, ok := f.Source.Info(candidate + end); ok {
				return candidate + end
			}
		}
	}
	return n.Param + end
}

// has reports whether the model's files hold a parameter. A %d in its name stands for
// expert 0.
func (f *Files) has(n Name, end string) bool {
	_, ok := f.Source.Info(f.tensor(n.expert(0), end))
	return ok
}

// expert returns the name with the index of an expert in place of %d.
func (n Name) expert(e int) Name {
	return Name{Param: expertName(n.Param, e), HF: expertName(n.HF, e), GGUF: n.GGUF}
}

// GGUF returns the open GGUF file, or nil for a Hugging Face folder.
func (f *Files) GGUF() *weights.GGUF { return f.gguf }

// Digest computes a digest of the model's content.
func (f *Files) Digest() (string, error) { return weights.Digest(f.Path) }

// Name returns the model's name: the name of its folder, or of its file without ".gguf" and the
// number of a part.
func (f *Files) Name() string { return weights.ModelName(f.Path) }

// Close unmaps the files. Stages loaded without Dense must not be used afterwards.
func (f *Files) Close() error { return f.Source.Close() }
