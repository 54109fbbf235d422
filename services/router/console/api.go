package console

import (
	"context"
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Backend is the router. Its errors are faults.
type Backend interface {
	// Watch reports the topology, at once and after each change, until ctx ends or send fails. It calls send from one
	// goroutine.
	Watch(ctx context.Context, send func(*routerv1.Mesh) error) error
	// Trainers returns the addresses of the trainers of the mesh.
	Trainers() []string
	// LoadAdapter reads the frames of LoadAdapter by next until it has all of them.
	LoadAdapter(
		ctx context.Context, next func() (*routerv1.LoadAdapterRequest, error),
	) (*routerv1.LoadAdapterResponse, error)
	UnloadAdapter(ctx context.Context, r *routerv1.UnloadAdapterRequest) (*routerv1.UnloadAdapterResponse, error)
}

// Keys are the API keys of the process.
type Keys interface {
	List() ([]auth.Key, error)
	Add(k auth.Key) (auth.Key, string, error)
	Rotate(id string, grace time.Duration) (auth.Key, string, error)
	Revoke(id string) (auth.Key, error)
}

// Options are the settings of the console's API. What a process does not have is nil.
type Options struct {
	httpapi.Options
	Guarded bool                                                // callers have to authenticate
	Keys    Keys                                                // nil without a file of keys
	Store   Store                                               // nil without a store of models
	Base    string                                              // model that runs may start from by its name; or empty
	Dial    func(addr string) (grpc.ClientConnInterface, error) // reaches trainers
}

type server struct {
	Options
	backend Backend
}

// Routes returns the routes of the console's API.
func Routes(b Backend, o Options) httpapi.API {
	o.Options = o.WithDefaults()
	s := &server{o, b}
	route := func(method, path string, handle http.HandlerFunc, summary string, body any, stream string) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Handle: handle, Summary: summary, Body: body, Stream: stream}
	}
	get := func(path string, handle http.HandlerFunc, summary string) httpapi.Route {
		return route(http.MethodGet, path, handle, summary, nil, "")
	}
	post := func(path string, handle http.HandlerFunc, summary string, body any) httpapi.Route {
		return route(http.MethodPost, path, handle, summary, body, "")
	}
	remove := func(path string, handle http.HandlerFunc, summary string) httpapi.Route {
		return route(http.MethodDelete, path, handle, summary, nil, "")
	}
	return httpapi.API{Name: "console", Fail: s.fail, Log: s.Log, Routes: []httpapi.Route{
		get("/api/access", s.access, "Tell what the caller may do."),
		route(http.MethodGet, "/api/topology", s.topology, "Send the mesh now and after each change.", nil,
			httpapi.EventStream),
		get("/api/runs", s.runs, "List the training runs."),
		post("/api/runs", s.startRun, "Start a training run.", startBody{}),
		post("/api/runs/{run}/stop", s.stopRun, "Stop a training run, with a checkpoint.", nil),
		post("/api/runs/{run}/pause", s.pauseRun, "Pause a training run, with a checkpoint.", nil),
		post("/api/runs/{run}/resume", s.resumeRun, "Go on with a training run.", layoutBody{}),
		remove("/api/runs/{run}", s.deleteRun, "Delete a training run and its files."),
		get("/api/runs/{run}/files", s.files, "List the files of a training run."),
		get("/api/runs/{run}/files/{name...}", s.file, "Fetch a file of a training run."),
		get("/api/keys", s.keys, "List the API keys."),
		post("/api/keys", s.addKey, "Make an API key.", keyBody{}),
		post("/api/keys/{key}/rotate", s.rotateKey, "Give an API key another secret.", graceBody{}),
		post("/api/keys/{key}/revoke", s.revokeKey, "Make an API key invalid.", nil),
		get("/api/store", s.stored, "List the models of the router's machine."),
		remove("/api/store/{model}", s.removeModel, "Remove a model from the router's machine."),
		post("/api/store/{model}/load", s.loadModel, "Serve a model of the router's machine.", nil),
		route(http.MethodGet, "/api/pulls", s.pulls, "Send the state of the pulls now and after each change.", nil,
			httpapi.EventStream),
		post("/api/pulls", s.startPull, "Fetch a model.", PullRequest{}),
		remove("/api/pulls/{pull}", s.cancelPull, "End a pull, or forget one that has ended."),
		post("/api/adapters", s.loadAdapter, "Load an adapter, or go back to an earlier one.", nil),
		remove("/api/adapters/{adapter}", s.unloadAdapter, "Unload an adapter."),
	}}
}

// problem is the body of an error.
type problem struct {
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// fail writes err as the response.
func (s *server) fail(w http.ResponseWriter, err error) {
	p := httpapi.Explain(err)
	p.SetRetryAfter(w)
	s.reply(w, p.Status, map[string]problem{"error": {p.Message, p.Field, p.Reason}})
}

func (s *server) reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Cache-Control", "no-store")
	s.Reply(w, status, v, s.fail)
}

// decode reads the body. It reports whether the handler may go on.
func (s *server) decode(w http.ResponseWriter, r *http.Request, v any) bool {
	err := httpapi.Decode(w, r, v)
	if err != nil {
		s.fail(w, err)
	}
	return err == nil
}

// marshal writes a message in protobuf's JSON mapping, with the names of the .proto file.
func marshal(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "write %s as JSON", m.ProtoReflect().Descriptor().FullName())
	}
	return text, nil
}

// accessBody is the answer of /api/access.
type accessBody struct {
	Guarded bool        `json:"guarded"`        // callers have to authenticate
	Who     string      `json:"who,omitempty"`  // id of the caller
	Name    string      `json:"name,omitempty"` // of the caller's key
	Tenant  string      `json:"tenant,omitempty"`
	May     []auth.Verb `json:"may"`
	Keys    bool        `json:"keys"`           // there is a file of keys
	Store   bool        `json:"store"`          // there is a store of models
	Trainer bool        `json:"trainer"`        // there is a trainer
	Base    string      `json:"base,omitempty"` // model that a manifest may name in model.from
}

func (s *server) access(w http.ResponseWriter, r *http.Request) {
	p := auth.From(r.Context())
	out := accessBody{Guarded: s.Guarded, May: []auth.Verb{}, Keys: s.Keys != nil, Store: s.Store != nil,
		Trainer: len(s.backend.Trainers()) > 0, Base: s.Base}
	if p != nil {
		out.Who, out.Name, out.Tenant = p.ID, p.Name, p.Tenant
	}
	for _, v := range auth.Verbs() {
		if p == nil || p.May(auth.Rule{Verb: v}) {
			out.May = append(out.May, v)
		}
	}
	s.reply(w, http.StatusOK, out)
}

// topology sends the mesh as server-sent events.
func (s *server) topology(w http.ResponseWriter, r *http.Request) {
	stream := httpapi.NewStream(w, httpapi.EventStream, s.WriteTimeout)
	err := s.backend.Watch(r.Context(), func(m *routerv1.Mesh) error {
		text, err := marshal(m)
		if err != nil {
			return err
		}
		return stream.Write(append(append([]byte("data: "), text...), "\n\n"...))
	})
	s.endStream(w, stream, err)
}

// endStream ends a stream of events. A browser connects again by itself.
func (s *server) endStream(w http.ResponseWriter, stream *httpapi.Stream, err error) {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
	case stream.Begun():
		s.Log.Debug("end stream of the console", "error", err)
	default:
		s.fail(w, err)
	}
}
