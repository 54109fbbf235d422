package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/export"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type exportCmd struct {
	quantFlags
	Model string `arg:"" help:"GGUF file, Hugging Face folder, or folder of a finished training run." type:"model"`
	Out   string `arg:"" help:"What to write: a GGUF file if the name ends with .gguf, else a Hugging Face folder."`
	Type  string `       help:"Type of the weights, as in lamina quantize; F32 or BF16 for a folder."               default:"BF16"`
}

// Run writes the model in another format.
func (c *exportCmd) Run(e *verb.Env) error {
	w := exporter{quantFlags: c.quantFlags, in: trained(c.Model), out: c.Out, kind: c.Type}
	if dir := filepath.Join(w.in, "adapter"); adapter.Is(dir) { // of a run that has no model of its own
		a, err := adapter.Open(dir)
		if err != nil {
			return err
		}
		return fault.Field("model", "%s is the run of an adapter, which is merged with its base: lamina merge -m %s "+
			"--adapter %s %s --type %s", c.Model, a.Base, dir, c.Out, c.Type)
	}
	if strings.EqualFold(filepath.Ext(c.Out), ".gguf") {
		return w.gguf(e)
	}
	return w.folder(e)
}

// trained returns the folder of the trained model if path is that of a training run, else path.
func trained(path string) string {
	inside := filepath.Join(path, "model")
	_, manifest := os.Stat(filepath.Join(path, "manifest.json"))
	_, config := os.Stat(filepath.Join(path, "config.json"))
	if _, err := os.Stat(filepath.Join(inside, "config.json")); err == nil && manifest == nil &&
		errors.Is(config, fs.ErrNotExist) {
		return inside
	}
	return path
}

// exporter writes a model in another form.
type exporter struct {
	quantFlags
	in, out, kind string
}

// check refuses to write over the source.
func (w *exporter) check() error {
	if sameFile(w.in, w.out) {
		return fault.Field("out", "%s is the source", w.out)
	}
	return nil
}

// gguf writes a GGUF file.
func (w *exporter) gguf(e *verb.Env) error {
	began := time.Now()
	o, err := w.options(e)
	if err == nil {
		err = w.check()
	}
	if err != nil {
		return err
	}
	at, err := weights.Locate(w.in)
	if err != nil {
		return err
	}
	var result export.Result
	if at.Format == weights.FormatGGUF {
		result, err = w.requantize(e, at.Path, o)
	} else {
		result, err = w.convert(e, o)
	}
	if err != nil {
		return err
	}
	r := exported{Type: o.Recipe.Name}
	for _, k := range result.Kinds {
		r.Kinds = append(r.Kinds, exportedStat(k))
	}
	total := exportedStat(result.Total)
	r.Total = &total
	return w.finish(e, &r, began)
}

func (w *exporter) requantize(e *verb.Env, path string, o export.Options) (export.Result, error) {
	g, err := weights.OpenGGUF(path)
	if err != nil {
		return export.Result{}, err
	}
	r, err := export.Requantize(e.Ctx, w.out, g, o)
	return r, errors.Join(err, g.Close())
}

func (w *exporter) convert(e *verb.Env, o export.Options) (export.Result, error) {
	f, err := model.Open(w.in)
	if err != nil {
		return export.Result{}, err
	}
	v, err := tokenizer.LoadVocab(w.in)
	if fault.CodeOf(err) == fault.NotFound {
		v, err = nil, nil // a model without a tokenizer
	}
	if err != nil {
		return export.Result{}, errors.Join(err, f.Close())
	}
	r, err := export.ToGGUF(e.Ctx, w.out, f, v, o)
	return r, errors.Join(err, f.Close())
}

// folder writes a Hugging Face folder.
func (w *exporter) folder(e *verb.Env) error {
	began := time.Now()
	dtype, err := tensor.Parse(strings.ToUpper(w.kind))
	if err != nil || dtype != tensor.F32 && dtype != tensor.BF16 {
		return fault.Field("type", "%q: a Hugging Face folder has weights of type F32 or BF16", w.kind)
	}
	if err := w.check(); err != nil {
		return err
	}
	f, err := model.Open(w.in)
	if err != nil {
		return err
	}
	err = export.ToHF(w.out, f, dtype, func(dir string) error { return vocab.WriteGGUFAsHF(f.GGUF().Meta(), dir) })
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return w.finish(e, &exported{Type: dtype.String()}, began)
}
