package tuning

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pyjson"
)

// Names of the forms of rows.
const (
	FormatAuto       = "auto"              // detect the form of every row
	FormatMessages   = "messages"          // {"messages": [{"role", "content", ...}], "tools": [...]}
	FormatCompletion = "prompt-completion" // {"prompt", "completion"}: texts or lists of messages
	FormatShareGPT   = "sharegpt"          // {"conversations": [{"from", "value"}], "system", "tools"}
	FormatAlpaca     = "alpaca"            // {"instruction", "input", "output"}
	FormatDolly      = "dolly"             // {"instruction", "context", "response"}
	FormatText       = "text"              // {"text"}: trained as a whole
	FormatIDs        = "ids"               // {"ids", "trained_from"} or {"ids", "mask"}
)

// Formats lists the forms of rows that may be named.
func Formats() []string {
	return []string{FormatMessages, FormatCompletion, FormatShareGPT, FormatAlpaca, FormatDolly, FormatText, FormatIDs}
}

// The roles that messages have after parsing.
const (
	roleSystem    = "system"
	roleUser      = "user"
	roleAssistant = "assistant"
	roleTool      = "tool"
)

// Limits of a row.
const (
	maxRow      = 16 << 20 // bytes
	maxMessages = 1 << 14
)

// Conversation is a row of training data.
type Conversation struct {
	Line   int    // of the file, from 1
	Format string // the form that the row had

	Messages  []Message
	Tools     []byte // OpenAI tool definitions, a JSON array; nil for none
	Variables []byte // further variables of the template, a JSON object; nil for none

	// Raw rows are not written by a chat template: Prompt and Completion are joined as they are.
	Raw                bool
	Prompt, Completion string

	// IDs is a row that is encoded already. Mask[i] says whether IDs[i] is trained.
	IDs  []int32
	Mask []bool
}

// Message is a message of a conversation.
type Message struct {
	Role  string
	JSON  []byte // the whole message, as OpenAI's API has it
	Train bool   // an assistant's message that the model learns to write
}

// RowError reports a row that cannot be read.
type RowError struct {
	Line  int // from 1; 0 if it is not known
	Field string
	Msg   string
}

// Error names the line and the field.
func (e *RowError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("read line %d: %s", e.Line, e.Msg)
	}
	return fmt.Sprintf("read line %d: %s: %s", e.Line, e.Field, e.Msg)
}

// FaultCode returns Invalid.
func (e *RowError) FaultCode() fault.Code { return fault.Invalid }

// fields are the members of a row.
type fields map[string]json.RawMessage

// has reports whether the row has a member that is not null.
func (f fields) has(name string) bool {
	raw, ok := f[name]
	return ok && string(raw) != "null"
}

// rowOf reads a row's object.
func rowOf(line int, text []byte) (fields, error) {
	if len(text) > maxRow {
		return nil, &RowError{line, "", fmt.Sprintf("want at most %d bytes, got %d", maxRow, len(text))}
	}
	var f fields
	if err := pyjson.Unmarshal(text, &f); err != nil {
		return nil, &RowError{line, "", fmt.Sprintf("parse JSON: %v", err)}
	}
	if f == nil {
		return nil, &RowError{line, "", "want a JSON object"}
	}
	return f, nil
}

