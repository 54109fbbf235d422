package toolloop

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// The defaults of Limits.
const (
	DefaultRounds      = 6
	DefaultCalls       = 16
	DefaultResultBytes = 16 << 10
	DefaultBytes       = 64 << 10
)

// Limits bound a loop. Zero values mean the defaults.
type Limits struct {
	Rounds      int // turns of the model that may call tools of the server
	Calls       int // in all turns
	ResultBytes int // of one result, as the model sees it; the rest is cut off
	Bytes       int // of all results
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Rounds: cmp.Or(l.Rounds, DefaultRounds), Calls: cmp.Or(l.Calls, DefaultCalls),
		ResultBytes: cmp.Or(l.ResultBytes, DefaultResultBytes), Bytes: cmp.Or(l.Bytes, DefaultBytes),
	}
}

// Message is a turn of the chat that the loop adds.
type Message struct {
	Role      string // assistant or tool
	Content   string
	Reasoning string
	Calls     []toolcall.Call
	CallID    string // of the call that a message of role tool answers
	Name      string // of the tool that a message of role tool is from
}

// Definition describes a tool to a model.
type Definition struct {
	Name        string
	Description string
	Parameters  json.RawMessage // a JSON Schema; nil for none
}

// Source is a document that a result comes from.
type Source struct {
	URL, Title string
	Text       string // what the model sees of it
}

// Result is what a call of a tool returned: a text, or sources.
type Result struct {
	Text    string
	Sources []Source
	Failed  bool // Text says why
	Dropped int  // bytes of the texts that Bound has left out
}

// Loop is the state of one request.
type Loop struct {
	limits               Limits
	own                  map[string]bool // names of the tools that the server runs
	rounds, calls, bytes int
	closed               bool // no tools are offered any more
	sources              []Source
	numbers              map[string]int // of sources, by URL
}

// New returns the loop of a request whose tools with the given names are run by the server.
func New(l Limits, own map[string]bool) *Loop {
	return &Loop{limits: l.withDefaults(), own: own, numbers: map[string]int{}}
}

// Offers reports whether the next turn may call tools of the server.
func (l *Loop) Offers() bool { return !l.closed }

// Close says that no further turn may call tools of the server, for example because their time is up.
func (l *Loop) Close() { l.closed = true }

// Step says how the chat goes on after a turn of the model.
type Step struct {
	Run    []toolcall.Call // calls of the server's tools; none if the answer is complete
	Client []toolcall.Call // calls that the answer passes on to the client
}

// Turn takes the calls of a turn of the model. cut says that the turn was ended by a limit of tokens, after which
// nothing is run.
func (l *Loop) Turn(calls []toolcall.Call, cut bool) Step {
	var s Step
	for _, c := range calls {
		if l.own[c.Name] {
			s.Run = append(s.Run, c)
		} else {
			s.Client = append(s.Client, c)
		}
	}
	if cut || l.closed || len(s.Client) > 0 {
		s.Run = nil
	}
	if l.rounds++; l.rounds >= l.limits.Rounds {
		l.closed = true
	}
	if free := l.limits.Calls - l.calls; len(s.Run) > free {
		s.Run = s.Run[:free]
	}
	if l.calls += len(s.Run); l.calls >= l.limits.Calls {
		l.closed = true
	}
	return s
}

// Bound returns a result without what no message can have: the texts beyond the limit of one result. It keeps nothing
// of the whole texts alive, and may be called concurrently with everything else.
func (l *Loop) Bound(r Result) Result {
	cut := func(text string) string {
		most := l.limits.ResultBytes
		if len(text) <= most {
			return text
		}
		for most > 0 && !utf8.RuneStart(text[most]) {
			most--
		}
		r.Dropped += len(text) - most
		return strings.Clone(text[:most])
	}
	r.Text = cut(r.Text)
	r.Sources = slices.Clone(r.Sources)
	for i := range r.Sources {
		r.Sources[i].Text = cut(r.Sources[i].Text)
	}
	return r
}

// Results returns the messages that a turn and the results of its calls add to the chat. results are those of Step.Run
// and in its order. turn has all calls of the server's tools; those that were not run get a result that says so.
func (l *Loop) Results(turn Message, results []Result) []Message {
	turn.Role = "assistant"
	out := []Message{turn}
	for i, c := range turn.Calls {
		r := Result{Text: "not run: the limit of calls has been reached", Failed: true}
		if i < len(results) {
			r = results[i]
		}
		// Addresses, titles and errors may have any bytes, and messages are UTF-8.
		text := l.clip(strings.ToValidUTF8(l.write(r), "\ufffd"), r.Dropped)
		l.bytes += len(text)
		out = append(out, Message{Role: "tool", Content: Frame(c.Name, text), CallID: c.ID, Name: c.Name})
	}
	if l.bytes >= l.limits.Bytes {
		l.closed = true
	}
	return out
}

// write returns the text of a result. Its sources get numbers, and a source that came before keeps its number.
func (l *Loop) write(r Result) string {
	var b strings.Builder
	if r.Failed {
		b.WriteString("The call failed: ")
	}
	b.WriteString(r.Text)
	for _, s := range r.Sources {
		n, known := l.numbers[s.URL]
		if !known {
			l.sources = append(l.sources, Source{URL: s.URL, Title: s.Title})
			n = len(l.sources)
			l.numbers[s.URL] = n
		}
		if b.Len() > 0 {
			b.WriteString("\n\n")
		}
		fmt.Fprintf(&b, "[%d] %s\n%s\n%s", n, s.Title, s.URL, s.Text)
	}
	return b.String()
}

// clip cuts a result, of which some bytes have been dropped before, at the limits.
func (l *Loop) clip(text string, dropped int) string {
	free := min(l.limits.ResultBytes, max(0, l.limits.Bytes-l.bytes), len(text))
	if free == len(text) && dropped == 0 {
		return text
	}
	for free > 0 && free < len(text) && !utf8.RuneStart(text[free]) {
		free--
	}
	return fmt.Sprintf("%s\n(cut off: these are %d of %d bytes)", text[:free], free, len(text)+dropped)
}

// Sources returns the sources of all results so far. Source number n of the texts has index n-1.
func (l *Loop) Sources() []Source { return l.sources }
