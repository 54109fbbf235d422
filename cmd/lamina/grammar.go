package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type grammarCmd struct {
	GBNF   string  `name:"gbnf" help:"File with a GBNF grammar, as in llama.cpp." xor:"source"`
	Schema string  `help:"File with a JSON Schema, draft 2020-12 or draft 7." xor:"source"`
	Regex  *string `help:"Regular expression that the whole text must match." xor:"source"`
	Tags   string  `help:"File with structural tags, as JSON." xor:"source"`
	Many   bool    `help:"Read JSON lines with grammar, kind (gbnf, schema, regex or tags) and text from standard input. Print accept, reject, or refused: and the reason for each." xor:"source"`
	Model  string  `short:"m" help:"GGUF file or Hugging Face folder with a vocabulary: the text is encoded, and each token is checked with the grammar." type:"model"`
}

// Run checks whether the text on standard input matches the grammar. The exit code is 0 if it
// does, 1 if it does not, and 2 if the grammar is malformed or not supported.
func (c *grammarCmd) Run(e *verb.Env) error {
	check := &grammarCheck{}
	if c.Model != "" {
		var err error
		if check.vocab, err = tokenizer.LoadVocab(c.Model); err != nil {
			return err
		}
		if check.tokens, err = verb.GrammarVocabulary(check.vocab); err != nil {
			return err
		}
	}
	if c.Many {
		return check.many(e)
	}
	kind, source, err := c.source()
	if err != nil {
		return err
	}
	if err := check.compile(kind, source); err != nil {
		return err
	}
	text, err := io.ReadAll(e.Stdin)
	if err != nil {
		return err
	}
	return check.text(string(text))
}

// source returns the grammar that the flags name.
func (c *grammarCmd) source() (kind, source string, err error) {
	if c.Regex != nil {
		return "regex", *c.Regex, nil
	}
	kind, path := "gbnf", c.GBNF
	switch {
	case c.Schema != "":
		kind, path = "schema", c.Schema
	case c.Tags != "":
		kind, path = "tags", c.Tags
	}
	if path == "" {
		return "", "", fault.Field("gbnf", "give --gbnf FILE, --schema FILE, --regex RE, --tags FILE or --many")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", "", fault.Wrap(fault.Invalid, err, "read the grammar")
	}
	return kind, string(data), nil
}

// grammarCheck checks texts with a grammar.
type grammarCheck struct {
	vocab    *vocab.Vocab        // or nil
	tokens   *grammar.Vocabulary // or nil
	kind     string
	source   string
	compiled *grammar.Compiled
	err      error // why compiled is nil
}

// rejected is the error of a text that does not match the grammar.
type rejected struct{ cause error }

func (r *rejected) Error() string {
	if r.cause == nil {
		return "reject the text: it ends too early"
	}
	return "reject the text: " + r.cause.Error()
}

// compile compiles a grammar unless it is the same as the last one.
func (c *grammarCheck) compile(kind, source string) error {
	if c.kind == kind && c.source == source && (c.compiled != nil || c.err != nil) {
		return c.err
	}
	c.kind, c.source, c.compiled = kind, source, nil
	var g *grammar.Grammar
	switch kind {
	case "gbnf", "grammar":
		g, c.err = grammar.GBNF(source)
	case "schema":
		g, c.err = grammar.Schema([]byte(source))
	case "regex":
		g, c.err = grammar.Regex(source)
	case "tags":
		g, c.err = grammar.Structure([]byte(source))
	default:
		c.err = fault.Field("kind", "%q: want gbnf, schema, regex or tags", kind)
	}
	if c.err == nil {
		c.compiled, c.err = grammar.Compile(g, c.tokens)
	}
	return c.err
}

// text returns nil if the text matches the grammar, and *rejected if it does not.
func (c *grammarCheck) text(text string) error {
	m := c.compiled.NewMatcher()
	var err error
	if c.tokens == nil {
		err = m.AcceptBytes([]byte(text))
	} else {
		err = c.walk(m, text)
	}
	var reject *grammar.RejectError
	switch {
	case errors.As(err, &reject):
		return &rejected{err}
	case err == nil && !m.CanEnd():
		return &rejected{}
	}
	return err
}

// walk encodes the text and passes its tokens to the matcher. For tags the text may contain
// control tokens.
func (c *grammarCheck) walk(m *grammar.Matcher, text string) error {
	ids, err := c.vocab.Encode(text, vocab.Options{Special: c.kind == "tags"})
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "encode the text")
	}
	for _, id := range ids {
		if err := m.Accept(id); err != nil {
			return err
		}
	}
	return nil
}

// grammarLine is a line of --many. A schema may be a JSON value or a string that holds one.
type grammarLine struct {
	Grammar json.RawMessage `json:"grammar"`
	Kind    string          `json:"kind"`
	Text    *string         `json:"text"`
}

// many prints a verdict for every line.
func (c *grammarCheck) many(e *verb.Env) error {
	in := bufio.NewReader(e.Stdin)
	out := bufio.NewWriter(e.Stdout)
	for {
		line, err := in.ReadString('\n')
		if strings.TrimSpace(line) != "" {
			fmt.Fprintln(out, c.verdict(line))
		}
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return err
		}
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil { // a caller that sends one line at a time waits for the verdict
				return err
			}
		}
	}
}

// verdict returns "accept", "reject", or "refused: " and the reason.
func (c *grammarCheck) verdict(line string) string {
	refused := func(err error) string { return "refused: " + strings.ReplaceAll(err.Error(), "\n", " ") }
	var in grammarLine
	if err := json.Unmarshal([]byte(line), &in); err != nil {
		return refused(fault.Wrap(fault.Invalid, err, "parse the line"))
	}
	if in.Grammar == nil || in.Text == nil {
		return refused(fault.New(fault.Invalid, "parse the line: want grammar, kind and text"))
	}
	source := string(in.Grammar)
	var text string
	if json.Unmarshal(in.Grammar, &text) == nil {
		source = text
	} else if in.Kind != "schema" && in.Kind != "tags" {
		return refused(fault.Field("grammar", "want a string"))
	}
	if err := c.compile(in.Kind, source); err != nil {
		return refused(err)
	}
	err := c.text(*in.Text)
	var reject *rejected
	switch {
	case err == nil:
		return "accept"
	case errors.As(err, &reject):
		return "reject"
	}
	return refused(err)
}
