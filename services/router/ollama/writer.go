package ollama

import (
	"net/http"
	"strings"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// writer sends an answer, line by line or whole.
type writer struct {
	s        *server
	w        http.ResponseWriter
	lines    *httpapi.Stream
	streamed bool
	model    string
	text     strings.Builder // of an answer that is not streamed
	thoughts strings.Builder
	logprobs bool
	tokens   httpapi.TokenLog   // since the last line
	silent   httpapi.SilentWait // of an answer that is not streamed
}

func (s *server) newWriter(w http.ResponseWriter, c *common) *writer {
	return &writer{s: s, w: w, streamed: c.stream(), logprobs: c.Logprobs,
		lines: httpapi.NewStream(w, httpapi.JSONLines, s.WriteTimeout)}
}

// token notes a token, whose log-probability the next line has.
func (o *writer) token(t *routerv1.TokenEvent) {
	if o.logprobs {
		o.tokens.Add(t)
	}
}

// complete fills in what every line has.
func (o *writer) complete(l *line) {
	l.Model, l.CreatedAt = o.model, time.Now().UTC()
	for _, p := range httpapi.Logprobs(o.tokens.All()...) {
		l.Logprobs = append(l.Logprobs, logprob(p))
	}
}

// chat sends what was added to a message, or adds it to all.
func (o *writer) chat(all *outMessage, m outMessage) error {
	if m.Content == "" && m.Thinking == "" && len(m.ToolCalls) == 0 && len(m.Executed) == 0 {
		return nil
	}
	if o.streamed {
		m.Role = "assistant"
		return o.line(line{Message: &m})
	}
	o.text.WriteString(m.Content)
	o.thoughts.WriteString(m.Thinking)
	all.ToolCalls, all.Executed = append(all.ToolCalls, m.ToolCalls...), append(all.Executed, m.Executed...)
	all.Content, all.Thinking = o.text.String(), o.thoughts.String()
	return nil
}

// generated sends what was added to a generation.
func (o *writer) generated(text, thoughts string) error {
	if text == "" && thoughts == "" {
		return nil
	}
	if o.streamed {
		return o.line(line{Response: &text, Thinking: thoughts})
	}
	o.text.WriteString(text)
	o.thoughts.WriteString(thoughts)
	return nil
}

// loading sends a line without text that says how far the loading of the model is. It bounds the wait for an answer
// that is not streamed.
func (o *writer) loading(m *routerv1.ModelLoading, l line) error {
	if !o.streamed {
		return o.silent.Loading(m)
	}
	o.model = m.GetModel()
	l.Status, l.Bytes, l.Completed = "loading: "+m.GetState(), m.GetTotalBytes(), m.GetDoneBytes()
	return o.line(l)
}

// generating is loading for a generation.
func (o *writer) generating(m *routerv1.ModelLoading) error {
	empty := ""
	return o.loading(m, line{Response: &empty})
}

func (o *writer) line(l line) error {
	o.complete(&l)
	return o.lines.Line(l)
}

// end sends the last line, or the whole answer.
func (o *writer) end(r *http.Request, l line) {
	if !o.streamed {
		o.complete(&l)
		o.s.json(o.w, http.StatusOK, l)
		return
	}
	if err := o.line(l); err != nil {
		o.s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}

// fail sends an error: as the response, or as the last line if the response has begun.
func (o *writer) fail(r *http.Request, err error) {
	if !o.lines.Begun() {
		o.s.fail(o.w, err)
		return
	}
	if o.lines.Lost() == nil {
		err = o.lines.Line(map[string]string{"error": message(httpapi.Explain(err))})
	}
	if err != nil {
		o.s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}
