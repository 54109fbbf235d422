package gate

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// checkOrigin refuses requests that a website has a browser send, and requests for a host that is not ours. It
// answers the preflight requests of allowed origins itself.
func (g *gate) checkOrigin(w http.ResponseWriter, r *http.Request) (answered bool, err error) {
	if !g.AnyHost && !g.ours(r.Host) {
		return false, fault.New(
			fault.PermissionDenied,
			"serve host %.255q: it is no name of this server: address it as localhost, or allow the name by --allow-host",
			r.Host,
		).Because("HOST_NOT_ALLOWED")
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return false, g.checkSite(r)
	}
	w.Header().Add("Vary", "Origin")
	origin := origins[0]
	u, err := url.Parse(origin)
	web := err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
	switch {
	case len(origins) == 1 && web && strings.EqualFold(u.Host, r.Host):
		return false, nil
	case len(origins) == 1 && web &&
		slices.ContainsFunc(g.Origins, func(o string) bool { return sameOrigin(o, origin) }):
		return allowOrigin(w, r, origin), nil
	}
	return false, foreign(origin)
}

func foreign(origin string) error {
	return fault.New(fault.PermissionDenied,
		"serve a website of origin %.255q: other origins may not: allow it by --allow-origin", origin).
		Because("ORIGIN_NOT_ALLOWED")
}

// checkSite looks at requests without an origin. Browsers say about those whether another site is behind them. Another
// site may only link to pages.
func (g *gate) checkSite(r *http.Request) error {
	switch site := r.Header.Get("Sec-Fetch-Site"); {
	case site != "cross-site" && site != "same-site":
		return nil
	case r.Header.Get("Sec-Fetch-Mode") == "navigate" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return nil
	}
	return foreign("another site")
}

// ours reports whether a Host header names this server. The name of a website always has a dot, and a page that was
// loaded from an address has that address as its origin, so neither an address nor a name without a dot can belong to
// a website that lets its name resolve to us.
func (g *gate) ours(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	return !strings.Contains(name, ".") || net.ParseIP(name) != nil || strings.HasSuffix(name, ".localhost") ||
		slices.ContainsFunc(g.Hosts, func(h string) bool { return strings.EqualFold(h, name) })
}

func sameOrigin(allowed, origin string) bool {
	return strings.EqualFold(strings.TrimSuffix(allowed, "/"), origin)
}

// allowOrigin lets the scripts of an origin read the answer. It reports whether it has answered.
func allowOrigin(w http.ResponseWriter, r *http.Request, origin string) bool {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "Retry-After, X-Request-Id, X-Ratelimit-Limit-Requests, "+
		"X-Ratelimit-Remaining-Requests, X-Ratelimit-Reset-Requests, X-Ratelimit-Limit-Tokens, "+
		"X-Ratelimit-Remaining-Tokens, X-Ratelimit-Reset-Tokens")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
	h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
