package main

import (
	"encoding/json"
	"io"
	"os"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type templateCmd struct {
	Model            string `short:"m" help:"GGUF file or Hugging Face folder with a chat template, which renders the messages on standard input." xor:"template" type:"model"`
	Name             string `help:"With -m: name of the chat template. Default: tool_use if there are tools, otherwise default."`
	Tools            string `help:"With -m: file with tool definitions in OpenAI's format, a JSON list."`
	GenerationPrompt bool   `help:"With -m: end with the start of the assistant's turn. The input may override this." default:"true" negatable:""`
	Template         string `help:"File with a template to render from --context." xor:"template"`
	Context          string `help:"File with the variables for --template, a JSON object. Default: standard input."`
}

// Run prints messages or variables as a template renders them.
func (c *templateCmd) Run(e *verb.Env) error {
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
	_, err = io.WriteString(e.Stdout, out.Text)
	return err
}

// chat renders messages with the chat template of the model.
func (c *templateCmd) chat(e *verb.Env) (template.Result, error) {
	if c.Context != "" {
		return template.Result{},
			fault.Field("context", "use --context with --template: a chat template takes messages on standard input")
	}
	files, err := tokenizer.LoadChat(c.Model)
	if err != nil {
		return template.Result{}, err
	}
	text, err := io.ReadAll(e.Stdin)
	if err != nil {
		return template.Result{}, err
	}
	in, err := c.input(text)
	if err != nil {
		return template.Result{}, err
	}
	in.Special = files.Special
	if c.Tools != "" {
		if in.Tools, err = readInput(e, c.Tools); err != nil {
			return template.Result{}, err
		}
	}
	name, err := files.Pick(c.Name, len(in.Tools) > 0)
	if err != nil {
		return template.Result{}, err
	}
	t, err := template.Parse(files.Templates[name])
	if err != nil {
		return template.Result{}, fault.Wrap(fault.FailedPrecondition, err, "parse the chat template of %s", c.Model)
	}
	return t.Chat(e.Ctx, in, template.Options{Now: time.Now})
}

// input parses a list of messages, or an object with the messages, tools, add_generation_prompt
// and more variables.
func (c *templateCmd) input(text []byte) (template.ChatInput, error) {
	in := template.ChatInput{AddGenerationPrompt: c.GenerationPrompt}
	var messages []json.RawMessage
	if json.Unmarshal(text, &messages) != nil {
		var fields map[string]json.RawMessage
		if json.Unmarshal(text, &fields) != nil || json.Unmarshal(fields["messages"], &messages) != nil {
			return in, fault.New(fault.Invalid,
				"parse standard input: want a JSON list of messages, or an object with messages")
		}
		if raw, ok := fields["add_generation_prompt"]; ok {
			if err := json.Unmarshal(raw, &in.AddGenerationPrompt); err != nil {
				return in, fault.Field("add_generation_prompt", "want true or false")
			}
		}
		if tools := fields["tools"]; string(tools) != "null" {
			in.Tools = tools
		}
		for _, name := range []string{"messages", "tools", "add_generation_prompt"} {
			delete(fields, name)
		}
		var err error
		if in.Variables, err = json.Marshal(fields); err != nil {
			return in, err
		}
	}
	for _, m := range messages {
		in.Messages = append(in.Messages, template.Message{JSON: m})
	}
	return in, nil
}

// render renders a template file with a file of variables.
func (c *templateCmd) render(e *verb.Env) (template.Result, error) {
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
	return t.Render(e.Ctx, vars, template.Options{Now: time.Now, Budget: template.BudgetFor(len(text))})
}
