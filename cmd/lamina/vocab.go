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

// vocabGroup is what can be done with vocabularies.
type vocabGroup struct {
	Train vocabTrainCmd `cmd:"" help:"Learn a vocabulary from texts, as a tokenizer.json that other tools load."`
}

type vocabTrainCmd struct {
	Type    string   `help:"bpe (byte-level, cut by GPT-2's pattern) or unigram." enum:"bpe,unigram" default:"bpe"`
	Size    int      `required:"" help:"Ids of the vocabulary."`
	File    []string `short:"f" required:"" sep:"none" help:"Text, taken line by line; may be given more than once."`
	Out     string   `required:"" type:"path" help:"Folder for tokenizer.json and tokenizer_config.json; made where there is none."`
	Special []string `sep:"none" help:"A control token; they get the first ids, in the order given."`
	BOS     string   `name:"bos" help:"Which of them begins a text."`
	EOS     string   `name:"eos" help:"Which of them ends one."`
	Threads int      `help:"Threads; 0 is one a processor. They change nothing but the time." default:"0"`
}

// Run learns a vocabulary and writes it.
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
	told := -1
	v, err := train(e.Ctx, func(yield func(string) bool) {
		for _, l := range lines {
			for line := range l {
				if !yield(line) {
					return
				}
			}
		}
	}, c.Size, vocab.TrainOptions{Workers: threads, Special: c.Special, BOS: c.BOS, EOS: c.EOS, Progress: func(done, total int) {
		if tenth := 10 * done / max(total, 1); tenth > told {
			told = tenth
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
