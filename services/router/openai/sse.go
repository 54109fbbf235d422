package openai

import (
	"encoding/json"
	"net/http"
	"strconv"
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

// unnumbered is the number of an event without an id.
const unnumbered = -1

// send writes one event and flushes it. A number becomes the event's id.
func (s *stream) send(number int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write event as JSON")
	}
	return s.write(number, text)
}

// end writes the event that ends a complete response.
func (s *stream) end(number int) error { return s.write(number, []byte("[DONE]")) }

func (s *stream) write(number int, data []byte) error {
	event := make([]byte, 0, len(data)+32)
	if number != unnumbered {
		event = append(strconv.AppendInt(append(event, "id: "...), int64(number), 10), '\n')
	}
	event = append(append(append(event, "data: "...), data...), "\n\n"...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = s.writeEvent(event)
	}
	return s.lost
}

// fail writes the event of an error. wait is how long a browser's EventSource waits before it connects
// again; 0 says nothing about it.
func (s *stream) fail(body apiError, wait time.Duration) error {
	text, err := json.Marshal(map[string]any{"error": body})
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write error as JSON")
	}
	var event []byte
	if wait > 0 {
		event = append(strconv.AppendInt(append(event, "retry: "...), wait.Milliseconds(), 10), '\n')
	}
	event = append(append(append(event, "data: "...), text...), "\n\n"...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = s.writeEvent(event)
	}
	return s.lost
}

func (s *stream) writeEvent(event []byte) error {
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
	if _, err := s.w.Write(event); err != nil {
		return fault.Wrap(fault.Canceled, err, "write event")
	}
	if err := s.control.Flush(); err != nil {
		return fault.Wrap(fault.Canceled, err, "flush event")
	}
	return nil
}
