package main

import (
	"encoding/json"
	"io"
	"os"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type templateCmd struct {
	Model            string `short:"m" help:"GGUF file or Hugging Face folder whose chat template renders the messages on standard input." xor:"template"`
	Tools            string `help:"File with OpenAI's tool definitions, a JSON list, for -m."`
	GenerationPrompt bool   `help:"Open the assistant's turn at the end, for -m." default:"true" negatable:""`
	Template         string `help:"File with a template to render from --context." xor:"template"`
	Context          string `help:"File with the variables of --template, a JSON object; standard input when absent."`
}

// Run prints what a template makes of messages or of a context.
func (c *templateCmd) Run(e *env) error {
	var out template.Result
	var err error
	switch {
	case c.Model != "":
		out, err = c.chat(e)
	case c.Template != "":
		out, err = c.render(e)
	default:
		err = fault.Field("template", "give -m MODEL and messages on standard input, or --template FILE --context FILE")
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(e.stdout, out.Text)
	return err
}

// chat renders messages by the model's own template.
func (c *templateCmd) chat(e *env) (template.Result, error) {
	if c.Context != "" {
		return template.Result{}, fault.Field("context", "it goes with --template; a model's template takes messages on standard input")
	}
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return template.Result{}, err
	}
	if v.ChatTemplate() == "" {
		return template.Result{}, fault.New(fault.FailedPrecondition, "find a chat template: %s has none", c.Model)
	}
	t, err := template.Parse(v.ChatTemplate())
	if err != nil {
		return template.Result{}, fault.Wrap(fault.FailedPrecondition, err, "parse the chat template of %s", c.Model)
	}
	in := template.ChatInput{AddGenerationPrompt: c.GenerationPrompt, BOS: spelling(v, v.BOS), EOS: spelling(v, v.EOS)}
	text, err := io.ReadAll(e.stdin)
	if err != nil {
		return template.Result{}, err
	}
	var messages []json.RawMessage
	if err := json.Unmarshal(text, &messages); err != nil {
		return template.Result{}, fault.Wrap(fault.Invalid, err, "parse standard input: want a JSON list of messages")
	}
	for _, m := range messages {
		in.Messages = append(in.Messages, template.Message{JSON: m})
	}
	if c.Tools != "" {
		if in.Tools, err = readInput(e, c.Tools); err != nil {
			return template.Result{}, err
		}
	}
	return t.Chat(e.ctx, in, template.Options{Now: time.Now})
}

// render renders a template file from a file of variables.
func (c *templateCmd) render(e *env) (template.Result, error) {
	source, err := os.ReadFile(c.Template)
	if err != nil {
		return template.Result{}, err
	}
	t, err := template.Parse(string(source))
	if err != nil {
		return template.Result{}, fault.Wrap(fault.Invalid, err, "parse %s", c.Template)
	}
	path := c.Context
	if path == "" {
		path = "-"
	}
	text, err := readInput(e, path)
	if err != nil {
		return template.Result{}, err
	}
	value, err := template.DecodeJSON(text)
	if err != nil {
		return template.Result{}, fault.Wrap(fault.Invalid, err, "parse the context")
	}
	vars, ok := value.(*template.Map)
	if !ok {
		return template.Result{}, fault.Field("context", "want a JSON object")
	}
	return t.Render(e.ctx, vars, template.Options{Now: time.Now})
}

// spelling is how a vocabulary spells a token that it may lack.
func spelling(v *vocab.Vocab, token func() (int32, bool)) string {
	id, ok := token()
	if !ok {
		return ""
	}
	text, err := v.Spelling(id)
	if err != nil {
		return ""
	}
	return text
}