// ParseRow reads a row of the named form, or of the one that it detects with FormatAuto. line is the row's
// number in errors. The error is a *RowError.
func ParseRow(line int, text []byte, format string) (*Conversation, error) {
	f, err := rowOf(line, text)
	if err != nil {
		return nil, err
	}
	if format == "" || format == FormatAuto {
		if format = detect(f); format == "" {
			return nil, &RowError{
				line,
				"",
				"unknown form of row: want messages, conversations, prompt and completion, " +
					"instruction and output or response, text, or ids",
			}
		}
	}
	c := &Conversation{Line: line, Format: format}
	r := &rowReader{fields: f, line: line, out: c}
	switch format {
	case FormatMessages:
		r.messages()
	case FormatCompletion:
		r.completion()
	case FormatShareGPT:
		r.shareGPT()
	case FormatAlpaca:
		r.instruction("input", "output")
	case FormatDolly:
		r.instruction("context", "response")
	case FormatText:
		c.Raw, c.Completion = true, r.text("text")
	case FormatIDs:
		r.ids()
	default:
		return nil, fault.Field("format", "%q is none of %s", format, strings.Join(Formats(), ", "))
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

// detect returns the form of a row by its members, or nothing.
func detect(f fields) string {
	switch {
	case f.has("ids"):
		return FormatIDs
	case f.has("messages"):
		return FormatMessages
	case f.has("conversations"):
		return FormatShareGPT
	case f.has("prompt") && f.has("completion"):
		return FormatCompletion
	case f.has("instruction") && f.has("response"):
		return FormatDolly
	case f.has("instruction") && f.has("output"):
		return FormatAlpaca
	case f.has("text"):
		return FormatText
	}
	return ""
}

// rowReader reads the members of a row. The first error stays.
type rowReader struct {
	fields
	line int
	out  *Conversation
	err  error
}

func (r *rowReader) fail(field, format string, args ...any) {
	if r.err == nil {
		r.err = &RowError{r.line, field, fmt.Sprintf(format, args...)}
	}
}

// text reads a member that must be text.
func (r *rowReader) text(name string) string {
	var s *string
	if err := json.Unmarshal(r.fields[name], &s); err != nil || s == nil {
		r.fail(name, "want a text, got %s", brief(r.fields[name]))
		return ""
	}
	return *s
}

// optional reads a member that may be missing or null.
func (r *rowReader) optional(name string) string {
	if !r.has(name) {
		return ""
	}
	return r.text(name)
}

// brief returns the beginning of a JSON value for an error.
func brief(raw []byte) string {
	switch {
	case len(raw) == 0:
		return "nothing"
	case len(raw) > 40:
		return strings.ToValidUTF8(string(raw[:40]), "") + "..."
	}
	return string(raw)
}

// list reads a member as a list of objects.
func (r *rowReader) list(name string) []fields {
	var raw []json.RawMessage
	if err := json.Unmarshal(r.fields[name], &raw); err != nil {
		r.fail(name, "want a list of messages, got %s", brief(r.fields[name]))
		return nil
	}
	if len(raw) > maxMessages {
		r.fail(name, "want at most %d messages, got %d", maxMessages, len(raw))
		return nil
	}
	out := make([]fields, len(raw))
	for i, m := range raw {
		if err := json.Unmarshal(m, &out[i]); err != nil || out[i] == nil {
			r.fail(fmt.Sprintf("%s[%d]", name, i), "want an object, got %s", brief(m))
			return nil
		}
	}
	return out
}

// common reads the members that every form of conversation may have: tools, a system message, and variables
// of the template.
func (r *rowReader) common() {
	if r.has("tools") {
		raw := []byte(r.fields["tools"])
		var text string
		if json.Unmarshal(raw, &text) == nil { // some data sets hold the list as text
			raw = []byte(text)
		}
		var list []json.RawMessage
		switch err := json.Unmarshal(raw, &list); {
		case err != nil && strings.TrimSpace(string(raw)) != "":
			r.fail("tools", "want a list of tool definitions, got %s", brief(raw))
		case len(list) > 0:
			r.out.Tools = raw
		}
	}
	if r.has("chat_template_kwargs") {
		var variables fields
		if json.Unmarshal(r.fields["chat_template_kwargs"], &variables) != nil {
			r.fail("chat_template_kwargs", "want an object, got %s", brief(r.fields["chat_template_kwargs"]))
		}
		r.out.Variables = r.fields["chat_template_kwargs"]
	}
}

// messages reads a conversation in OpenAI's form.
func (r *rowReader) messages() {
	r.common()
	r.out.Messages = r.chat("messages", true)
}

// chat reads a list of OpenAI's messages. train says whether its assistant's messages are trained where they
// do not say so themselves.
func (r *rowReader) chat(name string, train bool) []Message {
	list := r.list(name)
	if r.err == nil && len(list) == 0 {
		r.fail(name, "want at least one message")
	}
	var out []Message
	for i, m := range list {
		at := fmt.Sprintf("%s[%d]", name, i)
		var role *string
		if json.Unmarshal(m["role"], &role) != nil || role == nil || *role == "" {
			r.fail(at+".role", "want a text, got %s", brief(m["role"]))
			return nil
		}
		out = append(out, r.message(at, *role, m, train))
	}
	return out
}

// message completes a message. It takes out the members that say whether the message is trained.
func (r *rowReader) message(at, role string, m fields, train bool) Message {
	out := Message{Role: role, Train: role == roleAssistant && train}
	if raw, ok := m["weight"]; ok && string(raw) != "null" {
		var weight float64
		if err := json.Unmarshal(raw, &weight); err != nil || weight != 0 && weight != 1 {
			r.fail(at+".weight", "want 0 or 1, got %s", brief(raw))
		}
		out.Train = out.Train && weight == 1
	}
	for _, name := range []string{"train", "training"} {
		if raw, ok := m[name]; ok && string(raw) != "null" {
			var on bool
			if err := json.Unmarshal(raw, &on); err != nil {
				r.fail(at+"."+name, "want true or false, got %s", brief(raw))
			}
			out.Train = out.Train && on
		}
	}
	// The template must not see these members; the others keep their text.
	rest := fields{}
	for name, raw := range m {
		if !slices.Contains([]string{"weight", "train", "training"}, name) {
			rest[name] = raw
		}
	}
	text, err := json.Marshal(rest)
	if err != nil {
		r.fail(at, "%v", err)
	}
	out.JSON = text
	return out
}

// made returns a message of a text.
func made(role, content string, train bool) Message {
	text, err := json.Marshal(map[string]string{"role": role, "content": content})
	if err != nil { // two texts can always be written
		panic(err)
	}
	return Message{Role: role, JSON: text, Train: train}
}

// completion reads a prompt and a completion: two texts, or two lists of messages of which the second is
// trained.
func (r *rowReader) completion() {
	r.common()
	if strings.HasPrefix(strings.TrimSpace(string(r.fields["prompt"])), "[") {
		r.out.Messages = append(r.chat("prompt", false), r.chat("completion", true)...)
		return
	}
	r.pair(r.text("prompt"), r.text("completion"))
}

// pair makes a conversation of a prompt and its answer. Both texts stay for a model without a template.
func (r *rowReader) pair(prompt, answer string) {
	c := r.out
	c.Prompt, c.Completion = prompt, answer
	if system := r.optional("system"); system != "" {
		c.Messages = append(c.Messages, made(roleSystem, system, false))
	}
	c.Messages = append(c.Messages, made(roleUser, prompt, false), made(roleAssistant, answer, true))
}

// instruction reads an instruction with an optional input, and its answer.
func (r *rowReader) instruction(input, output string) {
	prompt, more := r.text("instruction"), r.optional(input)
	if more != "" {
		prompt += "\n\n" + more
	}
	r.pair(prompt, r.text(output))
}

// ids reads a row of token ids.
func (r *rowReader) ids() {
	c := r.out
	c.IDs = r.tokens("ids")
	c.Mask = make([]bool, len(c.IDs))
	if r.has("mask") {
		var mask []int
		if err := json.Unmarshal(r.fields["mask"], &mask); err != nil || len(mask) != len(c.IDs) {
			r.fail("mask", "want %d zeros and ones", len(c.IDs))
			return
		}
		for i, m := range mask {
			if m != 0 && m != 1 {
				r.fail("mask", "element %d: want 0 or 1, got %d", i, m)
			}
			c.Mask[i] = m == 1
		}
		return
	}
	from := 1
	if r.has("trained_from") {
		if err := json.Unmarshal(r.fields["trained_from"], &from); err != nil || from < 0 || from > len(c.IDs) {
			r.fail("trained_from", "want an index into the %d ids, got %s", len(c.IDs), brief(r.fields["trained_from"]))
			return
		}
	}
	for i := from; i < len(c.IDs); i++ {
		c.Mask[i] = true
	}
}

// tokens reads a list of token ids.
func (r *rowReader) tokens(name string) []int32 {
	var ids []int32
	if err := json.Unmarshal(r.fields[name], &ids); err != nil || ids == nil {
		r.fail(name, "want a list of token ids, got %s", brief(r.fields[name]))
		return nil
	}
	for i, id := range ids {
		if id < 0 {
			r.fail(name, "element %d: want a token id, got %d", i, id)
			return nil
		}
	}
	return ids
}
