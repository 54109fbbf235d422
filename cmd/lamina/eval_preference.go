package main

import (
	"fmt"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

type evalPreferenceCmd struct {
	evalModel
	rendererFlags
	Reference string  `help:"Model that the policy is compared with. Default: the model without its adapter." type:"model"`
	Data      string  `required:"" help:"File of pairs, as JSON lines: {\"prompt_ids\", \"chosen_ids\", \"rejected_ids\"}, or {\"prompt\", \"chosen\", \"rejected\"} of texts or messages; - means standard input."`
	Beta      float64 `help:"Strength of the preference: the factor of the log-probability ratios." default:"0.1"`
	Smoothing float64 `help:"Label smoothing: the probability that a label is wrong, from 0 to below 0.5." default:"0"`
}

// preferenceResult is what --format json prints.
type preferenceResult struct {
	Loss     float64      `json:"loss"`     // mean over the pairs
	Accuracy float64      `json:"accuracy"` // share of the pairs with a positive margin
	Pairs    []pairResult `json:"pairs"`
}

// pairResult holds a pair's sums of log-probabilities over the tokens of its answers, in nats.
type pairResult struct {
	Line              int     `json:"line"`
	PolicyChosen      float64 `json:"policy_chosen"`
	PolicyRejected    float64 `json:"policy_rejected"`
	ReferenceChosen   float64 `json:"reference_chosen"`
	ReferenceRejected float64 `json:"reference_rejected"`
	Margin            float64 `json:"margin"`
	Loss              float64 `json:"loss"`
}

// Run measures the loss of every pair.
func (c *evalPreferenceCmd) Run(e *verb.Env) error {
	if !(c.Beta > 0 && c.Beta <= 1e6) {
		return fault.Field("beta", "want a positive number, got %v", c.Beta)
	}
	if !(c.Smoothing >= 0 && c.Smoothing < 0.5) {
		return fault.Field("smoothing", "want a number from 0 to below 0.5, got %v", c.Smoothing)
	}
	rows, err := readRows(e, c.Data)
	if err != nil {
		return err
	}
	var r preferenceResult
	var pairs []*tuning.Pair
	err = c.open(func(m *opened) error {
		if pairs, err = c.pairs(e, rows, m.Spec.Context); err != nil {
			return err
		}
		r.Pairs = make([]pairResult, len(pairs))
		err := m.eachPair(e, pairs, func(i int, chosen, rejected float64) {
			r.Pairs[i].Line, r.Pairs[i].PolicyChosen, r.Pairs[i].PolicyRejected = pairs[i].Line, chosen, rejected
		})
		if err != nil || c.Reference != "" {
			return err
		}
		m.adapter = nil // the reference is the base
		return m.eachPair(e, pairs, r.setReference)
	})
	if err == nil && c.Reference != "" {
		reference := evalModel{KernelFlags: c.KernelFlags, Model: c.Reference, Stages: 1}
		err = reference.open(func(m *opened) error { return m.eachPair(e, pairs, r.setReference) })
	}
	if err != nil {
		return err
	}
	r.finish(c.Beta, c.Smoothing)
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	_, err = fmt.Fprintf(e.Stdout, "loss %.6f, accuracy %.4f over %s\n", r.Loss, r.Accuracy,
		plural.Of(len(r.Pairs), "pair"))
	return err
}

func (r *preferenceResult) setReference(i int, chosen, rejected float64) {
	r.Pairs[i].ReferenceChosen, r.Pairs[i].ReferenceRejected = chosen, rejected
}

// finish computes margins, losses and the accuracy.
func (r *preferenceResult) finish(beta, smoothing float64) {
	for i := range r.Pairs {
		p := &r.Pairs[i]
		loss := tuning.DPOPair(tuning.Sums{Chosen: p.PolicyChosen, Rejected: p.PolicyRejected},
			tuning.Sums{Chosen: p.ReferenceChosen, Rejected: p.ReferenceRejected}, beta, smoothing)
		p.Margin, p.Loss = loss.Margin, loss.Loss
		r.Loss += p.Loss / float64(len(r.Pairs))
		if p.Margin > 0 {
			r.Accuracy += 1 / float64(len(r.Pairs))
		}
	}
}

// pairs reads the rows.
func (c *evalPreferenceCmd) pairs(e *verb.Env, rows []row, context int) ([]*tuning.Pair, error) {
	renderer, err := c.renderer(rows, c.Model, context)
	if err != nil {
		return nil, err
	}
	var out []*tuning.Pair
	for _, row := range rows {
		p, err := tuning.ParsePreference(row.line, row.text)
		if err != nil {
			return nil, err
		}
		pair, err := renderer.RenderPair(e.Ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, pair)
	}
	return out, nil
}

// eachPair computes the sums of log-probabilities of both answers of every pair.
func (m *opened) eachPair(e *verb.Env, pairs []*tuning.Pair, take func(i int, chosen, rejected float64)) error {
	var samples []*tuning.Sample
	for _, p := range pairs {
		samples = append(samples, p.Chosen, p.Rejected)
	}
	if err := m.load(samples); err != nil {
		return err
	}
	for i := range pairs {
		if err := e.Ctx.Err(); err != nil {
			return err
		}
		var sums [2]float64
		for j, s := range samples[2*i : 2*i+2] {
			nll, _, err := m.logLikelihoods(s)
			if err != nil {
				return err
			}
			sums[j] = -nll
		}
		take(i, sums[0], sums[1])
	}
	return nil
}
