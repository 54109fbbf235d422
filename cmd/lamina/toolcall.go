package main

import (
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type toolcallCmd struct {
	Family           string  `help:"Family of models that wrote the text: deepseek, gemma4, glm, gpt-oss, kimi, llama, mistral, qwen3-hermes or qwen3-xml." xor:"format" required:""`
	Model            string  `short:"m" help:"GGUF file or Hugging Face folder whose chat template says how its calls are written." xor:"format" required:"" type:"model"`
	Tools            string  `help:"File with the tool definitions that the model was offered, a JSON list in OpenAI's format."`
	GenerationPrompt *string `help:"The end of the rendered prompt. It may have opened the reasoning. Without it the text itself must tell."`
	Stream           bool    `help:"Parse one character at a time, as if the text arrived from a model. The result is the same."`
}

// maxOutputText bounds the text on standard input.
const maxOutputText = 64 << 20

// Run parses the text of a model's answer on standard input and prints it as a JSON object.
func (c *toolcallCmd) Run(e *verb.Env) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	o := toolcall.Options{NoPrompt: c.GenerationPrompt == nil, Strict: true}
	if c.GenerationPrompt != nil {
		o.Prompt = *c.GenerationPrompt
	}
	if c.Tools != "" {
		if o.Tools, err = readInput(e, c.Tools); err != nil {
			return fault.Wrap(fault.NotFound, err, "read tools")
		}
		var list []json.RawMessage
		if err := json.Unmarshal(o.Tools, &list); err != nil {
			return fault.Field("tools", "%s is not a JSON list: %v", c.Tools, err)
		}
	}
	raw, err := io.ReadAll(io.LimitReader(e.Stdin, maxOutputText+1))
	switch {
	case err != nil:
		return err
	case len(raw) > maxOutputText:
		return fault.New(fault.Exhausted, "the text on standard input is longer than %d bytes", maxOutputText)
	case !utf8.Valid(raw):
		return fault.New(fault.Invalid, "the text on standard input is not UTF-8")
	}
	p := toolcall.New(format, o)
	var r toolcall.Result
	if c.Stream {
		for _, char := range string(raw) {
			r.Add(p.Push(string(char)))
		}
	} else {
		r.Add(p.Push(string(raw)))
	}
	r.Add(p.Flush(false))
	r.Complete()
	return printResult(e, r)
}

// format returns how the model writes calls and reasoning.
func (c *toolcallCmd) format() (toolcall.Format, error) {
	if c.Family != "" {
		f, ok := toolcall.Family(c.Family)
		if !ok {
			return f, fault.Field("family", "unknown family %q: want %s", c.Family, strings.Join(toolcall.Families(), ", "))
		}
		return f, nil
	}
	files, err := tokenizer.LoadChat(c.Model)
	if err != nil {
		return toolcall.Format{}, err
	}
	name, err := files.Pick("", c.Tools != "")
	if err != nil {
		return toolcall.Format{}, err
	}
	return toolcall.Detect(files.Templates[name]), nil
}

// printResult prints an answer; content and reasoning are null where the model wrote none.
func printResult(e *verb.Env, r toolcall.Result) error {
	type call struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	}
	out := struct {
		Content   *string `json:"content"`
		Reasoning *string `json:"reasoning_content"`
		Calls     []call  `json:"tool_calls"`
	}{Calls: []call{}}
	if r.Content != "" {
		out.Content = &r.Content
	}
	if r.Reasoning != "" {
		out.Reasoning = &r.Reasoning
	}
	for _, c := range r.Calls {
		out.Calls = append(out.Calls, call{c.Name, json.RawMessage(c.Arguments)})
	}
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(out)
}
