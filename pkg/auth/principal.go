package auth

import (
	"context"
	"log/slog"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Principal is an authenticated caller. A Principal is not changed after its creation.
type Principal struct {
	ID      string  // "key:" and the id of a key, "token:" and the subject of a token, or a SPIFFE id
	Name    string  // of a key, for logs
	Tenant  string  // of a key or token
	Service Service // of a process of the mesh; empty for people and programs
	Roles   []Role  // of people and programs

	key   *Key // its scopes; nil for a certificate
	meter *Meter
	check func() error // nil if the credentials stay valid
}

// Check returns an error if the credentials of the principal are no longer valid. Calls that would not end by
// themselves ask for it from time to time.
func (p *Principal) Check() error {
	if p == nil || p.check == nil {
		return nil
	}
	return p.check()
}

// LogValue returns the id, which is no secret.
func (p *Principal) LogValue() slog.Value { return slog.StringValue(p.ID) }

// May reports whether a rule allows the principal to call what it is for.
func (p *Principal) May(r Rule) bool {
	if p.Service != "" {
		return slices.Contains(r.Services, p.Service)
	}
	if r.Verb == "" {
		return false
	}
	if p.key != nil {
		return p.key.May(r.Verb)
	}
	return granted(p.Roles, r.Verb)
}

// NamesTenants reports whether the principal may name the tenant of each request.
func (p *Principal) NamesTenants() bool { return slices.Contains(p.Roles, Program) }

// Meter returns the budgets of the principal, or nil if it has none.
func (p *Principal) Meter() *Meter {
	if p == nil {
		return nil
	}
	return p.meter
}

// models returns the models that the principal may use; empty for all.
func (p *Principal) models() []string {
	if p == nil || p.key == nil {
		return nil
	}
	return p.key.Models
}

type principalKey struct{}

// WithPrincipal returns a context that carries a principal.
func WithPrincipal(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// From returns the principal of the request that ctx belongs to, or nil where nobody has to authenticate.
func From(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}

// MayUse reports whether the caller may use a model, which any of the given names mean.
func MayUse(ctx context.Context, names ...string) bool {
	models := From(ctx).models()
	return len(models) == 0 || slices.ContainsFunc(names, func(n string) bool { return slices.Contains(models, n) })
}

// CheckModel returns an error if the caller may not use a model. A model is given by its name and its digest, and
// perhaps by more names, such as that with an adapter.
func CheckModel(ctx context.Context, name, digest string, more ...string) error {
	if MayUse(ctx, append(more, name, digest)...) {
		return nil
	}
	return &fault.Error{Code: fault.PermissionDenied, Field: "model", Reason: "MODEL_NOT_ALLOWED",
		Msg: "the credentials may not use model " + name}
}
