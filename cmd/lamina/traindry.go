package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// dryRun checks the manifest and prints what the run takes.
func (c *trainCmd) dryRun(e *verb.Env, manifest []byte) error {
	m, err := trainer.ParseManifest(manifest)
	if err != nil {
		return err
	}
	set, end, err := c.KernelSet()
	if err != nil {
		return err
	}
	defer end()
	r, err := m.Estimate(e.Ctx, c.Stages, c.Replicas, set)
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	fmt.Fprintf(e.Stdout, "%s: %d parameters, %d of them trainable\n", r.Run, r.Parameters, r.Trainable)
	fmt.Fprintf(e.Stdout, "data: %d tokens for training, %d for validation\n", r.TrainingTokens, r.ValidationToken)
	fmt.Fprintf(e.Stdout, "%s of %d tokens: %d tokens, %.2f epochs\n", plural.Of(r.Steps, "step"), r.TokensPerStep,
		r.Tokens, r.Epochs)
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "stage\tlayers\tparameters\tweights\toptimizer\tgradients\tactivations\tall MiB\tforward ms\tbackward ms\t")
	for i, s := range r.Stages {
		fmt.Fprintf(w, "%d\t%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%.2f\t\n", i, strings.Join(s.Layers, ","),
			s.Parameters, mib(s.Weights), mib(s.OptimizerState), mib(s.Gradients), mib(s.Activations), mib(s.Memory()),
			1e3*s.ForwardSeconds, 1e3*s.BackwardSeconds)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range []struct {
		where   string
		seconds float64
	}{
		{fmt.Sprintf("a machine like this one for each stage (bubble %.1f %%)", 100*r.Bubble), r.StepSeconds},
		{"all stages on this machine", r.SharedStepSeconds},
	} {
		fmt.Fprintf(e.Stdout, "%s: %.3g s a step, %.0f tokens/s, %v in all\n", l.where, l.seconds,
			float64(r.TokensPerStep)/l.seconds, time.Duration(l.seconds*float64(r.Steps)*1e9).Round(time.Second))
	}
	fmt.Fprintln(e.Stdout, "measured on this machine; without the network, validations and the optimizer's steps")
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
