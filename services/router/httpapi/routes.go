package httpapi

import (
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Route is one method and path of an API. Path is a pattern of net/http without a method.
type Route struct {
	Method, Path string
	Handle       http.HandlerFunc
	Summary      string // what it does, in a few words
	Body         any    // a value of the type of the body, whose JSON names describe it; nil for none
	BodyType     string // the content type of the body; empty for JSON
	Stream       string // the content type of a stream that it may answer with; empty for none
}

// API is the routes whose errors have one shape.
type API struct {
	Name   string // for example "openai"
	Routes []Route
	// Fail writes an error as the response, in the API's shape.
	Fail func(w http.ResponseWriter, err error)
	Log  *slog.Logger // gets a line at level debug for each request when it ends; nil logs nothing
}

// MethodError says that a path has no such method.
type MethodError struct {
	Method, Path string
	Allow        []string
}

// Error names the methods that the path has.
func (e *MethodError) Error() string {
	return "use " + strings.Join(e.Allow, " or ") + " for " + e.Path + ", not " + e.Method
}

// FaultCode returns Invalid.
func (e *MethodError) FaultCode() fault.Code { return fault.Invalid }

// Mux serves the routes of all APIs.
func Mux(apis ...API) *http.ServeMux {
	mux := http.NewServeMux()
	Register(mux, apis...)
	return mux
}

// Register adds the routes of all APIs to mux, which share the room for bodies. Another method of a known path is
// refused in the shape of the API that has the path. The tenant that a request names is part of its context.
func Register(mux *http.ServeMux, apis ...API) {
	all := rpc.NewBodies(rpc.MaxBodies)
	for _, api := range apis {
		methods := map[string][]string{}
		for _, r := range api.Routes {
			mux.Handle(r.Method+" "+r.Path, Logged(api.Log, tenants(hold(all, r.Handle), api.Fail)))
			methods[r.Path] = append(methods[r.Path], r.Method)
		}
		for path, allow := range methods {
			mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
				shown := strings.Join(allow, ", ")
				w.Header().Set("Allow", strings.Replace(shown, http.MethodGet, "GET, HEAD", 1))
				api.Fail(w, &MethodError{Method: r.Method, Path: r.URL.Path, Allow: allow})
			})
		}
	}
}

// Logged writes a line at level debug for each request when it ends. A nil log gets none.
func Logged(log *slog.Logger, next http.HandlerFunc) http.HandlerFunc {
	if log == nil {
		return next
	}
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		next(w, r)
		log.DebugContext(r.Context(), "end HTTP request", "method", r.Method, "path", r.URL.Path, "took",
			time.Since(start))
	}
}

// tenants puts the tenant that a request names into its context.
func tenants(next http.HandlerFunc, fail func(http.ResponseWriter, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tenant, err := auth.ReadTenant(r.Header.Values(auth.TenantKey))
		if err != nil {
			fail(w, err)
			return
		}
		if tenant != "" {
			r = r.WithContext(auth.WithTenant(r.Context(), tenant))
		}
		next(w, r)
	}
}

// UnknownPath is the error of a path that does not exist.
func UnknownPath(path string) error {
	return fault.New(fault.NotFound, "find path %s: it does not exist", strconv.Quote(path)).Because("UNKNOWN_URL")
}
