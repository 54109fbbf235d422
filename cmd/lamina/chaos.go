package main

import (
	"os"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chaos"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

type chaosCmd struct {
	Manifest string `required:"" help:"JSON file that describes the fleet, the load and the faults. examples/chaos has some."`
	Model    string `            help:"GGUF file, or folder with a GGUF or Hugging Face model, if the manifest names none. Default: the bundled model." short:"m" type:"model"`
	Binary   string `            help:"The lamina binary of the fleet. Default: this one."`
	Logs     string `            help:"Folder for the logs of the members. Default: a temporary one, which is kept if a promise is broken."`
	Format   string `            help:"Output: text or json. With json, the transcript goes to standard error."                                                   enum:"text,json" default:"text"`
}

// Run runs the manifest. It returns an error, so that the exit code is 1, if a promise does not hold.
func (c *chaosCmd) Run(e *verb.Env) error {
	text, err := os.ReadFile(c.Manifest)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "read manifest")
	}
	m, err := chaos.ParseManifest(text)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "%s", c.Manifest)
	}
	o := chaos.Options{Binary: c.Binary, Model: c.Model, Logs: c.Logs, Out: e.Stdout}
	if o.Model == "" {
		if o.Model, err = bundledModel(); err != nil {
			return err
		}
	}
	if o.Binary == "" {
		if o.Binary, err = os.Executable(); err != nil {
			return fault.Wrap(fault.Internal, err, "find this binary")
		}
	}
	if c.Format == "json" {
		o.Out = e.Stderr
	}
	result, err := chaos.Run(e.Ctx, m, o)
	if result != nil && c.Format == "json" {
		if printed := verb.PrintJSON(e, result); printed != nil {
			return printed
		}
	} else if result != nil {
		if printed := result.Print(e.Stdout); printed != nil {
			return printed
		}
	}
	if err == nil && !result.Pass {
		err = fault.New(fault.Internal, "%s: a promise did not hold", m.Name)
	}
	return err
}
