package app

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/gate"
	"github.com/lamina-mesh/lamina/pkg/auth/ledger"
	"github.com/lamina-mesh/lamina/pkg/auth/token"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router/batches"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// AccessConfig says who may use the listeners of a process.
type AccessConfig struct {
	Keys       string   // file of API keys; empty for none
	Tokens     string   // file of the issuers of tokens (pkg/auth/token); empty for none
	Audit      string   // file for the audit log; empty for none
	OpenProbes bool     // answer health probes without credentials
	Hosts      []string // further names by which HTTP clients may address the server
	Origins    []string // websites that may use the HTTP APIs from a browser
}

// secure reads certificates, keys and issuers of tokens, and sets up the guard. A process has one if it has keys or
// issuers, or an authority that verifies the certificates of clients.
func (p *process) secure(files rpc.Files) error {
	certs, err := files.Open(func(err error) {
		p.log.Error("read TLS files: the ones from before stay", "error", err)
	})
	if err != nil {
		return err
	}
	if p.certs = certs; certs != nil && files.Revoked != "" {
		p.add(runPart("revoked certificates", certs.Run))
	}
	var keys *auth.Keyring
	if path := p.set.access.Keys; path != "" {
		if keys, err = auth.OpenKeyring(path, auth.KeyringOptions{Log: p.log, Ledger: p.ledger}); err != nil {
			return err
		}
		p.add(runPart("keys", keys.Run))
	}
	meters := auth.NewMeters(nil)
	meters.Share(p.ledger)
	tokens, err := p.tokens(meters)
	if err != nil {
		return err
	}
	if keys == nil && tokens == nil && (certs == nil || !certs.Authority()) {
		if p.set.access.Audit != "" {
			return fault.Field("audit-log",
				"there is nobody to write down: give --auth-keys, --auth-tokens or certificates")
		}
		return nil
	}
	domain := ""
	if certs != nil {
		domain = auth.Domain(certs.URIs())
	}
	p.guard = auth.NewGuard(keys, domain)
	p.guard.Meters = meters
	if certs != nil {
		p.guard.Revoked = certs.Revoked
	}
	if tokens != nil { // an interface with a nil pointer would not be nil
		p.guard.Tokens = tokens
	}
	p.guard.OpenProbes = p.set.access.OpenProbes
	if path := p.set.access.Audit; path != "" {
		w, err := auth.OpenAuditLog(path)
		if err != nil {
			return err
		}
		p.closers = append(p.closers, w.Close)
		p.guard.Audit = auth.NewAuditLog(w, time.Now, func(err error) { p.log.Error("audit", "error", err) })
	}
	return nil
}

// shareBudgets lets the routers of a registry share the budgets of callers. A process that is a whole mesh has the only
// one.
func (p *process) shareBudgets() {
	board, ok := p.registry.(discovery.Board)
	if !ok || p.ledger == nil || p.guard == nil || !p.guard.Secrets() {
		return
	}
	e := ledger.New(p.ledgerID, p.ledger, board, ledger.Options{Log: p.log, Metrics: p.metrics})
	p.add(runPart("shared budgets", e.Run))
}

// tokens returns the verifier of tokens, or nil if there are none.
func (p *process) tokens(meters *auth.Meters) (*token.Verifier, error) {
	if p.set.access.Tokens == "" {
		return nil, nil
	}
	issuers, err := token.ReadConfig(p.set.access.Tokens)
	if err != nil {
		return nil, err
	}
	v, err := token.New(issuers, meters, token.Options{Log: p.log})
	if err != nil {
		return nil, err
	}
	p.add(runPart("issuers of tokens", v.Run))
	return v, nil
}

// serverTLS returns the configuration of a listener, or nil for plaintext. Clients show a certificate, or if there are
// keys or tokens they may.
func (p *process) serverTLS(protocols ...string) *tls.Config {
	if p.certs == nil {
		return nil
	}
	clients := tls.RequireAndVerifyClientCert
	if p.guard == nil || p.guard.Secrets() {
		clients = tls.VerifyClientCertIfGiven
	}
	return p.certs.Server(clients, protocols...)
}

// dialOptions say how the process reaches other services.
func (p *process) dialOptions() rpc.DialOptions {
	var creds credentials.TransportCredentials
	if p.certs != nil {
		creds = p.certs.Client()
	}
	return rpc.DialOptions{TLS: creds, Stats: p.tracer.ClientHandler()}
}

// listen opens an address. If others can reach it, callers have to authenticate over TLS, or the operator has waived
// that.
func (p *process) listen(addr string) (net.Listener, error) {
	l, err := rpc.Listen(addr, rpc.ListenOptions{Net: p.network, TLS: p.certs != nil, Insecure: p.set.insecure,
		Guarded: p.guard != nil})
	if err == nil {
		p.own.Bound(l.Addr())
	}
	return l, err
}

// httpPart serves HTTP behind the gate.
func (p *process) httpPart(name, addr string, h http.Handler, bound func(string)) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		l, err := p.listen(addr)
		if err != nil {
			return err
		}
		if bound != nil {
			bound(l.Addr().String())
		}
		if config := p.serverTLS("h2", "http/1.1"); config != nil {
			l = tls.NewListener(l, config)
		}
		ready()
		return obs.ServeHTTP(ctx, l, obs.RequestIDs(p.tracer.HTTP(p.gate(h))), drain)
	}}
}

// gate returns the one middleware in front of all routes.
func (p *process) gate(h http.Handler) http.Handler {
	return gate.New(h, gate.Options{
		Guard: p.guard, Log: p.log, Fail: newRefusals().fail, AnyHost: p.guard != nil, Hosts: p.set.access.Hosts,
		Origins: p.set.access.Origins,
	})
}

// refusals writes what the gate refuses in the form of the API that has the path.
type refusals struct {
	paths *http.ServeMux
	apis  map[string]httpapi.API // by the paths of their routes
	other func(http.ResponseWriter, error)
}

func newRefusals() *refusals {
	f := &refusals{paths: http.NewServeMux(), apis: map[string]httpapi.API{}, other: openai.Fail(openai.Options{})}
	for _, api := range httpAPIs(nil, batches.New(batches.Options{Fail: f.other}), console.Options{}) {
		for _, r := range api.Routes {
			if _, ok := f.apis[r.Path]; !ok {
				f.apis[r.Path] = api
				f.paths.Handle(r.Path, http.NotFoundHandler())
			}
		}
	}
	return f
}

func (f *refusals) fail(w http.ResponseWriter, r *http.Request, err error) {
	_, path := f.paths.Handler(r)
	api, known := f.apis[path]
	switch {
	case known && fault.CodeOf(err) == fault.NotFound: // the path has other methods
		var allow []string
		for _, route := range api.Routes {
			if route.Path == path {
				allow = append(allow, route.Method)
			}
		}
		w.Header().Set("Allow", strings.Join(allow, ", "))
		api.Fail(w, &httpapi.MethodError{Method: r.Method, Path: r.URL.Path, Allow: allow})
	case known:
		api.Fail(w, err)
	case strings.HasPrefix(r.URL.Path, "/v1/"):
		f.other(w, err)
	default:
		http.Error(w, err.Error(), rpc.HTTPStatus(fault.CodeOf(err)))
	}
}

// Routes returns the patterns of all HTTP routes of a process.
func Routes() []string {
	routes := append(probeRoutes(), console.PageRoutes()...)
	for _, api := range httpAPIs(nil, batches.New(batches.Options{}), console.Options{}) {
		for _, r := range api.Routes {
			routes = append(routes, r.Method+" "+r.Path)
		}
	}
	return routes
}
