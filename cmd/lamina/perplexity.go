package main

import (
	"fmt"
	"math"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// perplexityBatch is how many ids of a window are computed at once.
const perplexityBatch = 512

type perplexityCmd struct {
	verb.KernelFlags
	Model  string `short:"m" required:"" help:"GGUF file or Hugging Face folder."`
	File   string `short:"f" required:"" help:"Plain text; - is standard input."`
	Ctx    int    `help:"Ids in a window." default:"512"`
	Stages int    `help:"Cut the model into this many stages." default:"1"`
	Chunks int    `help:"Most windows to score; 0 scores all."`
	Format string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// perplexityResult is what --format json prints.
type perplexityResult struct {
	Perplexity float64 `json:"perplexity"`
	Chunks     int     `json:"chunks"` // windows scored
	Tokens     int     `json:"tokens"` // of the whole text
	Scored     int     `json:"scored"` // tokens whose likelihood counts
	Seconds    float64 `json:"seconds"`
}

// Run measures as llama.cpp does, so that figures can be compared: the text's ids
// fall into windows of ctx, a window's first id is replaced by the begin token where
// the vocabulary adds one, and each id of its second half is scored after those
// before it. What is left over at the end counts for nothing.
func (c *perplexityCmd) Run(e *verb.Env) error {
	if c.Ctx < 4 || c.Chunks < 0 {
		return fault.Field("ctx", "windows of %d ids, at most %d of them: want 4 ids or more", c.Ctx, c.Chunks)
	}
	text, err := readInput(e, c.File)
	if err != nil {
		return err
	}
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return err
	}
	ids, err := v.Encode(string(text), vocab.Options{BOS: true})
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "encode %s", c.File)
	}
	if len(ids) < c.Ctx {
		return fault.Field("file", "%s has %d ids, fewer than a window's %d", c.File, len(ids), c.Ctx)
	}
	r := perplexityResult{Tokens: len(ids)}
	began := time.Now()
	err = verb.WithModel(c.Model, c.KernelFlags, func(f *model.Files, set kernel.Set[float32]) error {
		if c.Ctx > f.Spec.Context {
			return fault.Field("ctx", "windows of %d ids: the context of %s is %d", c.Ctx, f.Path, f.Spec.Context)
		}
		if err := checkVocab(v, f); err != nil {
			return err
		}
		return c.measure(e, f, set, v, ids, &r)
	})
	if err != nil {
		return err
	}
	r.Seconds = time.Since(began).Seconds()
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	_, err = fmt.Fprintf(e.Stdout, "perplexity %.4f over %d windows of %d (%d of %d ids scored)\n", r.Perplexity, r.Chunks, c.Ctx, r.Scored, r.Tokens)
	return err
}

// measure scores every window.
func (c *perplexityCmd) measure(e *verb.Env, f *model.Files, set kernel.Set[float32], v *vocab.Vocab, ids []int32, r *perplexityResult) error {
	chain, err := verb.LoadChain(f, c.Stages, 1, c.Ctx, set, model.LoadOptions{})
	if err != nil {
		return err
	}
	bos, hasBOS := v.BOS()
	windows := len(ids) / c.Ctx
	if c.Chunks > 0 {
		windows = min(windows, c.Chunks)
	}
	var sum float64
	for ; r.Chunks < windows; r.Chunks++ {
		if err := e.Ctx.Err(); err != nil {
			return err
		}
		window := make([]int32, c.Ctx)
		copy(window, ids[r.Chunks*c.Ctx:])
		if hasBOS && v.AddBOS() {
			window[0] = bos
		}
		nll, err := score(chain, set, window, c.Ctx/2, perplexityBatch)
		if err != nil {
			return err
		}
		sum += nll
		r.Scored += c.Ctx - 1 - c.Ctx/2
		if c.Format == "text" {
			fmt.Fprintf(e.Stderr, "window %d of %d: %.4f\n", r.Chunks+1, windows, math.Exp(sum/float64(r.Scored)))
		}
	}
	r.Perplexity = math.Exp(sum / float64(r.Scored))
	return nil
}

// score sums the negative log-likelihoods of a window's ids after position first.
// Batch is how many of them are computed at once: a window is one batch unless its
// logits would fill memory.
func score(c *verb.Chain, set kernel.Set[float32], window []int32, first, batch int) (float64, error) {
	s := c.NewSequence()
	defer s.Free()
	var sum float64
	rows := window[:len(window)-1] // nothing follows the last id
	for at := 0; at < len(rows); at += batch {
		end := min(at+batch, len(rows))
		scored := max(0, min(end-first, end-at))
		logits, err := c.Forward(verb.Entry{Seq: s, IDs: rows[at:end], Logits: scored})
		if err != nil {
			return 0, err
		}
		if scored == 0 {
			continue
		}
		loss := make([]float64, scored)
		set.CrossEntropy(loss, nil, logits, window[end-scored+1:end+1], 1, scored, len(logits)/scored)
		for _, l := range loss {
			sum += l
		}
	}
	return sum, nil
}

// checkVocab reports a vocabulary with ids that the model has no logits for.
func checkVocab(v *vocab.Vocab, f *model.Files) error {
	if v.Size() > f.Spec.Vocab {
		return fault.New(fault.DataLoss, "match %s to its vocabulary: the model has %d ids, the vocabulary %d", f.Path, f.Spec.Vocab, v.Size())
	}
	return nil
}
