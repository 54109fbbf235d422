package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

const (
	maxBody     = 4 << 20
	readTimeout = 30 * time.Second // for a client to send its request
)

// MaxInteger is the limit of counts, such as max_tokens and top_k, as in the backend.
const MaxInteger = 1 << 24

// Decode reads a body of at most 4 MiB into v. An error names the field or the byte. embedded are the names of
// structs that v embeds, which are no part of a field's name.
func Decode(w http.ResponseWriter, r *http.Request, v any, embedded ...string) error {
	body, err := ReadBody(w, r)
	if err != nil {
		return err
	}
	return Unmarshal(body, v, embedded...)
}

// ReadBody reads a body of at most 4 MiB.
func ReadBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(readTimeout)); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		return nil, fault.Wrap(fault.Canceled, err, "set the read deadline of the body")
	}
	var from io.Reader = http.MaxBytesReader(w, r.Body, maxBody)
	if room, ok := r.Context().Value(roomKey{}).(*rpc.Body); ok { // it takes room as it is read, not as it is announced
		from = room.Reader(from, fault.Unavailable)
	}
	body, err := io.ReadAll(from)
	var full *fault.Error
	if errors.As(err, &full) { // there is no room for it
		return nil, full
	}
	if err != nil {
		return nil, &fault.Error{Code: fault.Invalid, Field: "body",
			Msg: "read at most " + strconv.Itoa(maxBody) + " bytes in " + readTimeout.String(), Err: err}
	}
	// From here on the connection is read only to notice that the client has gone.
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, fault.Wrap(fault.Canceled, err, "clear the read deadline of the body")
	}
	return body, nil
}

// Unmarshal reads JSON like Decode.
func Unmarshal(body []byte, v any, embedded ...string) error {
	err := json.Unmarshal(body, v)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fault.Field("body", "read JSON at byte %d: %v", syntax.Offset, err)
	case errors.As(err, &kind):
		field := kind.Field
		for _, name := range embedded {
			field = strings.TrimPrefix(field, name+".")
		}
		if field == "" {
			field = "body"
		}
		return fault.Field(field, "want %s, got %s", configfile.Kind(kind.Type), kind.Value)
	}
	return fault.Field("body", "read JSON: %v", err)
}

// Given reports whether an optional field is present and not null.
func Given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// WriteJSON writes one object. The client must read it within the timeout. A value that has no JSON form is an
// error, and then nothing has been written; other errors say that the client has gone.
func WriteJSON(w http.ResponseWriter, timeout time.Duration, status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil { // a log-probability that is not finite
		return fault.Wrap(fault.Internal, err, "write answer as JSON")
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeout)); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		return fault.Wrap(fault.Canceled, err, "limit write")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(text, '\n')); err != nil {
		return fault.Wrap(fault.Canceled, err, "write answer")
	}
	return nil
}
