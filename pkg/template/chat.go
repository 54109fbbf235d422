package template

import (
	"context"
	"fmt"
	"maps"
)

// Message is one message of a chat.
type Message struct {
	Role    string
	Content string
	// JSON, if not empty, is the whole message as an OpenAI message object; it replaces Role
	// and Content.
	JSON []byte
}

// ChatInput is the input of a chat template.
type ChatInput struct {
	Messages            []Message
	Tools               []byte // OpenAI tool definitions, a JSON array; empty for none
	Documents           []byte // documents to answer from, a JSON array; empty for none
	AddGenerationPrompt bool   // open the assistant's turn at the end
	Arguments           Arguments
	TextContent         bool   // messages whose content is null get an empty one
	BOS, EOS            string // the vocabulary's spellings of the begin and end tokens
	// Special maps variables that the template reads ("unk_token") to the spellings of special
	// tokens. It overrides BOS and EOS, and is overridden by Variables, whose text is data.
	Special   map[string]string
	Variables []byte // further variables, a JSON object; empty for none
}

// Chat renders a chat template as transformers does. All text of the messages, tools and
// variables is data; the spellings of special tokens are not, and neither are roles that the
// template compares with a literal. A role cannot spell a control token.
func (t *Template) Chat(ctx context.Context, in ChatInput, o Options) (Result, error) {
	vars := NewMap()
	if len(in.Variables) > 0 {
		v, err := DecodeJSON(in.Variables)
		if err != nil {
			return Result{}, &InputError{"variables", err}
		}
		m, ok := v.(*Map)
		if !ok {
			return Result{}, &InputError{"variables", fmt.Errorf("expected an object, found %s", typeName(v))}
		}
		vars = m
	}
	messages := &list{}
	for i, m := range in.Messages {
		v, err := m.value()
		if err != nil {
			return Result{}, &InputError{fmt.Sprintf("messages[%d]", i), err}
		}
		if err := in.adapt(v); err != nil {
			return Result{}, err
		}
		messages.items = append(messages.items, v)
	}
	tools, err := readList("tools", in.Tools)
	if err != nil {
		return Result{}, err
	}
	documents, err := readList("documents", in.Documents)
	if err != nil {
		return Result{}, err
	}
	vars.Set("messages", messages)
	vars.Set("tools", tools)
	if _, own := vars.Get("documents"); !own || documents != nil {
		vars.Set("documents", documents)
	}
	vars.Set("add_generation_prompt", in.AddGenerationPrompt)
	special := map[string]string{"bos_token": in.BOS, "eos_token": in.EOS}
	maps.Copy(special, in.Special)
	for name, token := range special {
		if _, own := vars.Get(name); !own && token != "" {
			vars.Set(name, Trusted(token))
		}
	}
	if o.Budget.Steps == 0 {
		o.Budget.Steps = o.Budget.orDefault().Steps + in.steps()
	}
	return t.Render(ctx, vars, o)
}

// readList reads a JSON array; null is an empty one.
func readList(field string, text []byte) (Value, error) {
	if len(text) == 0 {
		return nil, nil
	}
	v, err := DecodeJSON(text)
	if err == nil && v != nil {
		if _, ok := v.(*list); !ok {
			err = fmt.Errorf("expected an array, found %s", typeName(v))
		}
	}
	if err != nil {
		return nil, &InputError{field, err}
	}
	return v, nil
}

// steps returns a generous budget of steps for a chat of this size, by the templates in use.
func (in *ChatInput) steps() int {
	n := 250*len(in.Messages) + (len(in.Tools)+len(in.Documents)+len(in.Variables))/4
	for _, m := range in.Messages {
		n += (len(m.Role) + len(m.Content) + len(m.JSON)) / 4
	}
	return n
}

// InputError reports messages, tools or variables of the wrong form.
type InputError struct {
	Field string
	Err   error
}

// Error names the field.
func (e *InputError) Error() string { return fmt.Sprintf("render template: %s: %v", e.Field, e.Err) }

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

func (m *Message) value() (Value, error) {
	if len(m.JSON) == 0 {
		v := NewMap()
		v.Set("role", m.Role)
		v.Set("content", m.Content)
		return v, nil
	}
	v, err := DecodeJSON(m.JSON)
	if err != nil {
		return nil, err
	}
	if _, ok := v.(*Map); !ok {
		return nil, fmt.Errorf("expected an object, found %s", typeName(v))
	}
	return v, nil
}
