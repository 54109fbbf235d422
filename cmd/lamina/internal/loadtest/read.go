package loadtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// maxChoices bounds the index of a choice that a server may send.
const maxChoices = 1024

// answer collects the choices of a stream.
type answer struct {
	texts  []strings.Builder
	finish []string
}

func (a *answer) grow(n int) {
	for len(a.finish) < n {
		a.finish = append(a.finish, "")
	}
	if len(a.texts) < n {
		// A strings.Builder must not be copied once it is written to.
		texts := make([]strings.Builder, n)
		for i := range a.texts {
			texts[i].WriteString(a.texts[i].String())
		}
		a.texts = texts
	}
}

// finished reports whether every choice has a finish reason.
func (a *answer) finished() bool {
	for _, f := range a.finish {
		if f == "" {
			return false
		}
	}
	return true
}

func (a *answer) text() Text {
	t := Text{Choices: make([]string, len(a.texts)), Finish: a.finish}
	for i := range a.texts {
		t.Choices[i] = a.texts[i].String()
	}
	return t
}

// reading is how far a stream has been read. It outlives the connection of a stream that is resumed.
type reading struct {
	answer
	last   time.Time // when the last piece came, or the request was due
	lastID string    // of the last event, if events have ids
}

// read reads the events of a stream. A stream is complete when every choice has a finish reason and the
// stream then ended in order: by [DONE], or by its end, as some servers do.
func (s *Sample) read(in *events, r *reading) error {
	for {
		e, err := in.next()
		now := time.Now()
		switch {
		case errors.Is(err, io.EOF) && r.finished():
			s.Outcome = OK
			return nil
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case string(e.data) == "[DONE]" && r.finished():
			s.Outcome = OK
			return nil
		case string(e.data) == "[DONE]":
			return fault.New(fault.Invalid, "[DONE] came before the finish reason of each choice")
		}
		piece, done, err := s.take(e, &r.answer)
		if err != nil || done {
			return err
		}
		if e.id != "" {
			r.lastID = e.id
		}
		if !piece {
			continue
		}
		s.Pieces++
		gap := Gap{From: r.last, To: now, First: s.First.IsZero()}
		if gap.First {
			s.First = now
		} else {
			s.between = append(s.between, gap.Length())
		}
		s.addGap(gap)
		r.last = now
	}
}

// take adds one event to the answer. It reports whether the event had text, and whether it was an
// error that ends the stream.
func (s *Sample) take(e event, a *answer) (piece, done bool, err error) {
	var c chunk
	if err := json.Unmarshal(e.data, &c); err != nil {
		return false, false, fault.Wrap(fault.Invalid, err, "parse event %d", s.Pieces)
	}
	if c.Error == nil && e.name == "error" {
		c.Error = &apiError{}
		if err := json.Unmarshal(e.data, c.Error); err != nil {
			return false, false, fault.Wrap(fault.Invalid, err, "parse error event")
		}
	}
	if c.Error != nil {
		s.fail(ErrorEvent, "%s", c.Error.Message)
		s.RetryAfter = time.Duration(c.Error.RetryAfter * float64(time.Second))
		return false, true, nil
	}
	if c.Usage != nil {
		s.Tokens = c.Usage.Completion
	}
	for _, choice := range c.Choices {
		if choice.Index < 0 || choice.Index >= maxChoices {
			return false, false, fault.New(fault.Invalid, "parse event: choice has index %d", choice.Index)
		}
		a.grow(choice.Index + 1)
		out := &a.texts[choice.Index]
		before := out.Len()
		for _, text := range []string{
			choice.Text, choice.Delta.Reasoning, choice.Delta.Thinking, choice.Delta.Content,
		} {
			out.WriteString(text)
		}
		for _, call := range choice.Delta.Calls {
			out.WriteString(call.text())
		}
		piece = piece || out.Len() > before
		if choice.Finish != nil && *choice.Finish != "" {
			a.finish[choice.Index] = *choice.Finish
		}
	}
	return piece, false, nil
}

// toolCall is a piece of a tool call. The name comes in the first piece of a call.
type toolCall struct {
	Index    int `json:"index"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

// text returns the piece as text. It leaves out the id of the call, which is random.
func (c toolCall) text() string {
	if c.Function.Name == "" {
		return c.Function.Arguments
	}
	return fmt.Sprintf("\n[call %d: %s] %s", c.Index, c.Function.Name, c.Function.Arguments)
}
