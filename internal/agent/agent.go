// Package agent is a service registry in this process that speaks the part of the HTTP API of a Consul
// agent that pkg/discovery/consul uses: services with gRPC health checks, blocking queries, sessions,
// locks, values with check-and-set and lists of keys.
// `lamina chaos` starts a fleet against it, so that a machine without Consul can run one,
// and takes it away as a fault. It keeps nothing on disk, like `consul agent -dev`.
//
// The test suite of pkg/discovery passes on it through the adapter for Consul. It has no access
// control, so it listens on loopback only.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Agents of Consul allow intervals of at least a second. A check fails after the timeout.
const (
	checkInterval = time.Second
	checkTimeout  = 3 * time.Second
	criticalAfter = time.Minute // a failing instance is removed
	maxWait       = time.Minute // of a blocking query
	maxBody       = 1 << 20
	version       = "2.1.0" // the release whose API is imitated
)

// Agent is a registry. Its methods may be called concurrently.
type Agent struct {
	addr   string
	dialer *rpc.Dialer

	mu       sync.Mutex
	index    uint64
	changed  chan struct{} // closed and replaced at each change
	services map[string]*service
	sessions map[string]*session
	keys     map[string]*pair
	server   *http.Server // nil while stopped
	stop     context.CancelFunc
	work     sync.WaitGroup // the server and the checks
}

type service struct {
	ID      string
	Name    string `json:",omitempty"`
	Service string // the name, as queries return it
	Address string
	Port    int
	Meta    map[string]string

	passing bool
	end     context.CancelFunc // of its check
}

type session struct {
	ID, Name string
	expires  time.Time
	ttl      time.Duration
	deletes  bool // its keys end with it
}

type pair struct {
	Key         string
	Value       []byte
	Session     string `json:",omitempty"`
	LockIndex   uint64
	CreateIndex uint64
	ModifyIndex uint64
}

// New returns an agent on a free port of 127.0.0.1. Start starts it.
func New() (*Agent, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen for the registry")
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen for the registry")
	}
	return &Agent{addr: addr, dialer: rpc.NewDialer(rpc.DialOptions{}), changed: make(chan struct{})}, nil
}

// CheckWith sets how the agent reaches the services whose health it checks. Call it before Start.
func (a *Agent) CheckWith(o rpc.DialOptions) { a.dialer = rpc.NewDialer(o) }

// Addr returns the address of the HTTP API. It stays the same over Stop and Start.
func (a *Agent) Addr() string { return a.addr }

// Start serves the API. It begins with an empty registry.
func (a *Agent) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil {
		return fault.New(fault.FailedPrecondition, "start the registry: it is running")
	}
	l, err := net.Listen("tcp", a.addr)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "listen for the registry")
	}
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	a.services, a.sessions, a.keys = map[string]*service{}, map[string]*session{}, map[string]*pair{}
	a.change()
	server := &http.Server{
		Handler: a.routes(ctx), BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: checkTimeout,
	}
	a.server = server
	a.work.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			stop() // nobody can reach the agent any more; Stop finds it so
		}
	})
	a.work.Go(func() { a.expire(ctx) })
	return nil
}

// Stop closes all connections and forgets everything.
func (a *Agent) Stop() error {
	a.mu.Lock()
	server := a.server
	a.server = nil
	if server == nil {
		a.mu.Unlock()
		return nil
	}
	a.stop()
	a.mu.Unlock()
	err := server.Close()
	a.work.Wait()
	return err
}

// Close stops the agent and closes its connections to services.
func (a *Agent) Close() error { return errors.Join(a.Stop(), a.dialer.Close()) }

// change begins a new index and wakes the blocking queries. The caller holds mu.
func (a *Agent) change() {
	a.index++
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Agent) routes(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/agent/self", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"Config": map[string]any{"Version": version}})
	})
	mux.HandleFunc("GET /v1/status/leader", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.addr) })
	mux.HandleFunc("PUT /v1/agent/service/register",
		func(w http.ResponseWriter, r *http.Request) { a.register(ctx, w, r) })
	mux.HandleFunc("PUT /v1/agent/service/deregister/{id}", a.deregister)
	mux.HandleFunc("GET /v1/agent/service/{id}", a.lookUp)
	mux.HandleFunc("GET /v1/agent/services", a.listServices)
	mux.HandleFunc("GET /v1/catalog/services", a.listNames)
	mux.HandleFunc("GET /v1/health/service/{name}", a.healthy)
	mux.HandleFunc("PUT /v1/session/create", a.createSession)
	mux.HandleFunc("PUT /v1/session/renew/{id}", a.renewSession)
	mux.HandleFunc("PUT /v1/session/destroy/{id}", a.destroySession)
	mux.HandleFunc("GET /v1/kv/{key...}", a.get)
	mux.HandleFunc("PUT /v1/kv/{key...}", a.put)
	return http.MaxBytesHandler(mux, maxBody)
}

