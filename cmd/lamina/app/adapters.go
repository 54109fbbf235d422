package app

import (
	"context"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router"
)

// Adapter is a low-rank adapter in a folder, in PEFT's layout.
type Adapter struct {
	Model string // name or digest of the base model; empty for the only one
	Name  string
	Dir   string
	// AnyBase accepts an adapter that was trained on another base than the model.
	AnyBase bool
}

// ParseAdapter reads NAME=DIR or MODEL:NAME=DIR.
func ParseAdapter(text string) (Adapter, error) {
	name, dir, ok := strings.Cut(text, "=")
	a := Adapter{Name: name, Dir: dir}
	if at := strings.LastIndexByte(name, ':'); at >= 0 {
		a.Model, a.Name = name[:at], name[at+1:]
	}
	if !ok || a.Name == "" || a.Dir == "" {
		return a, fault.Field("adapter", "%q: want NAME=DIR or MODEL:NAME=DIR", text)
	}
	return a, nil
}

// adapterSources checks the adapters of the settings, against the model if the process serves one.
func (p *process) adapterSources() ([]router.AdapterSource, error) {
	var out []router.AdapterSource
	for _, a := range p.set.router.Adapters {
		if err := adapter.CheckName(a.Name); err != nil {
			return nil, err
		}
		values, err := adapter.Open(a.Dir)
		if err == nil {
			err = values.CheckServed()
		}
		if err == nil && p.set.tokenizer.Model != "" {
			var served opened
			if served, err = p.open(p.set.tokenizer.Model, p.set.tokenizer.Name); err == nil {
				err = served.files.Spec.CheckAdapter(values)
			}
			if err == nil && !a.AnyBase {
				err = values.CheckBase(served.digest)
			}
		}
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "load adapter %q", a.Name)
		}
		out = append(out, router.AdapterSource{Model: a.Model, Name: a.Name, Dir: a.Dir, AnyBase: a.AnyBase})
	}
	return out, nil
}

// awaitServed waits until a mesh has its pipelines, with the adapters of its settings.
func (p *process) awaitServed(ctx context.Context) error {
	if err := p.router.AwaitPipelines(ctx, p.set.pipelines); err != nil {
		return err
	}
	return p.router.AwaitAdapters(ctx)
}
