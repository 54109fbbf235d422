package token

import (
	"cmp"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a token.
const (
	maxToken   = 16 << 10 // bytes
	maxSubject = 255
)

// refusal is why a token is wrong, for the log.
type refusal string

// Error returns the reason.
func (r refusal) Error() string { return string(r) }

// Options are the options of a verifier.
type Options struct {
	Log *slog.Logger     // nil logs nothing
	Now func() time.Time // nil is time.Now
	// Retry is the shortest time between two attempts to read keys, however many tokens name keys that are not known; 0
	// is 10 s.
	Retry time.Duration
}

// Verifier verifies tokens. It implements auth.Tokens and is safe for concurrent use.
type Verifier struct {
	log     *slog.Logger
	now     func() time.Time
	issuers map[string]*issuer
	meters  *auth.Meters
}

// issuer is an issuer with its keys.
type issuer struct {
	Issuer
	source *source
	parser *jwt.Parser
}

// New returns a verifier of a configuration that ParseConfig or ReadConfig has returned. Run keeps its keys up to date.
func New(c Config, meters *auth.Meters, o Options) (*Verifier, error) {
	v := &Verifier{log: o.Log, now: o.Now, issuers: map[string]*issuer{}, meters: meters}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if v.now == nil {
		v.now = time.Now
	}
	for _, at := range c.Issuers {
		s, err := newSource(at, v.log, v.now, cmp.Or(o.Retry, retryEvery))
		if err != nil {
			return nil, err
		}
		v.issuers[at.Issuer] = &issuer{Issuer: at, source: s, parser: jwt.NewParser(
			jwt.WithValidMethods(at.Algorithms), jwt.WithIssuer(at.Issuer), jwt.WithAudience(at.Audiences...),
			jwt.WithLeeway(at.ClockSkew), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithTimeFunc(v.now),
			jwt.WithStrictDecoding(), jwt.WithJSONNumber(),
		)}
	}
	return v, nil
}

// Run reads the keys of all issuers again until ctx ends.
func (v *Verifier) Run(ctx context.Context) error {
	var work sync.WaitGroup
	for _, at := range v.issuers {
		work.Go(func() { at.source.run(ctx) })
	}
	work.Wait()
	return nil
}

// header is what a token says about itself. Nothing of it is trusted before its signature has been verified.
type header struct {
	alg, kid, typ, issuer string
}

// part decodes a part of a token, which must be a JSON object.
func part(text string) (map[string]json.RawMessage, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, false
	}
	var fields map[string]json.RawMessage
	return fields, json.Unmarshal(raw, &fields) == nil && fields != nil
}

// peek reads the header of a token, and who it says has issued it.
func peek(text string) (header, error) {
	// Decoders of base64 skip line breaks, so that several texts would be the same token.
	if len(text) > maxToken || strings.ContainsAny(text, "\r\n") {
		return header{}, refusal("no signed token")
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 || parts[2] == "" {
		return header{}, refusal("no signed token")
	}
	head, ok := part(parts[0])
	if !ok {
		return header{}, refusal("no header")
	}
	claims, ok := part(parts[1])
	if !ok {
		return header{}, refusal("no claims")
	}
	if _, critical := head["crit"]; critical {
		return header{}, refusal("critical extension") // there is none that we know
	}
	var h header
	for _, f := range []struct {
		fields map[string]json.RawMessage
		name   string
		value  *string
		needed bool
	}{{head, "alg", &h.alg, true}, {head, "kid", &h.kid, false}, {head, "typ", &h.typ, false},
		{claims, "iss", &h.issuer, true}} {
		raw, given := f.fields[f.name]
		if !given && !f.needed {
			continue
		}
		if !given || json.Unmarshal(raw, f.value) != nil || *f.value == "" || len(*f.value) > 512 {
			return header{}, refusal("wrong " + f.name)
		}
	}
	// Tokens of other kinds, such as those for a logout, are signed by the same keys.
	switch strings.TrimPrefix(strings.ToLower(h.typ), "application/") {
	case "", "jwt", "at+jwt":
		return h, nil
	}
	return header{}, refusal("another type of token")
}

// Authenticate returns the holder of a token.
func (v *Verifier) Authenticate(text string) (*auth.Principal, error) {
	p, at, err := v.authenticate(text)
	if err == nil {
		return p, nil
	}
	if fault.CodeOf(err) != fault.Internal { // a refusal has no code
		return nil, err
	}
	v.log.Debug("refuse token", "issuer", at, "reason", err)
	return nil, fault.New(fault.Unauthenticated, "authenticate: send a valid token").Because("INVALID_TOKEN")
}

// authenticate also returns the issuer if it is known.
func (v *Verifier) authenticate(text string) (*auth.Principal, string, error) {
	h, err := peek(text)
	if err != nil {
		return nil, "", err
	}
	at := v.issuers[h.issuer]
	switch {
	case at == nil:
		return nil, "", refusal("unknown issuer")
	case !slices.Contains(at.Algorithms, h.alg):
		return nil, at.Issuer.Issuer, refusal("algorithm not allowed")
	}
	keys, err := at.find(h)
	if err != nil {
		return nil, at.Issuer.Issuer, err
	}
	claims := jwt.MapClaims{}
	set := jwt.VerificationKeySet{}
	for _, k := range keys {
		set.Keys = append(set.Keys, k)
	}
	if _, err := at.parser.ParseWithClaims(text, claims,
		func(*jwt.Token) (any, error) { return set, nil }); err != nil {
		return nil, at.Issuer.Issuer, reason(err)
	}
	p, err := v.holder(at, h, claims)
	return p, at.Issuer.Issuer, err
}

// find returns the keys that may have signed a token. If none is known they are read again.
func (at *issuer) find(h header) ([]crypto.PublicKey, error) {
	if keys := at.source.keys().find(h.kid, h.alg); len(keys) > 0 {
		return keys, nil
	}
	at.source.again()
	set := at.source.keys()
	if set == nil {
		return nil, fault.New(fault.Unavailable, "authenticate: the keys of the token's issuer are not available").
			After(at.source.retry).Because("ISSUER_UNAVAILABLE")
	}
	if keys := set.find(h.kid, h.alg); len(keys) > 0 {
		return keys, nil
	}
	return nil, refusal("unknown key")
}

// holder returns the principal of a token whose signature and times are right.
func (v *Verifier) holder(at *issuer, h header, claims jwt.MapClaims) (*auth.Principal, error) {
	subject, err := claims.GetSubject()
	if err != nil || subject == "" || len(subject) > maxSubject {
		return nil, refusal("wrong sub")
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil || expires.Sub(v.now()) > at.MaxLifetime+at.ClockSkew {
		return nil, refusal("expires too late")
	}
	grant, err := at.grant(subject, claims)
	if err != nil {
		return nil, err
	}
	meter, err := v.meters.Of(grant.ID, grant.Requests, grant.Tokens)
	if err != nil {
		return nil, err
	}
	end := expires.Add(at.ClockSkew)
	return grant.Principal(meter, func() error {
		if !v.now().Before(end) || len(at.source.keys().find(h.kid, h.alg)) == 0 {
			return fault.New(fault.Unauthenticated,
				"authenticate: the token is no longer valid").Because("INVALID_TOKEN")
		}
		return nil
	}), nil
}
