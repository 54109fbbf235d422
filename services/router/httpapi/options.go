package httpapi

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/agent"
)

// WriteTimeout is how long a client may take to read an event, unless the program says otherwise.
const WriteTimeout = 30 * time.Second

// Options are the settings that all APIs have.
type Options struct {
	Log          *slog.Logger  // nil logs nothing
	WriteTimeout time.Duration // for a client to read an answer, or an event of one; 0 means WriteTimeout
	Tools        *agent.Box    // that the server runs for requests that name them; nil for none
}

// WithDefaults returns the options with defaults for those that are not set.
func (o Options) WithDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = WriteTimeout
	}
	return o
}

// Reply writes one object as the answer. If it has no JSON form, fail writes the error instead.
func (o Options) Reply(w http.ResponseWriter, status int, v any, fail func(http.ResponseWriter, error)) {
	err := WriteJSON(w, o.WriteTimeout, status, v)
	switch {
	case fault.CodeOf(err) == fault.Internal:
		fail(w, err)
	case err != nil:
		o.Log.Debug("write answer", "error", err)
	}
}
