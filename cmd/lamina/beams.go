package main

import (
	"fmt"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

type beamsCmd struct {
	verb.KernelFlags
	Model         string  `short:"m" required:"" help:"GGUF file or Hugging Face folder; no tokenizer is needed." type:"model"`
	IDs           string  `name:"ids" required:"" help:"Token ids of the prompt, separated by commas."`
	Beams         int     `help:"Number of beams." default:"4"`
	MaxTokens     int     `help:"Maximum number of new ids in a sequence." default:"16"`
	LengthPenalty float64 `help:"Exponent of the length by which the log-probability of a sequence is divided." default:"1"`
	EndID         []int32 `name:"end-id" help:"Id that ends a sequence; repeatable."`
	Stages        int     `help:"Number of stages into which the model is split." default:"1"`
	Format        string  `help:"Output: text or json." enum:"text,json" default:"text"`
}

// beamsResult is what --format json prints. The best sequence comes first.
type beamsResult struct {
	Sequences [][]int32 `json:"sequences"` // new ids
	Scores    []float64 `json:"scores"`
}

// Run searches for the most likely continuations.
func (c *beamsCmd) Run(e *verb.Env) error {
	parsed, err := parseIDs(c.IDs)
	if err != nil {
		return err
	}
	prompt := make([]int32, len(parsed))
	for i, id := range parsed {
		prompt[i] = int32(id)
	}
	if c.Beams < 1 || c.Beams > 256 || c.MaxTokens < 1 {
		return fault.Field("beams", "%d beams of %d ids: want 1 to 256, and one id or more", c.Beams, c.MaxTokens)
	}
	r := beamsResult{}
	err = verb.WithModel(c.Model, c.KernelFlags, func(f *model.Files, set kernel.Set[float32]) error {
		if err := verb.CheckIDs(prompt, f); err != nil {
			return err
		}
		if n := len(prompt) + c.MaxTokens; n > f.Spec.Context {
			return fault.Field("max-tokens", "%d ids in all: the context length of %s is %d", n, f.Path, f.Spec.Context)
		}
		chain, err := verb.LoadChain(f, c.Stages, 2*c.Beams, len(prompt)+c.MaxTokens, set, model.LoadOptions{})
		if err != nil {
			return err
		}
		beams := sample.NewBeams(c.Beams, c.MaxTokens, c.LengthPenalty, c.EndID)
		if err := search(chain, beams, prompt); err != nil {
			return err
		}
		for _, b := range beams.Done() {
			r.Sequences, r.Scores = append(r.Sequences, b.IDs), append(r.Scores, b.Score)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	for i, ids := range r.Sequences {
		fmt.Fprintf(e.Stdout, "%.5f\t%v\n", r.Scores[i], ids)
	}
	return nil
}

// search runs the beam search to its end. The first beam that continues a sequence takes over the
// cache of that sequence. Other beams that continue it start with an empty cache and compute their
// ids again, with bit-identical results.
func search(chain *verb.Chain, beams *sample.Beams, prompt []int32) error {
	caches := []verb.Sequence{chain.NewSequence()}
	defer func() {
		for _, s := range caches {
			s.Free()
		}
	}()
	for len(beams.Live()) > 0 {
		live := beams.Live()
		next, taken := make([]verb.Sequence, len(live)), make([]bool, len(caches))
		for i, b := range live {
			if !taken[b.From] {
				next[i], taken[b.From] = caches[b.From], true
			} else {
				next[i] = chain.NewSequence()
			}
		}
		for i, s := range caches {
			if !taken[i] {
				s.Free()
			}
		}
		caches = next
		entries := make([]verb.Entry, len(live))
		for i, b := range live {
			ids := append(append([]int32(nil), prompt...), b.IDs...)
			entries[i] = verb.Entry{Seq: caches[i], IDs: ids[caches[i].Len():], Logits: 1}
		}
		logits, err := chain.Forward(entries...)
		if err != nil {
			return err
		}
		rows, vocab := make([][]float32, len(live)), len(logits)/len(live)
		for i := range rows {
			rows[i] = logits[i*vocab : (i+1)*vocab]
		}
		beams.Advance(rows)
	}
	return nil
}
