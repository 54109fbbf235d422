package loadtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a file of prompts.
const (
	maxLine    = 4 << 20 // bytes
	maxPrompts = 1 << 20
)

// Prompt is what one request asks. Either Text or Messages is set.
type Prompt struct {
	Line     int // in its file, from 1
	Text     string
	Messages json.RawMessage // the messages of a chat
	// MaxTokens, Seed and Tenant override those of the Config, if set.
	MaxTokens int
	Seed      *int64
	Tenant    string
	// Extra holds other fields of the request's body, such as temperature or response_format. They
	// are sent as they are.
	Extra map[string]json.RawMessage
}

// ParsePrompts reads one prompt per line. A line that begins with "{" is a JSON object: it has either
// "prompt" or "messages", and may have "max_tokens", "seed", "tenant" and any other field of a request.
// Other lines are the text of a prompt. Empty lines are skipped. Errors name the line and the field.
func ParsePrompts(r io.Reader) ([]Prompt, error) {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 64<<10), maxLine)
	var out []Prompt
	line := 1
	for ; scan.Scan(); line++ {
		text := bytes.TrimSpace(scan.Bytes())
		if line == 1 {
			text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // a byte-order mark
		}
		if len(text) == 0 {
			continue
		}
		if len(out) == maxPrompts {
			return nil, fault.Field("prompts", "line %d: want at most %d prompts", line, maxPrompts)
		}
		p := Prompt{Text: string(text)}
		if text[0] == '{' {
			var err error
			if p, err = parsePrompt(text); err != nil {
				return nil, fault.Wrap(fault.Invalid, err, "read prompts: line %d", line)
			}
		}
		p.Line = line
		out = append(out, p)
	}
	if err := scan.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fault.Field("prompts", "line %d: want at most %d bytes", line, maxLine)
	} else if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read prompts: line %d", line)
	}
	if len(out) == 0 {
		return nil, fault.Field("prompts", "the file has no prompts")
	}
	return out, nil
}

// ParsePrompt parses the JSON object of one prompt.
func ParsePrompt(text []byte) (Prompt, error) { return parsePrompt(text) }

func parsePrompt(text []byte) (Prompt, error) {
	var p Prompt
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return p, fault.Wrap(fault.Invalid, err, "parse JSON object")
	}
	into := func(name string, v any, want string) error {
		raw, ok := fields[name]
		if !ok {
			return nil
		}
		delete(fields, name)
		if err := json.Unmarshal(raw, v); err != nil || string(raw) == "null" {
			return fault.Field(name, "want %s, got %.40s", want, raw)
		}
		return nil
	}
	var prompt *string
	var messages []json.RawMessage
	raw := fields["messages"]
	for _, err := range []error{
		into("prompt", &prompt, "a string"), into("messages", &messages, "an array"),
		into("max_tokens", &p.MaxTokens, "a number of tokens"), into("seed", &p.Seed, "an integer"),
		into("tenant", &p.Tenant, "a string"),
	} {
		if err != nil {
			return p, err
		}
	}
	switch {
	case prompt != nil && raw != nil:
		return p, fault.Field("messages", "want either prompt or messages, got both")
	case prompt != nil:
		p.Text = *prompt
	case len(messages) > 0:
		p.Messages = raw
	default:
		return p, fault.Field("prompt", "want a prompt or messages")
	}
	if p.MaxTokens < 0 {
		return p, fault.Field("max_tokens", "want 0 (the server's default) or more, got %d", p.MaxTokens)
	}
	if p.Tenant != "" {
		if err := checkTenant(p.Tenant); err != nil {
			return p, err
		}
	}
	for _, name := range []string{"stream", "stream_options"} {
		if _, ok := fields[name]; ok {
			return p, fault.Field(name, "every request is streamed: leave the field out")
		}
	}
	if len(fields) > 0 {
		p.Extra = fields
	}
	return p, nil
}
