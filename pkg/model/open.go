package model

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Files is an open model: what its folder or file says, before a weight is touched.
type Files struct {
	Config Config
	Path   string
	Source weights.Source
	names  naming
	gguf   *weights.GGUF
}

// naming maps parameter names to the file's, and says how matrices lie in it.
type naming struct {
	file       func(name string) string
	transposed func(name string) bool // [I,N] in the file
	stacked    bool                   // experts' tensors are one [E,N,I] in the file

	interleaved bool // GPT-OSS's: gates and ups alternate in one tensor of all experts
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
	if err != nil {
		return nil, err
	}
	cfg, err := ParseHF(text)
	if err == nil {
		err = cfg.generationIDs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	tensors, err := weights.OpenSafetensors(path)
	if err != nil {
		return nil, err
	}
	source := weights.Source(tensors)
	if cfg.Experts > 0 && cfg.Architecture != "gpt-oss" {
		source = stacked{source}
	}
	f := &Files{Config: cfg, Path: path, Source: source, names: hfNaming(cfg, source)}
	if f.Config.TiedHead && ownHead(f) {
		f.Config.TiedHead = false // whatever the flag says
	}
	return f, nil
}

// ownHead reports whether a file that calls its head tied holds another one. Equal
// copies are common, in GPT-2 files above all.
func ownHead(f *Files) bool {
	embed := embedName
	if f.Config.Architecture == "gpt2" {
		embed = gpt2EmbedName
	}
	head, err := f.Source.Data(f.names.file(headName))
	if err != nil {
		return false
	}
	tied, err := f.Source.Data(f.names.file(embed))
	return err == nil && !bytes.Equal(head, tied)
}

// NewFiles is a model whose tensors, under their Hugging Face names, come from a
// source of the caller's making, such as random weights of a given type. Path is
// what errors call it.
func NewFiles(c Config, path string, source weights.Source) *Files {
	return &Files{Config: c, Path: path, Source: source, names: hfNaming(c, source)}
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

// FromGGUF is a model of an open GGUF file, which Close closes. Path is what errors
// call it.
func FromGGUF(g *weights.GGUF, path string) (*Files, error) {
	c, err := ggufConfig(g)
	if err != nil {
		return nil, err
	}
	return &Files{Config: c, Path: path, Source: g, gguf: g, names: ggufNaming(&c)}, nil
}

// GGUF is the open GGUF file, or nil for a Hugging Face folder.
func (f *Files) GGUF() *weights.GGUF { return f.gguf }

// Digest names the model by its content.
func (f *Files) Digest() (string, error) { return weights.Digest(f.Path) }

// Name is the model's name: that of its folder, or of its file without ".gguf" and
// the number of a part.
func (f *Files) Name() string { return weights.ModelName(f.Path) }

// Close unmaps the files; stages loaded without Dense must be gone by then.
func (f *Files) Close() error { return f.Source.Close() }
