package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/evaluate"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/eval"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

type evalGenerateCmd struct {
	evalFlags
	MaxTokens uint32   `short:"n" help:"Maximum number of tokens of an answer."                                 default:"256"`
	Temp      float32  `          help:"Temperature; 0 means greedy. Doc i is sampled with the seed plus i."    default:"0"`
	Stop      []string `          help:"Stop string; repeatable. Default for gsm8k: Question:"                                sep:"none"`
	Chat      bool     `          help:"Send each prompt as a user's message, with the model's chat template."`
	Schema    string   `          help:"File with a JSON Schema: also count the answers that match it (valid)."                          xor:"form" placeholder:"FILE"`
	Regex     string   `          help:"Regular expression: also count the answers that match it (valid)."                               xor:"form"`
	Constrain bool     `          help:"Constrain the answers to the schema or the regular expression."`
}

// Run evaluates generated texts: exact match, and whether they match a schema.
func (c *evalGenerateCmd) Run(e *verb.Env) error {
	check, source, err := c.check(e)
	if err != nil {
		return err
	}
	if c.Constrain && check == nil {
		return fault.Field("constrain", "give --schema or --regex")
	}
	set := func(x *evaluation) error {
		if c.Stop == nil && x.task.Form == "gsm8k" {
			c.Stop = []string{"Question:"}
		}
		x.settings.MaxTokens, x.settings.Temperature, x.settings.Chat = int(c.MaxTokens), float64(c.Temp), c.Chat
		if check != nil {
			x.settings.Grammar = digestOf([]byte(check.kind + source))
		}
		return nil
	}
	return c.run(
		e,
		eval.Generate,
		func(text []byte) (*eval.Task, error) { return eval.Parse(bytes.NewReader(text), c.Form) },
		func(ctx context.Context, x *evaluation, i int) (evaluate.Sample, error) {
			return c.answer(ctx, x, i, check, source)
		},
		set,
	)
}

// check compiles the schema or the regular expression; it returns nil if there is none.
func (c *evalGenerateCmd) check(e *verb.Env) (*grammarCheck, string, error) {
	kind, source := "regex", c.Regex
	if c.Schema != "" {
		text, err := readInput(e, c.Schema)
		if err != nil {
			return nil, "", fault.Wrap(fault.NotFound, err, "read schema")
		}
		kind, source = "schema", string(text)
	}
	if source == "" {
		return nil, "", nil
	}
	check := &grammarCheck{}
	return check, source, check.compile(kind, source)
}

// answer generates the answer to a doc and judges it.
func (c *evalGenerateCmd) answer(ctx context.Context, x *evaluation, i int, check *grammarCheck, source string) (
	s evaluate.Sample, err error) {
	d := &x.task.Docs[i]
	seed := c.Seed + uint64(i)
	sampling := &routerv1.Sampling{Temperature: &c.Temp, Seed: &seed}
	if c.Constrain {
		sampling.Grammar = &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, Source: source}
		if check.kind == "regex" {
			sampling.Grammar.Kind = samplerv1.GrammarKind_GRAMMAR_KIND_REGEX
		}
	}
	text, tokens, err := x.client.Generate(
		ctx,
		evaluate.Request{Prompt: x.task.Prompt(i, x.examples, x.Shots), Chat: c.Chat,
			MaxTokens: c.MaxTokens, Stop: c.Stop, Sampling: sampling},
	)
	if err != nil {
		return s, fmt.Errorf("line %d: %w", d.Line, err)
	}
	var valid *bool
	if check != nil {
		err := check.text(text)
		var reject *rejected
		if err != nil && !errors.As(err, &reject) {
			return s, err
		}
		valid = new(err == nil)
	}
	return evaluate.Sample{Text: &text, Tokens: tokens, Parts: d.Judge(x.task.Form, text, valid)}, nil
}

type evalCompareCmd struct {
	A      string `arg:"" help:"Folder of results, written by --out."`
	B      string `arg:"" help:"Folder of results of the same task."`
	Seed   uint64 `       help:"Seed of the bootstrap and of the permutation test." default:"1"`
	Format string `       help:"Output: text or json."                              default:"text" enum:"text,json"`
}

// Run compares two results doc by doc.
func (c *evalCompareCmd) Run(e *verb.Env) error {
	r, err := evaluate.Compare(c.A, c.B, c.Seed)
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	return r.Print(e.Stdout)
}

// evalTasks are the commands that run tasks on a router or on a mesh in this process. They are part of lamina eval.
type evalTasks struct {
	Choice     evalChoiceCmd     `cmd:"" help:"Multiple choice: the accuracy of the most likely continuation (acc, acc_norm)."`
	Perplexity evalPerplexityCmd `cmd:"" help:"Perplexity by token, word and byte, and bits per byte, of texts."`
	Generate   evalGenerateCmd   `cmd:"" help:"Generated answers: exact match, and how many match a JSON Schema."`
	Compare    evalCompareCmd    `cmd:"" help:"Compare two results doc by doc: differences with errors and paired tests."`
}
