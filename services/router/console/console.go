package console

import (
	"context"
	"embed"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

//go:embed static
var static embed.FS

// Backend reports the topology, at once and after each change, until ctx ends or send fails. It
// calls send from one goroutine. Its errors are faults.
type Backend interface {
	Watch(ctx context.Context, send func(*routerv1.Mesh) error) error
}

// Options are the settings of the page.
type Options = httpapi.Options

type server struct {
	Options
	backend Backend
}

// New returns the handler of the page, its files and /api/topology.
func New(b Backend, o Options) http.Handler {
	s := &server{o.WithDefaults(), b}
	mux := http.NewServeMux()
	for pattern, file := range files() {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache") // a newer binary has newer files
			http.ServeFileFS(w, r, static, "static/"+file)
		})
	}
	mux.HandleFunc(topologyRoute, s.topology)
	return secure(mux)
}

const topologyRoute = "GET /api/topology"

// files returns the files of the page by their routes.
func files() map[string]string {
	return map[string]string{"GET /{$}": "index.html", "GET /app.js": "app.js", "GET /mesh.js": "mesh.js",
		"GET /style.css": "style.css"}
}

// Routes returns the patterns of all routes of the handler.
func Routes() []string {
	return append(slices.Sorted(maps.Keys(files())), topologyRoute)
}

// topology sends the mesh as server-sent events.
func (s *server) topology(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	begun := false
	err := s.backend.Watch(r.Context(), func(m *routerv1.Mesh) error {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "write the mesh as JSON")
		}
		if err := control.SetWriteDeadline(time.Now().Add(s.WriteTimeout)); err != nil {
			return fault.Wrap(fault.Canceled, err, "set the write deadline of an event")
		}
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("X-Accel-Buffering", "no")
		}
		event := make([]byte, 0, len(text)+8)
		if _, err := w.Write(append(append(append(event, "data: "...), text...), "\n\n"...)); err != nil {
			return fault.Wrap(fault.Canceled, err, "write event")
		}
		if err := control.Flush(); err != nil {
			return fault.Wrap(fault.Canceled, err, "flush event")
		}
		return nil
	})
	switch {
	case err == nil, errors.Is(err, context.Canceled): // the browser reconnects by itself, or has gone
	case begun:
		s.Log.Debug("end topology stream", "error", err)
	default:
		http.Error(w, err.Error(), rpc.HTTPStatus(fault.CodeOf(err)))
	}
}

// secure sets headers that let the page load only its own files and forbid framing.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set(
			"Content-Security-Policy",
			"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}
