package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// The content types of streams.
const (
	EventStream = "text/event-stream"    // server-sent events
	JSONLines   = "application/x-ndjson" // a JSON object on each line
)

// Stream writes a response piece by piece and flushes each piece. A client that does not read a piece in time is
// disconnected. It may be used by several goroutines.
type Stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	kind    string
	timeout time.Duration // for one write

	mu    sync.Mutex
	begun bool
	lost  error // why a write failed; nothing is sent after it
}

// NewStream returns a stream of the given content type. It writes nothing before the first piece.
func NewStream(w http.ResponseWriter, kind string, timeout time.Duration) *Stream {
	return &Stream{w: w, control: http.NewResponseController(w), kind: kind, timeout: timeout}
}

// Event writes a server-sent event with a name.
func (s *Stream) Event(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write event as JSON")
	}
	event := make([]byte, 0, len(text)+len(name)+18)
	event = append(append(append(event, "event: "...), name...), "\ndata: "...)
	return s.Write(append(append(event, text...), "\n\n"...))
}

// Loading writes a comment that says how far the loading of a model is.
func (s *Stream) Loading(m *routerv1.ModelLoading) error {
	return s.comment(fmt.Sprintf("loading %s: %d of %d bytes; %s", m.GetModel(), m.GetDoneBytes(), m.GetTotalBytes(),
		m.GetState()))
}

// Running writes a comment that says which tools of the server run.
func (s *Stream) Running(names []string) error {
	return s.comment("running " + strings.Join(names, ", "))
}

// comment writes a comment between server-sent events. It keeps the connection busy, and clients that do not show
// comments are not disturbed.
func (s *Stream) comment(text string) error {
	return s.Write([]byte(": " + strings.NewReplacer("\n", " ", "\r", " ").Replace(text) + "\n\n"))
}

// Line writes an object on a line of its own.
func (s *Stream) Line(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write line as JSON")
	}
	return s.Write(append(text, '\n'))
}

// Write writes one piece as it is. After an error it writes nothing more and returns the same error.
func (s *Stream) Write(piece []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = s.write(piece)
	}
	return s.lost
}

// Begun reports whether the response has begun, after which its status cannot be changed.
func (s *Stream) Begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// Lost returns why the client cannot be reached any more, or nil.
func (s *Stream) Lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *Stream) write(piece []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		return fault.Wrap(fault.Canceled, err, "set the write deadline of an event")
	}
	if !s.begun {
		s.begun = true
		h := s.w.Header()
		h.Set("Content-Type", s.kind)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		s.w.WriteHeader(http.StatusOK)
	}
	if _, err := s.w.Write(piece); err != nil {
		return fault.Wrap(fault.Canceled, err, "write event")
	}
	if err := s.control.Flush(); err != nil {
		return fault.Wrap(fault.Canceled, err, "flush event")
	}
	return nil
}
