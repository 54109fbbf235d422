package loadtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Text is the complete answer to a request.
type Text struct {
	// Choices holds the text of each choice: content, then reasoning and tool calls as they came.
	Choices []string `json:"choices"`
	Finish  []string `json:"finish"` // the finish reason of each choice
}

func (t Text) equal(other Text) bool {
	return slices.Equal(t.Choices, other.Choices) && slices.Equal(t.Finish, other.Finish)
}

// begins reports whether t, which was cut off, is the beginning of whole.
func (t Text) begins(whole Text) bool {
	for i, text := range t.Choices {
		if i >= len(whole.Choices) || len(text) > len(whole.Choices[i]) || whole.Choices[i][:len(text)] != text {
			return false
		}
	}
	return true
}

// firstDifference returns the choice and the byte at which two answers differ. If the texts are equal
// the finish reasons are not, and it returns the end of the text.
func (t Text) firstDifference(other Text) (choice, at int) {
	for i, text := range t.Choices {
		if i >= len(other.Choices) {
			return i, 0
		}
		if text == other.Choices[i] && t.Finish[i] == other.Finish[i] {
			continue
		}
		n := 0
		for n < min(len(text), len(other.Choices[i])) && text[n] == other.Choices[i][n] {
			n++
		}
		return i, n
	}
	return len(t.Choices), 0
}

// Texts holds the answers to requests, by the key of the request: a digest of its body without the
// names of the model and the tenant.
type Texts struct{ byKey map[string]Text }

// NewTexts returns an empty collection.
func NewTexts() *Texts { return &Texts{byKey: map[string]Text{}} }

// Len returns the number of answers.
func (t *Texts) Len() int { return len(t.byKey) }

// Get returns the answer to a request.
func (t *Texts) Get(key string) (Text, bool) {
	text, ok := t.byKey[key]
	return text, ok
}

// recorded is one line of a file of texts.
type recorded struct {
	Key string `json:"key"`
	Text
}

// Write writes one JSON object per line, sorted by key.
func (t *Texts) Write(w io.Writer) error {
	buffered := bufio.NewWriter(w)
	enc := json.NewEncoder(buffered)
	enc.SetEscapeHTML(false)
	for _, key := range slices.Sorted(maps.Keys(t.byKey)) {
		if err := enc.Encode(recorded{key, t.byKey[key]}); err != nil {
			return fault.Wrap(fault.Internal, err, "write texts")
		}
	}
	if err := buffered.Flush(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "write texts")
	}
	return nil
}

// ReadTexts reads what Write wrote. Errors name the line and the field.
func ReadTexts(r io.Reader) (*Texts, error) {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 64<<10), maxLine)
	out := NewTexts()
	line := 1
	for ; scan.Scan(); line++ {
		if len(bytes.TrimSpace(scan.Bytes())) == 0 {
			continue
		}
		var t recorded
		if err := json.Unmarshal(scan.Bytes(), &t); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "read texts: line %d", line)
		}
		switch {
		case t.Key == "":
			return nil, fault.Field("key", "read texts: line %d: the field must be set", line)
		case len(t.Choices) == 0 || len(t.Choices) != len(t.Finish):
			return nil, fault.Field("choices",
				"read texts: line %d: want as many texts as finish reasons, got %d and %d",
				line, len(t.Choices), len(t.Finish))
		case len(out.byKey) == maxPrompts:
			return nil, fault.Field("expect", "line %d: want at most %d texts", line, maxPrompts)
		}
		out.byKey[t.Key] = t.Text
	}
	if err := scan.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fault.Field("expect", "read texts: line %d: want at most %d bytes", line, maxLine)
	} else if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read texts: line %d", line)
	}
	return out, nil
}
