package auth

import (
	"net/url"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Guard decides who may call what on the servers of a process. It is safe for concurrent use. A nil Guard lets
// everyone in.
type Guard struct {
	Keys   *Keyring // nil if there are no keys
	Domain string   // trust domain of certificates; empty for any
	// OpenProbes answers health and readiness probes without credentials.
	OpenProbes bool
	Audit      *AuditLog // nil for none

	methods map[string]Rule
}

// NewGuard returns a guard with the policy of Methods.
func NewGuard(keys *Keyring, domain string) *Guard {
	return &Guard{Keys: keys, Domain: domain, methods: Methods()}
}

// Credentials are what a caller shows: none, one or both.
type Credentials struct {
	Secret string     // of an API key
	URIs   []*url.URL // of a verified client certificate; nil for none
	Cert   bool       // the caller has shown a certificate that was verified
}

// Authenticate returns the caller. A secret counts more than a certificate: whoever sends a wrong key is refused.
func (g *Guard) Authenticate(c Credentials) (*Principal, error) {
	switch {
	case c.Secret != "" && g.Keys != nil:
		return g.Keys.Authenticate(c.Secret)
	case c.Cert:
		return PrincipalOf(c.URIs, g.Domain)
	case g.Keys != nil:
		return nil, errKey()
	}
	return nil, refused("show a client certificate")
}

// Method returns the rule of a gRPC method, by its full name.
func (g *Guard) Method(name string) (Rule, bool) {
	r, ok := g.methods[name]
	return r, ok
}

// Allow authenticates a caller and returns it if a rule allows it to call. what names the method or route for the
// error. known is false if there is no rule. If only the permission is missing, the principal is returned with the
// error.
func (g *Guard) Allow(what string, rule Rule, known bool, c Credentials) (*Principal, error) {
	if known && rule.Verb == Probe && g.OpenProbes && c.Secret == "" && !c.Cert {
		return nil, nil
	}
	p, err := g.Authenticate(c)
	if err != nil {
		return nil, err
	}
	if !known {
		return p, fault.New(fault.Unimplemented, "call %s: it does not exist", what)
	}
	if !p.May(rule) {
		return p, fault.New(fault.PermissionDenied, "call %s: %s may not", what, p.ID).Because("NOT_ALLOWED")
	}
	return p, nil
}

// TenantOf returns the tenant of a request, given the one that it names: a key has a tenant of its own, and only
// programs may name another.
func (p *Principal) TenantOf(named string) (string, error) {
	switch {
	case p == nil || named == "" || named == p.Tenant:
		if p != nil {
			return p.Tenant, nil
		}
		return named, nil
	case p.NamesTenants():
		return named, nil
	}
	return "", &fault.Error{Code: fault.PermissionDenied, Field: TenantKey, Reason: "NOT_ALLOWED",
		Msg: "the credentials belong to another tenant"}
}

// Bearer returns the secret of an Authorization header with the scheme Bearer. ok is false for other schemes.
func Bearer(header string) (secret string, ok bool) {
	scheme, secret, _ := strings.Cut(header, " ")
	return strings.TrimSpace(secret), strings.EqualFold(scheme, "Bearer")
}
