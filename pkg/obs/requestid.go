package obs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
)

// RequestIDHeader carries a request's id over HTTP, and in lower case as gRPC metadata.
const RequestIDHeader = "x-request-id"

// maxRequestID is the most bytes of an id that is taken over from a client.
const maxRequestID = 128

type requestIDKey struct{}

// WithRequestID returns a context that carries a request's id.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID returns the id of the request that ctx belongs to, or empty.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// NewRequestID makes a random id.
func NewRequestID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// ValidRequestID reports whether a client's id is taken over: 1 to 128 letters, digits
// and the characters -_.:/+=@, so that it is safe in headers, logs and other ids.
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

// RequestIDs gives every request to next an id, in its context and in the response's
// x-request-id header: the client's, if it sends a valid one, or else a new one. A
// request that has an id in its context already keeps it.
func RequestIDs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := RequestID(r.Context())
		if id == "" {
			if id = r.Header.Get(RequestIDHeader); !ValidRequestID(id) {
				id = NewRequestID()
			}
			r = r.WithContext(WithRequestID(r.Context(), id))
		}
		w.Header().Set(RequestIDHeader, id)
		next.ServeHTTP(w, r)
	})
}

// LogRequestIDs adds the attribute request_id to the records of next whose context
// carries an id. NewLogger does it by itself.
func LogRequestIDs(next slog.Handler) slog.Handler { return requestIDHandler{next} }

type requestIDHandler struct{ slog.Handler }

// Handle adds the id.
func (h requestIDHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := RequestID(ctx); id != "" {
		r.AddAttrs(slog.String("request_id", id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps the ids on.
func (h requestIDHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return requestIDHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup keeps the ids on.
func (h requestIDHandler) WithGroup(name string) slog.Handler {
	return requestIDHandler{h.Handler.WithGroup(name)}
}
