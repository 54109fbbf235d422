package token

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// reason returns one word for what the library has found wrong. Its own text may quote the token.
func reason(err error) refusal {
	for _, known := range []struct {
		err  error
		text refusal
	}{
		{jwt.ErrTokenMalformed, "malformed"}, {jwt.ErrTokenUnverifiable, "unverifiable"},
		{jwt.ErrTokenSignatureInvalid, "wrong signature"}, {jwt.ErrTokenExpired, "expired"},
		{jwt.ErrTokenNotValidYet, "not valid yet"}, {jwt.ErrTokenUsedBeforeIssued, "issued in the future"},
		{jwt.ErrTokenInvalidAudience, "another audience"}, {jwt.ErrTokenInvalidIssuer, "another issuer"},
		{jwt.ErrTokenRequiredClaimMissing, "missing claim"},
	} {
		if errors.Is(err, known.err) {
			return known.text
		}
	}
	return "wrong claims"
}

// digest is a name for a holder that says nothing about it and that no other one has.
func digest(issuer, subject string) string {
	sum := sha256.Sum256([]byte(issuer + "\x00" + subject))
	return hex.EncodeToString(sum[:16])
}

// holderID returns the id of a holder for logs: the subject with its issuer, or their digest if they are not plain.
func holderID(issuer, subject string) string {
	id := subject + "@" + issuer
	if len(id) > 200 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "token:" + digest(issuer, subject)
	}
	return "token:" + id
}

// grant returns what the claims of a token allow.
func (c *Issuer) grant(subject string, claims jwt.MapClaims) (*auth.Grant, error) {
	i := slices.IndexFunc(c.Grants, func(g Grant) bool { return g.holds(claims) })
	if i < 0 {
		return nil, notAllowed("no grant of its issuer fits the token")
	}
	g := &c.Grants[i]
	out := &auth.Grant{
		ID: holderID(c.Issuer, subject), Tenant: g.Tenant, Roles: g.Roles, Verbs: g.Verbs, Models: g.Models,
		Requests: g.Requests, Tokens: g.Tokens,
	}
	if g.Tenant == "" {
		out.Tenant = "token:" + digest(c.Issuer, subject)
	}
	if g.TenantClaim != "" {
		name, ok := claim(claims, g.TenantClaim).(string)
		if !ok || name == "" {
			return nil, notAllowed("the token has no tenant in the claim " + g.TenantClaim)
		}
		out.Tenant = name
	}
	if g.ModelsClaim != "" {
		// An empty list would mean all models.
		if out.Models = words(claim(claims, g.ModelsClaim)); len(out.Models) == 0 {
			return nil, notAllowed("the token has no models in the claim " + g.ModelsClaim)
		}
	}
	for _, b := range []struct {
		claim string
		value *int64
	}{{g.RequestsClaim, &out.Requests}, {g.TokensClaim, &out.Tokens}} {
		if b.claim == "" {
			continue
		}
		n, ok := claim(claims, b.claim).(json.Number)
		value, err := n.Int64()
		if !ok || err != nil || value < 1 { // 0 would mean no limit
			return nil, notAllowed("the token has no budget in the claim " + b.claim)
		}
		*b.value = value
	}
	if err := out.Check(); err != nil {
		var f *fault.Error
		if errors.As(err, &f) { // its text may quote the claim
			return nil, notAllowed("the token has a value out of bounds for " + f.Field)
		}
		return nil, notAllowed("the token has a value out of bounds")
	}
	return out, nil
}

func notAllowed(why string) error {
	return fault.New(fault.PermissionDenied, "authenticate: %s", why).Because("NOT_ALLOWED")
}

// holds reports whether all conditions of a grant hold.
func (g *Grant) holds(claims jwt.MapClaims) bool {
	for name, wanted := range g.When {
		if !slices.ContainsFunc(words(claim(claims, name)), func(have string) bool {
			return slices.Contains(wanted, have)
		}) {
			return false
		}
	}
	return true
}

// claim returns a claim by its name, or inside objects by names with dots between them.
func claim(claims jwt.MapClaims, path string) any {
	if value, ok := claims[path]; ok { // names may have dots of their own, such as https://example.org/groups
		return value
	}
	var at any = map[string]any(claims)
	for name := range strings.SplitSeq(path, ".") {
		object, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = object[name]
	}
	return at
}

// words returns a text, number or boolean, or a list of them, as texts. It is nil for everything else.
func words(value any) []string {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var out []string
	for _, item := range list {
		switch item := item.(type) {
		case string:
			out = append(out, item)
		case json.Number, bool:
			out = append(out, fmt.Sprint(item))
		}
	}
	return out
}
