package openai

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// stream writes server-sent events without names.
type stream struct{ *httpapi.Stream }

func newStream(w http.ResponseWriter, timeout time.Duration) stream {
	return stream{httpapi.NewStream(w, httpapi.EventStream, timeout)}
}

// unnumbered is the number of an event without an id.
const unnumbered = -1

// send writes one event and flushes it. A number becomes the event's id.
func (s stream) send(number int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write event as JSON")
	}
	return s.event(number, text)
}

// end writes the event that ends a complete response.
func (s stream) end(number int) error { return s.event(number, []byte("[DONE]")) }

func (s stream) event(number int, data []byte) error {
	event := make([]byte, 0, len(data)+32)
	if number != unnumbered {
		event = append(strconv.AppendInt(append(event, "id: "...), int64(number), 10), '\n')
	}
	return s.Write(append(append(append(event, "data: "...), data...), "\n\n"...))
}

// fail writes the event of an error. wait is how long a browser's EventSource waits before it connects
// again; 0 says nothing about it.
func (s stream) fail(body apiError, wait time.Duration) error {
	text, err := json.Marshal(map[string]any{"error": body})
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write error as JSON")
	}
	var event []byte
	if wait > 0 {
		event = append(strconv.AppendInt(append(event, "retry: "...), wait.Milliseconds(), 10), '\n')
	}
	return s.Write(append(append(append(event, "data: "...), text...), "\n\n"...))
}
