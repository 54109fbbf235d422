package batches

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Limits bound what batches take. Zero values mean the defaults.
type Limits struct {
	FileBytes int64 // of an input file: 100 MiB
	Disk      int64 // of all files; a tenant has at most half of it: 8 GiB
	Files     int   // of a tenant: 1000
	Active    int   // batches of a tenant that have not ended: 16
	Kept      int   // batches of a tenant, with those that have ended: 256
	Requests  int   // that run at a time, of all batches together: 8
}

// The limits of all tenants together.
const (
	maxFiles   = 1 << 16
	maxBatches = 1 << 14
	maxActive  = 256
	maxUploads = 16 // at a time, of which a tenant has a quarter
	maxPasses  = 4  // files that are read as a whole at a time
)

func (l Limits) withDefaults() Limits {
	l.FileBytes, l.Disk = cmp.Or(l.FileBytes, 100<<20), cmp.Or(l.Disk, 8<<30)
	l.Files, l.Active, l.Kept = cmp.Or(l.Files, 1000), cmp.Or(l.Active, 16), cmp.Or(l.Kept, 256)
	l.Requests = cmp.Or(l.Requests, 8)
	return l
}

// Options are the settings of the API.
type Options struct {
	httpapi.Options
	Dir    string // the folder; empty refuses every call
	Limits Limits
	// Handler serves the requests of batches by their paths. It may get its routes later than this API.
	Handler http.Handler
	Guard   *auth.Guard // knows the owners of batches; nil if nobody has to authenticate
	// Metrics gets the metrics; nil for none.
	Metrics prometheus.Registerer
	// Lowest returns a context whose requests run at the lowest priority; nil changes nothing.
	Lowest func(context.Context) context.Context
	// Fail writes an error in OpenAI's shape, and Error returns the object of such an error.
	Fail  func(w http.ResponseWriter, err error)
	Error func(err error) any
}

// Service is the API with the batches that it runs.
type Service struct {
	Options
	rules  map[string]auth.Rule // of HTTP routes
	store  *store
	turns  *turns        // of requests that run
	passes chan struct{} // taken by those who read a file as a whole
	*metrics

	mu    sync.Mutex
	run   context.Context // of Run; nil before it and after its end
	begun time.Time       // of Run
	wg    sync.WaitGroup  // a goroutine for each batch that runs
}

// New returns a service. It reads the folder when Run is called, or with the first call if it does not exist then.
func New(o Options) *Service {
	o.Options, o.Limits = o.WithDefaults(), o.Limits.withDefaults()
	if o.Lowest == nil {
		o.Lowest = func(ctx context.Context) context.Context { return ctx }
	}
	s := &Service{Options: o, rules: auth.Routes(), store: newStore(o.Dir, o.Limits, o.Log),
		turns: newTurns(o.Limits.Requests), passes: make(chan struct{}, maxPasses), metrics: newMetrics()}
	s.observe(o.Metrics)
	return s
}

// Routes returns the routes of the API.
func (s *Service) Routes() httpapi.API {
	return httpapi.API{Name: "batches", Fail: s.Fail, Log: s.Log, Routes: []httpapi.Route{
		{Method: http.MethodPost, Path: "/v1/files", Handle: s.handle(s.upload),
			Summary: "Upload the requests of a batch, as multipart/form-data.", Body: uploadForm{},
			BodyType: "multipart/form-data"},
		{Method: http.MethodGet, Path: "/v1/files", Handle: s.handle(s.listFiles),
			Summary: "List the files."},
		{Method: http.MethodGet, Path: "/v1/files/{id}", Handle: s.handle(s.getFile),
			Summary: "Describe a file."},
		{Method: http.MethodGet, Path: "/v1/files/{id}/content", Handle: s.handle(s.getContent),
			Summary: "Read a file."},
		{Method: http.MethodDelete, Path: "/v1/files/{id}", Handle: s.handle(s.deleteFile),
			Summary: "Delete a file."},
		{Method: http.MethodPost, Path: "/v1/batches", Handle: s.handle(s.create),
			Summary: "Create a batch of the requests of a file.", Body: createRequest{}},
		{Method: http.MethodGet, Path: "/v1/batches", Handle: s.handle(s.listBatches),
			Summary: "List the batches."},
		{Method: http.MethodGet, Path: "/v1/batches/{id}", Handle: s.handle(s.getBatch),
			Summary: "Describe a batch."},
		{Method: http.MethodPost, Path: "/v1/batches/{id}/cancel", Handle: s.handle(s.cancel),
			Summary: "Cancel a batch."},
	}}
}

// object is a JSON object of an answer.
type object = map[string]any

// handle returns a handler that opens the folder first. f returns the answer; nil if it has written one itself.
func (s *Service) handle(f func(http.ResponseWriter, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := s.open()
		var answer any
		if err == nil {
			answer, err = f(w, r)
		}
		switch {
		case err != nil:
			s.Fail(w, s.withoutPath(r.Context(), err))
		case answer != nil:
			s.Reply(w, http.StatusOK, answer, s.Fail)
		}
	}
}

