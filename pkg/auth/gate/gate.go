package gate

import (
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
)

// Options are the settings of a gate.
type Options struct {
	Guard *auth.Guard // nil lets everyone in
	// Routes is the policy of the routes by their patterns; nil is auth.Routes.
	Routes map[string]auth.Rule
	Log    *slog.Logger // nil logs nothing
	// Fail writes an error in the form of the API that has the path. The gate has set the headers already. nil
	// writes plain text.
	Fail func(w http.ResponseWriter, r *http.Request, err error)
	// AnyHost turns off the check of the Host header: where callers prove who they are, a website that rebinds its name
	// has nothing to prove it with.
	AnyHost bool
	// Hosts are names by which clients may address the server, besides localhost, names without a dot and
	// addresses.
	Hosts []string
	// Origins are the origins of websites that may use the server from a browser.
	Origins []string
}

type gate struct {
	Options
	next   http.Handler
	routes *http.ServeMux // patterns of auth.Routes
	rules  map[string]auth.Rule
}

// New returns a handler that lets requests through to next.
func New(next http.Handler, o Options) http.Handler {
	g := &gate{Options: o, next: next, routes: http.NewServeMux(), rules: o.Routes}
	if g.rules == nil {
		g.rules = auth.Routes()
	}
	if g.Log == nil {
		g.Log = slog.New(slog.DiscardHandler)
	}
	if g.Fail == nil {
		g.Fail = plain
	}
	for pattern := range g.rules {
		g.routes.Handle(pattern, http.NotFoundHandler())
	}
	return g
}

// plain writes an error as text.
func plain(w http.ResponseWriter, _ *http.Request, err error) {
	status := http.StatusForbidden
	switch fault.CodeOf(err) {
	case fault.Unauthenticated:
		status = http.StatusUnauthorized
	case fault.NotFound:
		status = http.StatusNotFound
	case fault.Exhausted:
		status = http.StatusTooManyRequests
	case fault.Invalid:
		status = http.StatusBadRequest
	}
	http.Error(w, err.Error(), status)
}

// ServeHTTP checks a request and passes it on.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answered, err := g.checkOrigin(w, r)
	switch {
	case err != nil:
		g.refuse(w, r, err)
	case answered:
	case g.Guard == nil:
		g.next.ServeHTTP(w, r)
	default:
		g.guarded(w, r)
	}
}

// rule returns the policy of a request's route.
func (g *gate) rule(r *http.Request) (pattern string, rule auth.Rule, known bool) {
	_, pattern = g.routes.Handler(r)
	rule, known = g.rules[pattern]
	return pattern, rule, known
}

func (g *gate) guarded(w http.ResponseWriter, r *http.Request) {
	route, rule, known := g.rule(r)
	what := route
	if !known {
		what = r.Method + " " + r.URL.Path
	}
	p, err := g.Guard.Allow(what, rule, known, g.credentials(r))
	tenant := ""
	switch {
	case err == nil:
		tenant, err = named(p, r)
	case !known && fault.CodeOf(err) == fault.Unimplemented:
		err = fault.New(fault.NotFound, "find %s %s: it does not exist", r.Method, r.URL.Path).Because("UNKNOWN_URL")
	}
	if err == nil && rule.Metered {
		err = p.Meter().Begin()
	}
	if err != nil {
		if rule.Audited {
			g.Guard.Audit.Write(p, action(r, route), err)
		}
		switch fault.CodeOf(err) {
		case fault.Unauthenticated:
			w.Header().Add("WWW-Authenticate", `Bearer realm="lamina"`)
			if rule.Verb == auth.Page {
				w.Header().Add("WWW-Authenticate", `Basic realm="lamina, API key as the password", charset="UTF-8"`)
			}
		case fault.Exhausted:
			limits(w.Header(), p.Meter())
		}
		g.refuse(w, r, err)
		return
	}
	r = r.Clone(auth.WithPrincipal(auth.WithTenant(r.Context(), tenant), p))
	for _, header := range []string{"Authorization", "X-Api-Key", http.CanonicalHeaderKey(auth.TenantKey)} {
		r.Header.Del(header) // no handler needs them, and none can pass them on
	}
	if m := p.Meter(); rule.Metered && m != nil {
		w = &metered{ResponseWriter: w, meter: m}
	}
	if !rule.Audited || g.Guard.Audit == nil {
		g.next.ServeHTTP(w, r)
		return
	}
	seen := &status{ResponseWriter: w}
	result := fault.New(fault.Internal, "handle %s: it has panicked", route)
	defer func() {
		var err error = result
		if result == nil {
			err = seen.err()
		}
		g.Guard.Audit.Write(p, action(r, route), err)
	}()
	g.next.ServeHTTP(seen, r)
	result = nil
}

// named returns the tenant of a request.
func named(p *auth.Principal, r *http.Request) (string, error) {
	tenant, err := auth.ReadTenant(r.Header.Values(auth.TenantKey))
	if err != nil {
		return "", err
	}
	return p.TenantOf(tenant)
}

func (g *gate) refuse(w http.ResponseWriter, r *http.Request, err error) {
	g.Log.DebugContext(r.Context(), "refuse HTTP request", "method", r.Method, "path", r.URL.Path, "error", err)
	if wait := retryAfter(err); wait > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(wait.Seconds())), 10))
		w.Header().
			Set("Retry-After-Ms", strconv.FormatInt(int64(math.Ceil(float64(wait)/float64(time.Millisecond))), 10))
	}
	g.Fail(w, r, err)
}

// credentials reads what the caller shows. Credentials in a form that the gate does not know count as a wrong key.
func (g *gate) credentials(r *http.Request) auth.Credentials {
	var c auth.Credentials
	if r.TLS != nil && g.Guard.Verified(r.TLS.VerifiedChains) {
		c.Cert, c.URIs = true, r.TLS.PeerCertificates[0].URIs
	}
	bearer, key := r.Header.Values("Authorization"), r.Header.Values("X-Api-Key")
	const wrong = "?"
	switch {
	case len(bearer) == 0 && len(key) == 0:
		return c
	case len(bearer) > 1 || len(key) > 1:
		c.Secret = wrong
		return c
	}
	for _, v := range bearer {
		secret, ok := auth.Bearer(v)
		if user, password, basic := r.BasicAuth(); basic {
			if secret, ok = password, true; password == "" {
				secret = user
			}
		}
		if c.Secret = secret; !ok || secret == "" {
			c.Secret = wrong
		}
	}
	for _, v := range key {
		v = strings.TrimSpace(v)
		if v == "" || c.Secret != "" && c.Secret != v {
			v = wrong
		}
		c.Secret = v
	}
	return c
}

func action(r *http.Request, route string) auth.Action {
	return auth.Action{What: route, Target: r.URL.Path, From: r.RemoteAddr, Request: obs.RequestID(r.Context())}
}
