package main

import (
	"fmt"
	"math"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// perplexityBatch is the number of ids of a window that are computed in one batch.
const perplexityBatch = 512

type perplexityCmd struct {
	verb.KernelFlags
	Model  string `short:"m" required:"" help:"GGUF file or Hugging Face folder." type:"model"`
	File   string `short:"f" required:"" help:"File with plain text; - means standard input."`
	Ctx    int    `help:"Number of ids in a window." default:"512"`
	Stages int    `help:"Number of stages into which the model is split." default:"1"`
	Chunks int    `help:"Maximum number of windows to score; 0 means all."`
	Format string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// perplexityResult is what --format json prints.
type perplexityResult struct {
	Perplexity float64 `json:"perplexity"`
	Chunks     int     `json:"chunks"` // windows scored
	Tokens     int     `json:"tokens"` // of the whole text
	Scored     int     `json:"scored"` // tokens whose log-likelihoods were added up
	Seconds    float64 `json:"seconds"`
}

// Run measures the perplexity and prints it.
func (c *perplexityCmd) Run(e *verb.Env) error {
	r, err := c.result(e)
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	_, err = fmt.Fprintf(e.Stdout, "perplexity %.4f over %s of %d (%d of %d ids scored)\n", r.Perplexity,
		plural.Of(r.Chunks, "window"), c.Ctx, r.Scored, r.Tokens)
	return err
}

// result measures the perplexity in the same way as llama.cpp, so that figures can be compared. It
// splits the ids of the text into windows of Ctx ids and drops the rest. In each window it replaces
// the first id by the begin-of-text id if the vocabulary adds one, and scores each id of the second
// half given all ids before it.
func (c *perplexityCmd) result(e *verb.Env) (*perplexityResult, error) {
	if c.Ctx < 4 || c.Chunks < 0 {
		return nil, fault.Field("ctx", "%d windows of %d ids: want windows of 4 ids or more", c.Chunks, c.Ctx)
	}
	text, err := readInput(e, c.File)
	if err != nil {
		return nil, err
	}
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return nil, err
	}
	ids, err := v.Encode(string(text), vocab.Options{BOS: true})
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "encode %s", c.File)
	}
	if len(ids) < c.Ctx {
		return nil, fault.Field("file", "%s has %d ids, fewer than a window of %d", c.File, len(ids), c.Ctx)
	}
	r := perplexityResult{Tokens: len(ids)}
	began := time.Now()
	err = verb.WithModel(c.Model, c.KernelFlags, func(f *model.Files, set kernel.Set[float32]) error {
		if c.Ctx > f.Spec.Context {
			return fault.Field("ctx", "windows of %d ids: the context length of %s is %d", c.Ctx, f.Path,
				f.Spec.Context)
		}
		if err := checkVocab(v, f); err != nil {
			return err
		}
		return c.measure(e, f, set, v, ids, &r)
	})
	r.Seconds = time.Since(began).Seconds()
	return &r, err
}

// measure scores all windows.
func (c *perplexityCmd) measure(e *verb.Env, f *model.Files, set kernel.Set[float32], v *vocab.Vocab, ids []int32,
	r *perplexityResult) error {
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

// score returns the sum of the negative log-likelihoods of the ids of a window after position
// first. batch is the number of ids that are computed at once; it bounds the memory for logits.
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

// checkVocab returns an error if the vocabulary has ids for which the model has no logits.
func checkVocab(v *vocab.Vocab, f *model.Files) error {
	if v.Size() > f.Spec.Vocab {
		return fault.New(fault.DataLoss, "match %s to its vocabulary: the model has %d ids, the vocabulary %d", f.Path,
			f.Spec.Vocab, v.Size())
	}
	return nil
}
