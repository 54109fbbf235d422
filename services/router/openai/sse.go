package openai

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// stream writes server-sent events, one writer at a time.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration // for one write

	mu    sync.Mutex
	begun bool
	lost  error // why a write failed; nothing is sent after it
}

func newStream(w http.ResponseWriter, timeout time.Duration) *stream {
	return &stream{w: w, control: http.NewResponseController(w), timeout: timeout}
}

// send writes one event and flushes it.
func (s *stream) send(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write event as JSON")
	}
	return s.write(text)
}

// end writes the event that ends a complete response.
func (s *stream) end() error { return s.write([]byte("[DONE]")) }

func (s *stream) write(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = s.writeEvent(data)
	}
	return s.lost
}

func (s *stream) writeEvent(data []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return fault.Wrap(fault.Canceled, err, "set the write deadline of an event")
	}
	if !s.begun {
		s.begun = true
		h := s.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		s.w.WriteHeader(http.StatusOK)
	}
	event := make([]byte, 0, len(data)+8)
	event = append(append(append(event, "data: "...), data...), "\n\n"...)
	if _, err := s.w.Write(event); err != nil {
		return fault.Wrap(fault.Canceled, err, "write event")
	}
	if err := s.control.Flush(); err != nil {
		return fault.Wrap(fault.Canceled, err, "flush event")
	}
	return nil
}