func answer(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text) // the client has gone if this fails
}

// decode reads the body of a request, or answers that it cannot be read.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		http.Error(w, "parse request: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func (a *Agent) register(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	var body struct {
		service
		Check struct{ GRPC string }
	}
	if !decode(w, r, &body) {
		return
	}
	if body.ID == "" || body.Name == "" || body.Check.GRPC == "" {
		http.Error(w, "want an ID, a Name and a gRPC check", http.StatusBadRequest)
		return
	}
	s := &body.service
	s.Service, s.Name = s.Name, ""
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server == nil {
		http.Error(w, "the agent is stopping", http.StatusServiceUnavailable)
		return
	}
	checked, end := context.WithCancel(ctx)
	s.end = end
	if before := a.services[s.ID]; before != nil {
		before.end()
		// Registering an instance again keeps the state of its check, as Consul does.
		s.passing = before.passing && before.Address == s.Address && before.Port == s.Port
	}
	a.services[s.ID] = s
	a.change()
	a.work.Go(func() { a.check(checked, s, body.Check.GRPC) })
}

// check calls the health service of an instance until it is replaced or removed.
func (a *Agent) check(ctx context.Context, s *service, addr string) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	lastGood := time.Now()
	for {
		passing := a.serving(ctx, addr)
		if ctx.Err() != nil {
			return
		}
		if passing {
			lastGood = time.Now()
		}
		a.mu.Lock()
		if s.passing != passing {
			s.passing = passing
			a.change()
		}
		if time.Since(lastGood) > criticalAfter && a.services[s.ID] == s {
			delete(a.services, s.ID)
			a.change()
			s.end()
		}
		a.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) serving(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	conn, err := a.dialer.Dial(addr)
	if err != nil {
		return false
	}
	resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err == nil && resp.GetStatus() == healthv1.HealthCheckResponse_SERVING
}

func (a *Agent) deregister(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.services[r.PathValue("id")]
	if s == nil {
		http.Error(w, "unknown service", http.StatusNotFound)
		return
	}
	s.end()
	delete(a.services, s.ID)
	a.change()
}

func (a *Agent) lookUp(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.services[r.PathValue("id")]
	if s == nil {
		http.Error(w, "unknown service", http.StatusNotFound)
		return
	}
	a.meta(w)
	answer(w, s)
}

// meta sets the headers that every answer to a query has. The caller holds mu.
func (a *Agent) meta(w http.ResponseWriter) {
	w.Header().Set("X-Consul-Index", strconv.FormatUint(a.index, 10))
	w.Header().Set("X-Consul-KnownLeader", "true")
	w.Header().Set("X-Consul-LastContact", "0")
}

// block waits until the index is another one than that of the query, or until its wait is over. It
// returns with mu held.
func (a *Agent) block(r *http.Request) {
	since, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64) // 0 does not block
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if err != nil || wait > maxWait {
		wait = maxWait
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	a.mu.Lock()
	for since != 0 && a.index == since {
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			since = 0
		case <-r.Context().Done():
			since = 0
		}
		a.mu.Lock()
	}
}

func (a *Agent) healthy(w http.ResponseWriter, r *http.Request) {
	a.block(r)
	defer a.mu.Unlock()
	type check struct{ CheckID, Status, Output string }
	type entry struct {
		Service *service
		Checks  []check
	}
	out := []entry{}
	for _, s := range a.services {
		c := check{"grpc:" + s.ID, "passing", ""}
		if !s.passing {
			c.Status = "critical"
		}
		if s.Service == r.PathValue("name") && (s.passing || !r.URL.Query().Has("passing")) {
			out = append(out, entry{s, []check{c}})
		}
	}
	a.meta(w)
	answer(w, out)
}

// listServices lists all services of the agent by their ids.
func (a *Agent) listServices(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.meta(w)
	answer(w, a.services)
}

// listNames lists the names of the services with their tags, of which there are none.
func (a *Agent) listNames(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string][]string{}
	for _, s := range a.services {
		out[s.Service] = []string{}
	}
	a.meta(w)
	answer(w, out)
}

// Names returns the names of the services that pass their checks, with the addresses of their
// instances.
func (a *Agent) Names() map[string][]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string][]string{}
	for _, s := range a.services {
		if s.passing {
			name := strings.TrimPrefix(s.Service, "lamina-")
			out[name] = append(out[name], net.JoinHostPort(s.Address, strconv.Itoa(s.Port)))
		}
	}
	return out
}

// IDs returns the ids of all registered instances, in order.
func (a *Agent) IDs() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.services))
}
