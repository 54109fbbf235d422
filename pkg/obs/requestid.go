package obs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
)

// RequestIDHeader is the HTTP header, and the key of the gRPC metadata, that carries the id of a
// request.
const RequestIDHeader = "x-request-id"

// maxRequestID is the maximum length in bytes of an id that a client may send.
const maxRequestID = 128

// SessionIDHeader is the HTTP header, and the key of the gRPC metadata, by which a client names the session or
// conversation that a request belongs to.
const SessionIDHeader = "x-session-id"

type (
	requestIDKey struct{}
	sessionIDKey struct{}
)

// WithSessionID returns a context that carries the id of a session. One that is not valid is left out.
func WithSessionID(ctx context.Context, id string) context.Context {
	if !ValidRequestID(id) {
		return ctx
	}
	return context.WithValue(ctx, sessionIDKey{}, id)
}

// SessionID returns the id of the session that ctx belongs to, or an empty string.
func SessionID(ctx context.Context) string {
	id, _ := ctx.Value(sessionIDKey{}).(string)
	return id
}

// WithRequestID returns a context that carries the id of a request.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID returns the id of the request that ctx belongs to, or an empty string.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// NewRequestID returns an id of 128 random bits, which nobody can guess: a resumable request is read by
// its id.
func NewRequestID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// ValidRequestID reports whether an id from a client is accepted. It must have 1 to 128 letters,
// digits and characters of -_.:/+=@, so that it is safe in headers and logs.
func ValidRequestID(id string) bool {
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.', c == ':', c == '/', c == '+', c == '=', c == '@':
		default:
			return false
		}
	}
	return 0 < len(id) && len(id) <= maxRequestID
}

// RequestIDs gives every request to next an id, in its context and in the x-request-id header of
// the response. It takes the id from the client if that sends a valid one, and makes a new one
// otherwise. A request whose context has an id keeps it. The id of a session is taken from the client, too.
func RequestIDs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := RequestID(r.Context())
		if id == "" {
			if id = r.Header.Get(RequestIDHeader); !ValidRequestID(id) {
				id = NewRequestID()
			}
			r = r.WithContext(WithRequestID(r.Context(), id))
		}
		if session := r.Header.Get(SessionIDHeader); ValidRequestID(session) {
			r = r.WithContext(WithSessionID(r.Context(), session))
		}
		w.Header().Set(RequestIDHeader, id)
		next.ServeHTTP(w, r)
	})
}

// LogRequestIDs returns a handler that adds the attribute request_id to records whose context
// carries an id, and passes them to next. The loggers of NewLogger have it already.
func LogRequestIDs(next slog.Handler) slog.Handler { return requestIDHandler{next} }

type requestIDHandler struct{ slog.Handler }

// Handle adds the id and passes the record on.
func (h requestIDHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := RequestID(ctx); id != "" {
		r.AddAttrs(slog.String("request_id", id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs returns a handler with more attributes that still adds the ids.
func (h requestIDHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return requestIDHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup returns a handler with a group that still adds the ids.
func (h requestIDHandler) WithGroup(name string) slog.Handler {
	return requestIDHandler{h.Handler.WithGroup(name)}
}
