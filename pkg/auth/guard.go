package auth

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Guard decides who may call what on the servers of a process. It is safe for concurrent use. A nil Guard lets
// everyone in.
type Guard struct {
	Keys   *Keyring // nil if there are no keys
	Tokens Tokens   // nil if there are no tokens
	Meters *Meters  // of callers without a key; nil for none
	Domain string   // trust domain of certificates; empty for any
	// Revoked reports whether each of the verified chains of a certificate has been revoked; nil for never.
	Revoked func(chains [][]*x509.Certificate) bool
	// OpenProbes answers health and readiness probes without credentials.
	OpenProbes bool
	Audit      *AuditLog // nil for none

	methods map[string]Rule
}

// NewGuard returns a guard with the policy of Methods.
func NewGuard(keys *Keyring, domain string) *Guard {
	return &Guard{Keys: keys, Domain: domain, methods: Methods()}
}

// Tokens verifies the tokens of identity providers. It is safe for concurrent use.
type Tokens interface {
	// Authenticate returns the holder of a token. An error tells nothing about why a token is wrong: it is
	// Unauthenticated for every wrong token, PermissionDenied for a good one that allows nothing here, and Unavailable
	// while it cannot be verified.
	Authenticate(token string) (*Principal, error)
}

// Credentials are what a caller shows: none, one or both.
type Credentials struct {
	Secret string     // API key or token
	URIs   []*url.URL // of a verified client certificate; nil for none
	Cert   bool       // the caller has shown a certificate that was verified
}

// Verified reports whether a caller has shown a certificate, given its verified chains, that is not revoked.
func (g *Guard) Verified(chains [][]*x509.Certificate) bool {
	return len(chains) > 0 && (g.Revoked == nil || !g.Revoked(chains))
}

// Secrets reports whether callers may show an API key or a token.
func (g *Guard) Secrets() bool { return g.Keys != nil || g.Tokens != nil }

// Authenticate returns the caller. A secret counts more than a certificate: whoever sends a wrong key is refused.
func (g *Guard) Authenticate(c Credentials) (*Principal, error) {
	switch {
	case c.Secret != "" && g.Secrets():
		return g.secret(c.Secret)
	case c.Cert:
		return PrincipalOf(c.URIs, g.Domain)
	case g.Secrets():
		return nil, g.wrong()
	}
	return nil, refused("show a client certificate")
}

// secret returns the owner of an API key or the holder of a token. The two are told apart by the prefix of keys.
func (g *Guard) secret(text string) (*Principal, error) {
	var p *Principal
	var err error
	if key := strings.HasPrefix(text, Prefix) || g.Tokens == nil; key && g.Keys == nil {
		err = g.wrong()
	} else if key {
		p, err = g.Keys.Authenticate(text)
	} else {
		p, err = g.Tokens.Authenticate(text)
	}
	if fault.CodeOf(err) == fault.Unauthenticated {
		return nil, g.wrong() // one answer, whatever is wrong
	}
	return p, err
}

// wrong is the one answer to all who show no valid secret.
func (g *Guard) wrong() error {
	switch {
	case g.Tokens == nil:
		return errKey()
	case g.Keys == nil:
		return fault.New(fault.Unauthenticated, "authenticate: send a valid token").Because("INVALID_TOKEN")
	}
	return fault.New(fault.Unauthenticated, "authenticate: send a valid API key or token").Because("INVALID_API_KEY")
}

// Owner returns what has to be stored of a caller whose work goes on after its call, for Renew; nil if nobody has to
// authenticate.
func (p *Principal) Owner() *Grant {
	if p == nil {
		return nil
	}
	g := &Grant{ID: p.ID, Tenant: p.Tenant, Roles: p.Roles}
	if p.key != nil {
		g.Verbs, g.Models = p.key.Verbs, p.key.Models
	}
	g.Requests, g.Tokens = p.meter.Limits()
	return g
}

// Renew returns the caller that Owner was called for, perhaps by an earlier process. The owner of a key is what the key
// makes it now, and nobody once the key is not valid any more. The holder of a token or a certificate keeps what it had
// then: their ends are not known here, so the work that is stored must have an end of its own.
func (g *Guard) Renew(o *Grant) (*Principal, error) {
	switch {
	case g == nil:
		return nil, nil
	case o == nil:
		return nil, fault.New(fault.Unauthenticated, "renew the owner: there was none")
	}
	if id, ok := strings.CutPrefix(o.ID, "key:"); ok {
		if g.Keys == nil {
			return nil, errKey()
		}
		return g.Keys.renew(id)
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	var meter *Meter
	if g.Meters != nil {
		var err error
		if meter, err = g.Meters.Of(o.ID, o.Requests, o.Tokens); err != nil {
			return nil, err
		}
	}
	return o.Principal(meter, nil), nil
}

// MeterOf returns the budgets of a caller whose request goes on here, by its id and the limits that it had where the
// request began. A key that is known here has its limits of now.
func (g *Guard) MeterOf(id string, requests, tokens int64) *Meter {
	if g == nil {
		return nil
	}
	if key, ok := strings.CutPrefix(id, "key:"); ok && g.Keys != nil {
		if m := g.Keys.meterOf(key); m != nil {
			return m
		}
	}
	if g.Meters == nil {
		return nil
	}
	m, err := g.Meters.Of(id, requests, tokens)
	if err != nil {
		return nil // too many callers: a request that was let in is not cut for that
	}
	return m
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
		return p, Denied(what, p, rule)
	}
	return p, nil
}

// Denied is the error of a caller who may not call a method or route. It says what the rule asks for.
func Denied(what string, p *Principal, rule Rule) error {
	needs := "it is for services alone"
	if rule.Verb != "" {
		needs = fmt.Sprintf("it needs the verb %s", rule.Verb)
	}
	return fault.New(fault.PermissionDenied, "call %s: %s may not: %s", what, p.ID, needs).Because("NOT_ALLOWED")
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
