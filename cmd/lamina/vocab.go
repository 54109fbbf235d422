package main

import (
	"context"
	"fmt"
	"iter"
	"os"
	"runtime"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// vocabGroup is the group of commands for vocabularies.
type vocabGroup struct {
	Train vocabTrainCmd `cmd:"" help:"Train a vocabulary on texts and write it as a tokenizer.json, which other tools can load."`
}

type vocabTrainCmd struct {
	Type    string   `help:"Kind of vocabulary: bpe (byte-level, with GPT-2's pre-tokenizer) or unigram." enum:"bpe,unigram" default:"bpe"`
	Size    int      `required:"" help:"Number of tokens in the vocabulary."`
	File    []string `short:"f" required:"" sep:"none" help:"Text file, read line by line; repeatable."`
	Out     string   `required:"" type:"path" help:"Folder for tokenizer.json and tokenizer_config.json; created if it does not exist."`
	Special []string `sep:"none" help:"Control token; repeatable. Control tokens get the first ids, in the given order."`
	BOS     string   `name:"bos" help:"The control token that begins a text."`
	EOS     string   `name:"eos" help:"The control token that ends a text."`
	Threads int      `help:"Number of threads; 0 means one for each processor. The result does not depend on it." default:"0"`
}

// Run trains a vocabulary and writes it.
func (c *vocabTrainCmd) Run(e *verb.Env) error {
	var lines []iter.Seq[string]
	for _, path := range c.File {
		text, err := os.ReadFile(path)
		if err != nil {
			return fault.Wrap(fault.NotFound, err, "read text")
		}
		if !utf8.Valid(text) {
			return fault.Field("file", "%s is not UTF-8", path)
		}
		if len(text) == 0 {
			return fault.Field("file", "%s is empty", path)
		}
		lines = append(lines, strings.Lines(string(text)))
	}
	threads := c.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return fault.Wrap(fault.Invalid, err, "make folder")
	}
	train := map[string]func(context.Context, iter.Seq[string], int, vocab.TrainOptions) (*vocab.Vocab, error){
		"bpe": vocab.TrainBPE, "unigram": vocab.TrainUnigram,
	}[c.Type]
	reported := -1 // tenths of the way that were printed
	v, err := train(e.Ctx, func(yield func(string) bool) {
		for _, l := range lines {
			for line := range l {
				if !yield(line) {
					return
				}
			}
		}
	}, c.Size, vocab.TrainOptions{Workers: threads, Special: c.Special, BOS: c.BOS, EOS: c.EOS,
		Progress: func(done, total int) {
			if tenth := 10 * done / max(total, 1); tenth > reported {
				reported = tenth
				fmt.Fprintf(e.Stderr, "%d of %d tokens\n", done, total)
			}
		}})
	if err != nil {
		return fault.Field("size", "%v", err)
	}
	if err := v.WriteHF(c.Out); err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "wrote %d tokens to %s\n", v.Size(), c.Out)
	return nil
}
