package main

import (
	"encoding/json"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

type sampleCmd struct {
	Rules string `required:"" help:"File with {\"logits\" or \"probs\": [...], \"history\": [ids], \"chain\": [{rule: value}, ...]}, as JSON; - means standard input."`
}

// sampleResult holds the tokens that the chain keeps, most likely first.
type sampleResult struct {
	IDs           []int32   `json:"ids"`
	Probabilities []float64 `json:"probabilities"`
}

// Run applies a sampler chain to a row of logits and prints the tokens that it keeps.
func (c *sampleCmd) Run(e *verb.Env) error {
	text, err := readInput(e, c.Rules)
	if err != nil {
		return err
	}
	q, err := sample.ParseQuestion(text)
	if err != nil {
		return err
	}
	left, err := q.Chain.Leave(q.Logits, q.History, q.Seed)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run chain")
	}
	r := sampleResult{IDs: []int32{}, Probabilities: []float64{}}
	for _, l := range left {
		r.IDs, r.Probabilities = append(r.IDs, l.ID), append(r.Probabilities, l.Probability)
	}
	return json.NewEncoder(e.Stdout).Encode(r)
}
