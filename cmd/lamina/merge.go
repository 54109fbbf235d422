package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/export"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

type mergeCmd struct {
	quantFlags
	Model   string `short:"m" required:"" help:"GGUF file or Hugging Face folder: the base of the adapter." type:"model"`
	Adapter string `required:"" help:"Folder of the adapter, in PEFT's layout."`
	Out     string `arg:"" help:"What to write: a GGUF file if the name ends with .gguf, else a Hugging Face folder."`
	Type    string `help:"Type of the weights, as in lamina quantize; F32 or BF16 for a folder." default:"BF16"`
}

// Run writes the merged model.
func (c *mergeCmd) Run(e *verb.Env) error {
	if sameFile(c.Model, c.Out) {
		return fault.Field("out", "%s is the source", c.Out)
	}
	if !strings.EqualFold(filepath.Ext(c.Out), ".gguf") {
		dtype, err := tensor.Parse(strings.ToUpper(c.Type))
		if err != nil || dtype != tensor.F32 && dtype != tensor.BF16 {
			return fault.Field("type", "%q: a Hugging Face folder has weights of type F32 or BF16", c.Type)
		}
		if err := mergeTo(c.Out, c.Model, c.Adapter, dtype); err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.Stdout, "wrote %s\n", c.Out)
		return err
	}
	// A GGUF file is made of a folder with the merged weights in float32, so they are rounded once.
	if err := os.MkdirAll(filepath.Dir(c.Out), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(c.Out), ".merged-*")
	if err != nil {
		return err
	}
	err = mergeTo(dir, c.Model, c.Adapter, tensor.F32)
	if err == nil {
		w := exporter{quantFlags: c.quantFlags, in: dir, out: c.Out, kind: c.Type}
		err = w.gguf(e)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// mergeTo writes a model with its adapter merged to a Hugging Face folder.
func mergeTo(dir, path, adapterDir string, dtype tensor.DType) error {
	a, err := adapter.Open(adapterDir)
	if err != nil {
		return err
	}
	f, err := model.Open(path)
	if err != nil {
		return err
	}
	err = export.MergedToHF(
		dir,
		f,
		a,
		dtype,
		func(dir string) error { return vocab.WriteGGUFAsHF(f.GGUF().Meta(), dir) },
	)
	return errors.Join(err, f.Close())
}
