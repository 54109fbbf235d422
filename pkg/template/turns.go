package template

import (
	"context"
	"fmt"
	"strings"
	"unicode"
)

// Arguments selects the form in which a template gets the arguments of tool calls. The messages
// of OpenAI hold a JSON object as a string; most templates expect the object.
type Arguments uint8

// The forms of arguments.
const (
	// ArgumentsAsGiven leaves arguments as they are in the messages.
	ArgumentsAsGiven Arguments = iota
	// ArgumentsAsObjects decodes a string that holds a JSON object. An empty string becomes an
	// empty object.
	ArgumentsAsObjects
	// ArgumentsAsText encodes objects as strings.
	ArgumentsAsText
)

// adapt converts the empty content of a message and the arguments of its calls.
func (in *ChatInput) adapt(message Value) error {
	m, ok := message.(*Map)
	if !ok {
		return nil
	}
	if content, has := m.Get("content"); in.TextContent && has && content == nil {
		m.Set("content", "")
	}
	if in.Arguments == ArgumentsAsGiven {
		return nil
	}
	calls, _ := m.Get("tool_calls")
	l, ok := calls.(*list)
	if !ok {
		return nil
	}
	for _, item := range l.items {
		call, ok := item.(*Map)
		if !ok {
			continue
		}
		if f, has := call.Get("function"); has {
			if f, ok := f.(*Map); ok {
				call = f
			}
		}
		given, has := call.Get("arguments")
		if !has {
			continue
		}
		told, err := in.argument(given)
		if err != nil {
			return err
		}
		call.put(str{s: "arguments"}, told)
	}
	return nil
}

func (in *ChatInput) argument(v Value) (Value, error) {
	switch x := v.(type) {
	case str:
		if in.Arguments != ArgumentsAsObjects {
			return v, nil
		}
		if strings.TrimSpace(x.s) == "" {
			return NewMap(), nil
		}
		if o, err := DecodeJSON([]byte(x.s)); err == nil {
			if _, ok := o.(*Map); ok {
				return o, nil
			}
		}
	case *Map:
		if in.Arguments != ArgumentsAsText {
			return v, nil
		}
		b := Budget{}.orDefault()
		s := &state{ctx: context.Background(), limit: b, steps: b.Steps + in.steps(), memory: b.Memory}
		var out marked
		if err := s.encodeJSON(&out, x, &jsonStyle{item: ", ", key: ": "}, 0); err != nil {
			return nil, err
		}
		return userText(out.str().s), nil
	}
	return v, nil
}

// Continue truncates a rendered chat after the text of its last message, so that a model
// continues it. It returns an *InputError if that text does not occur unchanged in the
// rendering.
func Continue(r Result, last Message) (Result, error) {
	fail := func(format string, args ...any) (Result, error) {
		return Result{}, &InputError{"messages", fmt.Errorf("cannot continue the last one: "+format, args...)}
	}
	v, err := last.value()
	if err != nil {
		return Result{}, &InputError{"messages", err}
	}
	content, _ := v.(*Map).Get("content")
	if parts, ok := content.(*list); ok { // the last text part
		content = nil
		for _, p := range parts.items {
			if p, ok := p.(*Map); ok {
				if text, ok := p.Get("text"); ok {
					content = text
				}
			}
		}
	}
	text, ok := content.(str)
	if !ok {
		return fail("it has no text")
	}
	trimmed := strings.TrimSpace(text.s)
	at := strings.LastIndex(r.Text, trimmed)
	if at < 0 {
		return fail("the chat template changes its text")
	}
	end := at + len(trimmed)
	if rest := strings.TrimLeftFunc(text.s, unicode.IsSpace); strings.HasPrefix(r.Text[at:], rest) {
		end = at + len(rest) // the template keeps the space after it
	}
	out := Result{Text: r.Text[:end]}
	for _, d := range r.Data {
		if d[0] < end {
			out.Data = append(out.Data, [2]int{d[0], min(d[1], end)})
		}
	}
	return out, nil
}
