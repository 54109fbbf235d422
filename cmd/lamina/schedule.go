package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// maxShown bounds the actions of all stages that are printed.
const maxShown = 1 << 20

type scheduleCmd struct {
	Stages       int     `required:"" help:"Number of pipeline stages."`
	Microbatches int     `required:"" help:"Number of micro-batches in a step."`
	Schedule     string  `            help:"Schedule: gpipe, 1f1b, interleaved-1f1b or zero-bubble."                                 default:"1f1b"`
	Spans        int     `            help:"Number of spans of layers in a stage, with interleaved-1f1b. Default: 2 for it, else 1."`
	Forward      float64 `            help:"Cost of a micro-batch's forward pass over a stage, in any unit."                         default:"1"`
	Input        float64 `            help:"Cost of the part of the backward pass that computes the gradient of the input."          default:"1"`
	Weight       float64 `            help:"Cost of the part of the backward pass that computes the gradients of the weights."       default:"1"`
	Format       string  `            help:"Output: table, csv or svg."                                                              default:"table" enum:"table,csv,svg"`
}

// Run simulates a schedule and prints what each stage does when.
func (c *scheduleCmd) Run(e *verb.Env) error {
	config := schedule.Config{Name: c.Schedule, Stages: c.Stages, Spans: c.Spans, Micro: c.Microbatches}
	if config.Spans == 0 {
		config.Spans = schedule.DefaultSpans(config.Name)
	}
	if err := config.Check(); err != nil {
		return err
	}
	if n := config.Stages * config.Spans * config.Micro; 3*n > maxShown {
		return fault.Field("microbatches", "%d micro-batches on %d spans of %d stages are too many to show",
			config.Micro, config.Spans, config.Stages)
	}
	for name, cost := range map[string]float64{"forward": c.Forward, "input": c.Input, "weight": c.Weight} {
		if !(cost > 0 && cost <= 1e9) {
			return fault.Field(name, "want a positive cost, got %v", cost)
		}
	}
	lists, err := config.All()
	if err != nil {
		return err
	}
	r, err := schedule.Simulate(lists, schedule.Costs{Forward: c.Forward, Input: c.Input, Weight: c.Weight})
	if err != nil {
		return err
	}
	switch c.Format {
	case "csv":
		return scheduleCSV(e.Stdout, r)
	case "svg":
		return scheduleSVG(e.Stdout, config, r)
	}
	return scheduleTable(e.Stdout, config, r)
}

// scheduleTable prints the figures of a schedule and the actions of each stage in order. Time in
// which a stage waits is shown as "-" and its length.
func scheduleTable(out io.Writer, c schedule.Config, r schedule.Result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "SCHEDULE\t%s\nSTAGES\t%d\n", c.Name, c.Stages)
	if c.Spans > 1 {
		fmt.Fprintf(w, "SPANS\t%d a stage\n", c.Spans)
	}
	fmt.Fprintf(w, "MICRO-BATCHES\t%d\nMAKESPAN\t%.6g\nBUBBLE\t%.2f %%\n\n", c.Micro, r.Makespan, 100*r.Bubble)
	fmt.Fprintln(w, "STAGE\tIDLE\tPEAK\tACTIONS")
	for stage, list := range r.Timeline {
		var text []string
		var at float64
		wait := func(until float64) {
			if gap := until - at; gap > 1e-9*r.Makespan {
				text = append(text, fmt.Sprintf("-%.4g", gap))
			}
		}
		for _, a := range list {
			wait(a.Start)
			text = append(text, a.String())
			at = a.End
		}
		wait(r.Makespan)
		fmt.Fprintf(w, "%d\t%.2f %%\t%.4g\t%s\n", stage, 100*r.Idle[stage], r.Peak[stage], strings.Join(text, " "))
	}
	return w.Flush()
}

// scheduleCSV prints one line for each action.
func scheduleCSV(out io.Writer, r schedule.Result) error {
	w := csv.NewWriter(out)
	lines := [][]string{{"stage", "start", "end", "pass", "microbatch", "span"}}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 9, 64) }
	for stage, list := range r.Timeline {
		for _, a := range list {
			lines = append(lines, []string{strconv.Itoa(stage), number(a.Start), number(a.End), a.Kind.String(),
				strconv.Itoa(a.Micro), strconv.Itoa(a.Span)})
		}
	}
	return w.WriteAll(lines)
}
