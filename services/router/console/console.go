// Package console is the router's page at /: a chat and the live chain of stages.
// Everything it needs is in the binary; it runs no script of anyone else's.
package console

import (
	"context"
	"embed"
	"io/fs"
	"log/slog"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

//go:embed static
var static embed.FS

// Backend tells the topology, now and after each change.
type Backend interface {
	Watch(ctx context.Context, send func(*routerv1.Mesh) error) error
}

// Options is what the page is given from outside.
type Options struct {
	Log *slog.Logger // nil logs nothing
}

// writeTimeout is how long a stalled reader may take for an event.
const writeTimeout = 30 * time.Second

// New returns the handler of the page, its files and /api/topology.
func New(b Backend, o Options) http.Handler {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // the embedded folder is there or the build is broken
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", secure(http.FileServerFS(files)))
	mux.HandleFunc("GET /api/topology", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		control := http.NewResponseController(w)
		err := b.Watch(r.Context(), func(m *routerv1.Mesh) error {
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				return err
			}
			if err := control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
				return err
			}
			if _, err := w.Write(append(append([]byte("data: "), text...), '\n', '\n')); err != nil {
				return err
			}
			return control.Flush()
		})
		log.Debug("end topology stream", "error", err)
	})
	return mux
}

// secure lets the page load nothing but its own files.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}
