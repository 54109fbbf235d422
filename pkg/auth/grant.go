package auth

// Grant is what an identity provider's token gives its holder.
type Grant struct {
	ID     string // of the holder: "token:" and a name that no other holder has
	Tenant string
	Roles  []Role
	Verbs  []Verb   // restricts what the roles give; empty for no restriction
	Models []string // names or digests; empty for all
	// Requests and Tokens are budgets a minute; 0 for no limit.
	Requests, Tokens int64
}

// scopes returns the grant in the form in which keys have it.
func (g *Grant) scopes() *Key {
	return &Key{Tenant: g.Tenant, Roles: g.Roles, Verbs: g.Verbs, Models: g.Models, Requests: g.Requests,
		Tokens: g.Tokens}
}

// Check returns an error that names the first field with a value that is not allowed.
func (g *Grant) Check() error { return g.scopes().checkScope() }

// Principal returns the holder, whose budgets meter has. check returns an error once the token is no longer valid.
func (g *Grant) Principal(meter *Meter, check func() error) *Principal {
	return &Principal{ID: g.ID, Tenant: g.Tenant, Roles: g.Roles, key: g.scopes(), meter: meter, check: check}
}
