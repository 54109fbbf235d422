package main

import (
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type embedCmd struct {
	verb.KernelFlags
	connectFlags
	Model     string `short:"m" help:"GGUF file or Hugging Face folder of an encoder (BERT, XLM-RoBERTa) or a decoder. With --router: the name or digest of a model." type:"model"`
	Router    string `help:"Address of a router that computes the embeddings, instead of this process." env:"LAMINA_ROUTER"`
	Stages    int    `help:"Number of stages into which the model is split. The embeddings have the same bits for any number." default:"1"`
	Pooling   string `help:"Rows that make the embedding: mean, first or last. Default: what the model's files say; otherwise the mean for encoders and the last row for decoders." enum:"auto,mean,first,last" default:"auto"`
	Normalize *bool  `help:"Scale embeddings to an L2 norm of 1. Default: what the model's files say; otherwise on." negatable:""`
	Batch     int    `help:"Tokens that are computed together. The embeddings have the same bits for any number." default:"512"`
	Format    string `help:"Output: text (a JSON list a line) or json (one object)." enum:"text,json" default:"text"`
}

// Run prints the embeddings of the texts on standard input.
func (c *embedCmd) Run(e *verb.Env) error {
	if c.Batch < 1 {
		return fault.Field("batch", "want 1 token or more, got %d", c.Batch)
	}
	if c.Router != "" {
		return c.remote(e)
	}
	if c.Model == "" {
		return fault.Field("model", "name a file or folder with -m, or a router with --router")
	}
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return err
	}
	return verb.WithModel(c.Model, c.KernelFlags, func(f *model.Files, set kernel.Set[float32]) error {
		p, err := f.Pooling()
		if err != nil {
			return err
		}
		if c.Pooling != "auto" {
			p.Kind = model.PoolKind(c.Pooling)
		}
		if c.Normalize != nil {
			p.Normalize = *c.Normalize
		}
		texts, err := readTexts(e.Stdin, v, p)
		if err != nil {
			return err
		}
		batches, positions := c.batches(texts)
		chain, err := verb.LoadChain(f, c.Stages, 1, positions, set, model.LoadOptions{Encoder: true})
		if err != nil {
			return err
		}
		return c.print(e, chain, batches, p)
	})
}

// readTexts reads the JSON strings of input and encodes them.
func readTexts(input io.Reader, v *vocab.Vocab, p model.Pooling) ([][]int32, error) {
	end := func(id int32) bool {
		_, kind, err := v.Token(id)
		return err == nil && kind == vocab.KindControl
	}
	in := newLines(input)
	var out [][]int32
	for n := 1; ; n++ {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "read line %d of standard input", n)
		}
		if line == "" {
			continue
		}
		var text *string
		if err := json.Unmarshal([]byte(line), &text); err != nil || text == nil || !utf8.ValidString(line) {
			return nil, fault.New(fault.Invalid, "line %d of standard input: want a JSON string", n)
		}
		ids, err := v.Encode(*text, vocab.Options{BOS: true})
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "encode line %d of standard input", n)
		}
		if len(ids) == 0 {
			return nil, fault.New(fault.Invalid, "line %d of standard input: the text has no tokens", n)
		}
		out = append(out, p.Truncate(ids, end))
	}
}

// batches groups the texts, in their order, into batches of at most c.Batch tokens or one longer text. It
// returns the largest number of cache positions that a batch fills, in whole pages.
func (c *embedCmd) batches(texts [][]int32) (out [][][]int32, positions int) {
	for len(texts) > 0 {
		n, rows, filled := 0, 0, 0
		for n < len(texts) && (n == 0 || rows+len(texts[n]) <= c.Batch) {
			rows += len(texts[n])
			filled += (len(texts[n]) + kvcache.DefaultPageLen - 1) / kvcache.DefaultPageLen * kvcache.DefaultPageLen
			n++
		}
		out, texts, positions = append(out, texts[:n]), texts[n:], max(positions, filled)
	}
	return out, positions
}

// print computes the embeddings batch by batch and prints them in the order of the texts.
func (c *embedCmd) print(e *verb.Env, chain *verb.Chain, batches [][][]int32, p model.Pooling) error {
	all := [][]float32{}
	for _, texts := range batches {
		some, err := chain.Embed(texts, p)
		if err != nil {
			return err
		}
		if c.Format == "json" {
			all = append(all, some...)
			continue
		}
		for _, embedding := range some {
			if err := verb.PrintJSON(e, embedding); err != nil {
				return err
			}
		}
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, struct {
			Embeddings [][]float32 `json:"embeddings"`
		}{all})
	}
	return nil
}
