package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/report"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

type reportCmd struct {
	Runs   []string `arg:"" name:"run" help:"Folder of a training run. Several runs are compared in one report."`
	Out    string   `short:"o"         help:"File to write; - writes to standard output."                                       default:"report.html"`
	Format string   `                  help:"html (one page with curves, figures and sample texts, which loads nothing else) or csv (a line a step)." default:"html" enum:"html,csv"`
}

// Run writes a report.
func (c *reportCmd) Run(e *verb.Env) error {
	var runs []*report.Run
	for _, dir := range c.Runs {
		r, err := report.Read(dir)
		if err != nil {
			return err
		}
		runs = append(runs, r)
	}
	write := report.WriteHTML
	if c.Format == "csv" {
		write = report.WriteCSV
	}
	if c.Out == "-" || c.Format == "csv" && c.Out == "report.html" {
		return write(e.Stdout, runs)
	}
	return errors.Join(writeReport(c.Out, func(w io.Writer) error { return write(w, runs) }), func() error {
		_, err := fmt.Fprintln(e.Stdout, c.Out)
		return err
	}())
}

func writeReport(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "write the report")
	}
	return errors.Join(write(f), f.Close())
}