// withoutPath returns an error without the paths of the server's files, which go to the log.
func (s *Service) withoutPath(ctx context.Context, err error) error {
	var path *fs.PathError
	var link *os.LinkError
	var cause error
	switch {
	case errors.As(err, &path):
		cause = path.Err
	case errors.As(err, &link):
		cause = link.Err
	default:
		return err
	}
	s.Log.ErrorContext(ctx, "store batches", "error", err)
	return fault.Wrap(fault.Unavailable, cause, "store batches")
}

// newID returns a random id.
func newID(prefix string) string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return prefix + hex.EncodeToString(b)
}

// createRequest is the body of POST /v1/batches.
type createRequest struct {
	InputFile string            `json:"input_file_id"`
	Endpoint  string            `json:"endpoint"`
	Window    string            `json:"completion_window"`
	Metadata  map[string]string `json:"metadata"`
	Expires   *struct{}         `json:"output_expires_after"`
}

// The limits of metadata, which are OpenAI's.
const (
	maxPairs = 16
	maxKey   = 64
	maxValue = 512
)

func (c *createRequest) check() error {
	switch {
	case c.InputFile == "":
		return fault.Field("input_file_id", "is missing")
	case c.Window != batch.Window:
		return fault.Field("completion_window", "want %s, got %.40q", batch.Window, c.Window)
	case c.Expires != nil:
		return fault.Field("output_expires_after", "is not supported: files stay until they are deleted")
	case len(c.Metadata) > maxPairs:
		return fault.Field("metadata", "%d pairs are more than %d", len(c.Metadata), maxPairs)
	}
	for k, v := range c.Metadata {
		if len([]rune(k)) > maxKey || len([]rune(v)) > maxValue {
			return fault.Field("metadata", "a key has at most %d characters, and a value %d", maxKey, maxValue)
		}
	}
	return batch.CheckEndpoint(c.Endpoint)
}

func (s *Service) create(w http.ResponseWriter, r *http.Request) (any, error) {
	var c createRequest
	if err := httpapi.Decode(w, r, &c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	owner, tenant := auth.From(r.Context()), auth.Tenant(r.Context())
	if err := s.mayUse(owner, c.Endpoint); err != nil {
		return nil, err
	}
	switch f, err := s.store.file(tenant, c.InputFile); {
	case err != nil:
		return nil, &fault.Error{Code: fault.NotFound, Field: "input_file_id", Reason: "FILE_NOT_FOUND", Err: err,
			Msg: "create batch"}
	case f.Purpose != purposeInput:
		return nil, fault.Field("input_file_id", "the purpose of file %s is %s: want %s", f.ID, f.Purpose, purposeInput)
	}
	b := batch.New(newID(batchPrefix), c.Endpoint, c.InputFile, c.Metadata, time.Now())
	j, err := s.store.addJob(record{Batch: *b, Tenant: tenant, Owner: owner.Owner(), Output: newID(filePrefix),
		Errors: newID(filePrefix)})
	if err != nil {
		return nil, err
	}
	s.start(j) // a router that stops runs it after its restart
	return b, nil
}

// mayUse returns an error if a caller may not use an endpoint in a batch.
func (s *Service) mayUse(p *auth.Principal, endpoint string) error {
	for _, path := range []string{"/v1/batches", endpoint} {
		if rule := s.rules[http.MethodPost+" "+path]; p != nil && !p.May(rule) {
			return auth.Denied(path, p, rule)
		}
	}
	return nil
}

func (s *Service) getBatch(_ http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.store.job(auth.Tenant(r.Context()), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return j.now().Batch, nil
}

func (s *Service) cancel(_ http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.store.job(auth.Tenant(r.Context()), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if err := s.store.change(j, func(b *batch.Batch) error { return b.Cancel(time.Now()) }); err != nil {
		return nil, err
	}
	j.end(errCancelled)
	return j.now().Batch, nil
}

func (s *Service) listBatches(_ http.ResponseWriter, r *http.Request) (any, error) {
	all := s.store.listJobs(auth.Tenant(r.Context()))
	return pageOf(all, func(r record) string { return r.Batch.ID }, func(r record) any { return r.Batch },
		r.URL.Query(), 20, 100)
}

// pageOf returns the page of a list that a query asks for: limit items, normal by default and most at most, behind the
// one that after names. all is the whole list, the newest first.
func pageOf[T any](
	all []T, id func(T) string, show func(T) any, query url.Values, normal, most int,
) (object, error) {
	switch order := query.Get("order"); order {
	case "", "desc":
	case "asc":
		slices.Reverse(all)
	default:
		return nil, fault.Field("order", "want asc or desc, got %.40q", order)
	}
	limit := normal
	if text := query.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > most {
			return nil, fault.Field("limit", "want 1..%d, got %.40q", most, text)
		}
	}
	if after := query.Get("after"); after != "" {
		i := slices.IndexFunc(all, func(item T) bool { return id(item) == after })
		if i < 0 {
			return nil, fault.Field("after", "there is nothing with the id %.80q", after)
		}
		all = all[i+1:]
	}
	page := all[:min(limit, len(all))]
	data := make([]any, len(page))
	for i, item := range page {
		data[i] = show(item)
	}
	out := object{"object": "list", "data": data, "first_id": nil, "last_id": nil, "has_more": len(all) > len(page)}
	if len(page) > 0 {
		out["first_id"], out["last_id"] = id(page[0]), id(page[len(page)-1])
	}
	return out, nil
}
