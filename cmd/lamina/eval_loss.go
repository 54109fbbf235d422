package main

import (
	"fmt"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

type evalLossCmd struct {
	evalModel
	rendererFlags
	Data string `required:"" help:"File of rows, as JSON lines: {\"ids\", \"trained_from\"}, or conversations in any form; - means standard input."`
}

// lossResult is what --format json prints.
type lossResult struct {
	Loss    float64      `json:"loss"` // mean over all trained tokens, in nats
	Tokens  int          `json:"tokens"`
	Samples []sampleLoss `json:"samples"`
	Refused []string     `json:"refused,omitempty"`
}

// sampleLoss is the loss of one sample.
type sampleLoss struct {
	Line   int     `json:"line"`
	Loss   float64 `json:"loss"` // mean over the sample's trained tokens
	Tokens int     `json:"tokens"`
}

// Run measures the loss of every sample.
func (c *evalLossCmd) Run(e *verb.Env) error {
	rows, err := readRows(e, c.Data)
	if err != nil {
		return err
	}
	var r lossResult
	err = c.open(func(m *opened) error {
		renderer, err := c.renderer(rows, c.Model, m.Spec.Context)
		if err != nil {
			return err
		}
		samples, report, err := c.samples(e, rows, renderer)
		if err != nil {
			return err
		}
		if c.Format == "text" {
			fmt.Fprint(e.Stderr, report)
		}
		return r.measure(e, m, samples)
	})
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	_, err = fmt.Fprintf(e.Stdout, "loss %.6f over %s of %s\n", r.Loss, plural.Of(r.Tokens, "token"),
		plural.Of(len(r.Samples), "sample"))
	return err
}

// renderer returns a renderer for rows. The model needs a vocabulary only if rows have to be encoded.
func (c *rendererFlags) renderer(rows []row, path string, context int) (*tuning.Renderer, error) {
	var files *chatFiles
	if text, tools := needsText(rows); text {
		var err error
		if files, err = c.loadChatFiles(path, tools); err != nil {
			return nil, err
		}
	}
	return tuning.New(c.config(files, context))
}

// measure adds up the losses of the samples that are not refused.
func (r *lossResult) measure(e *verb.Env, m *opened, samples []*tuning.Sample) error {
	var kept []*tuning.Sample
	for _, s := range samples {
		if n, refused := s.Refused(); refused {
			r.Refused = append(r.Refused, n.String())
			continue
		}
		kept = append(kept, s)
	}
	if len(kept) == 0 {
		return fault.Field("data", "no token is trained: %s", r.Refused[0])
	}
	if err := m.load(kept); err != nil {
		return err
	}
	var sum float64
	for _, s := range kept {
		if err := e.Ctx.Err(); err != nil {
			return err
		}
		loss, n, err := m.logLikelihoods(s)
		if err != nil {
			return err
		}
		sum += loss
		r.Tokens += n
		r.Samples = append(r.Samples, sampleLoss{Line: s.Line, Loss: loss / float64(n), Tokens: n})
	}
	r.Loss = sum / float64(r.Tokens)
	return nil
}
